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
}


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
