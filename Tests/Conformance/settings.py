"""From the suites' names of settings to ours. Keyed by setting, never by the name of a case."""
import os

# Names of Suricata's configuration, as the cases use them, which the engine has too.
SAME = {
    "exception-policy", "packet-alert-max", "stream.async-oneside", "stream.checksum-validation", "stream.drop-invalid",
    "stream.inline", "stream.memcap", "stream.memcap-policy", "stream.midstream", "stream.midstream-policy",
    "stream.reassembly.depth", "stream.reassembly.memcap", "stream.reassembly.memcap-policy",
    "stream.reassembly.toclient-chunk-size", "stream.reassembly.toserver-chunk-size",
    "stream.reassembly.urgent.policy", "flow.memcap-policy", "defrag.memcap", "defrag.memcap-policy",
    "defrag.max-frags", "defrag.timeout", "defrag.trackers", "decoder.vxlan.enabled", "decoder.vxlan.ports",
    "decoder.geneve.enabled", "decoder.geneve.ports", "decoder.teredo.enabled", "decoder.teredo.ports",
    "flow.rate-tracking.bytes", "flow.rate-tracking.interval",
}
# Settings without effect on what is found: how much is logged, which algorithm searches, how large a table is.
NOTHING = {
    "stats.decoder-events", "stats.stream-events", "mpm-algo", "spm-algo", "detect.prefilter.default", "flow.hash-size",
    "pcap-file.delete-when-done", "pcap-file.checksum-checks", "app-layer.error-policy",
}


def translate(case):
    """The options of `vmfence-ref inspect` for a case, and the settings that have no counterpart."""
    options, unknown = [], []
    given = dict(flatten(case.effective.get("yaml", {})))
    given.update({**case.options.get("set", {}), **case.effective.get("set", {})})
    folder = case.expand(str(given.get("default-reputation-path", "")))

    def take(name, value):
        text = ",".join(map(str, value)) if isinstance(value, list) else case.expand(str(value))
        if name.startswith("vars.address-groups.") or name.startswith("vars.port-groups."):
            options.extend(["--var", "%s=%s" % (name.rsplit(".", 1)[1], text)])
        elif name == "packet-alert-max" and text == "0":
            # Stands for the default.
            options.extend(["--set", "packet-alert-max=15"])
        elif name in SAME or name.startswith("flow-timeouts.") or name.startswith("host-os-policy."):
            options.extend(["--set", "%s=%s" % (name, text)])
        elif name in FILES:
            # Files of the reference engine's own distribution are not at hand.
            for item in value if isinstance(value, list) else [value]:
                path = os.path.join(folder, case.expand(str(item)))
                if os.path.exists(path):
                    options.extend([FILES[name], path])
        elif name == "action-order":
            options.extend(["--action-order", text])
        elif name not in NOTHING:
            unknown.append("%s=%s" % (name, value))

    for name, value in sorted(flatten(case.effective.get("yaml", {}))):
        take(name, value)
    for name, value in sorted({**case.options.get("set", {}), **case.effective.get("set", {})}.items()):
        take(name, value)
    # What Suricata does where a case says nothing: inline, exceptions drop.
    if case.options.get("simulate_ips") and not any(o.startswith("exception-policy=") for o in options):
        options.extend(["--set", "exception-policy=auto"])
    policies = case.effective.get("host_os_policy")
    if isinstance(policies, dict):
        for system, networks in policies.items():
            if networks:
                options.extend(["--set", "host-os-policy.%s=%s" % (system, ",".join(networks))])
    elif policies:
        options.extend(["--set", "host-os-policy.default=" + policies.split("(")[0]])
    if case.options.get("checksum") == "none":
        options.append("--ignore-checksums")
    if case.options.get("simulate_ips"):
        options.append("--inline")
    return options, unknown


# Names of files, and the options that take them; a suite may be without them.
FILES = {
    "threshold-file": "--threshold-config",
    "classification-file": "--definitions",
    "reference-config-file": "--definitions",
    "reputation-categories-file": "--reputation-categories",
    "reputation-files": "--reputation-list",
    "geoip-database": "--country-database",
}


def flatten(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, prefix + name + ".")
        else:
            yield prefix + name, value
