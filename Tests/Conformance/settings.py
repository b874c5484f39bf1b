"""From the suites' names of settings to ours. Keyed by setting, never by the name of a case."""
import os

YES = {"yes": "yes", "true": "yes", "on": "yes", "1": "yes", "no": "no", "false": "no", "off": "no", "0": "no"}


def flag(key):
    return lambda value, case: [(key, YES.get(str(value).lower(), str(value)))]


def plain(key):
    return lambda value, case: [(key, str(value))]


def path(key):
    return lambda value, case: [(key, case.expand(str(value)))]


def words(key):
    return lambda value, case: [(key, " ".join(value) if isinstance(value, list) else str(value))]


def nothing(value, case):
    """A setting without effect on what is found."""
    return []


# Names of Suricata's configuration, as the cases use them.
TABLE = {
    "stats.decoder-events": nothing,
    "stats.stream-events": nothing,
    "mpm-algo": nothing,
    "spm-algo": nothing,
    "detect.prefilter.default": nothing,
    "flow.hash-size": nothing,
    "pcap-file.delete-when-done": nothing,
    "exception-policy": plain("exception-policy"),
    "stream.midstream": flag("stream.midstream"),
    "stream.midstream-policy": plain("stream.midstream-policy"),
    "stream.async-oneside": flag("stream.async-oneside"),
    "stream.checksum-validation": flag("stream.checksum-validation"),
    "stream.inline": lambda value, case: [("stream.inline", YES.get(str(value).lower(), str(value)))],
    "stream.memcap-policy": plain("stream.memcap-policy"),
    "stream.reassembly.memcap-policy": plain("stream.reassembly.memcap-policy"),
    "stream.reassembly.depth": plain("stream.reassembly.depth"),
    "stream.reassembly.toserver-chunk-size": plain("stream.reassembly.toserver-chunk-size"),
    "stream.reassembly.toclient-chunk-size": plain("stream.reassembly.toclient-chunk-size"),
    "stream.reassembly.urgent.policy": plain("stream.reassembly.urgent.policy"),
    "defrag.memcap-policy": plain("defrag.memcap-policy"),
    "flow.memcap-policy": plain("flow.memcap-policy"),
    "packet-alert-max": plain("packet-alert-max"),
}

# Networks of hosts by their system; an empty list says nothing.
for system in (
    "bsd bsd-right first last hpux10 hpux11 irix linux macos old-linux old-solaris solaris vista windows windows2k3"
).split():
    TABLE["host-os-policy." + system] = lambda value, case, key="host-os-policy." + system: (
        [(key, " ".join(value) if isinstance(value, list) else str(value))] if value else []
    )


def translate(case):
    """The options of `vmfence-ref inspect` for a case, and the settings that have no counterpart."""
    options, unknown = [], []

    def take(name, value):
        if name == "action-order":
            options.extend(["--action-order", ",".join(value)])
        elif name in FILES and os.path.exists(case.expand(str(value))):
            options.extend([FILES[name], case.expand(str(value))])
        elif name.startswith("vars.address-groups.") or name.startswith("vars.port-groups."):
            options.extend(["--var", "%s=%s" % (name.rsplit(".", 1)[1], case.expand(str(value)))])
        elif name in TABLE:
            for key, text in TABLE[name](value, case):
                options.extend(["--set", "%s=%s" % (key, text)])
        else:
            unknown.append("%s=%s" % (name, value))

    for name, value in sorted(flatten(case.effective.get("yaml", {}))):
        take(name, value)
    for name, value in sorted({**case.options.get("set", {}), **case.effective.get("set", {})}.items()):
        take(name, value)
    # What Suricata does where a case says nothing: inline, exceptions drop; its own configuration file says windows for all hosts.
    if case.options.get("simulate_ips") and not any(o.startswith("exception-policy=") for o in options):
        options.extend(["--set", "exception-policy=auto"])
    if str(case.effective.get("host_os_policy", "")).startswith("windows"):
        options.extend(["--set", "host-os-policy.default=windows"])
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
}


def flatten(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, prefix + name + ".")
        else:
            yield prefix + name, value
