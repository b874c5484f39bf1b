"""What Snort 3 says of captures made by others: the (rule, endpoints) pairs of whole rule sets."""
import collections
import fnmatch
import ipaddress
import json
import os
import re
import subprocess

import engine

SECONDS = 900
# Rules, and what is home: for et2021 the private networks (only servers there are told of in what Snort said).
SETS = {
    "community": ("community.rules", "any"),
    "et2021": ("et2021-snort3.rules", "[10.0.0.0/8,172.16.0.0/12,192.168.0.0/16]"),
}
# Captures that one run takes: loading the rules costs more than inspecting most of them.
CHUNK = 100
PORTS = {"TCP", "UDP", "SCTP"}

# Options that only an application layer, or knowing the service, can answer.
APPLICATION = re.compile(
    r"[(;]\s*(http_\w+|http2_\w+|file_data|file_type|file_meta|js_data|vba_data|ssl_\w+|sip_\w+|dce_\w+|dnp3_\w+|modbus_\w+"
    r"|cip_\w+|enip_\w+|gtp_\w+|iec104_\w+|mms_\w+|s7commplus_\w+|opcua_\w+|socks_\w+|service|appids|cvs|ber_\w+"
    r"|pkt_data\b(?=.*http_))\b")


def rule_sids(path):
    """{sid: whether it needs an application layer} of a rule file with a rule in each line."""
    found = {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            sid = re.search(r"[(;]\s*sid:\s*(\d+)", line)
            if sid and not line.lstrip().startswith("#"):
                head = line.split("(", 1)[0].split()
                service = len(head) < 7 or head[1] not in ("ip", "tcp", "udp", "icmp")
                found[int(sid.group(1))] = service or bool(APPLICATION.search(line))
    return found


def variables(home):
    """The networks and ports that Snort 3's own defaults name. Snort takes connections up in midstream, too."""
    values = {"HOME_NET": home, "EXTERNAL_NET": "any"}
    for name in "HTTP SMTP SQL TELNET DNS SSH FTP SIP".split():
        values[name + "_SERVERS"] = "$HOME_NET"
    values["AIM_SERVERS"] = "any"
    values["HTTP_PORTS"] = (
        "[80,81,311,383,591,593,901,1220,1414,1830,2301,2381,2809,3037,3128,3702,4343,4848,5250,6988,7000,7001,7144,7145,"
        "7510,7777,7779,8000,8008,8014,8028,8080,8085,8088,8090,8118,8123,8180,8181,8243,8280,8300,8800,8888,8899,9000,"
        "9060,9080,9090,9091,9443,9999,11371,34443,34444,41080,50002,55555]"
    )
    values.update({
        "SHELLCODE_PORTS": "!80", "ORACLE_PORTS": "1024:", "SSH_PORTS": "22", "FTP_PORTS": "[21,2100,3535]",
        "SIP_PORTS": "[5060,5061,5600]", "FILE_DATA_PORTS": "[$HTTP_PORTS,110,143]",
    })
    return [text for name, value in values.items() for text in ("--var", name + "=" + value)]


def unpack(archive, folder):
    """Unpacks once; the mark is written last."""
    mark = os.path.join(folder, ".unpacked-%d" % os.path.getsize(archive))
    if not os.path.exists(mark):
        os.makedirs(folder, exist_ok=True)
        subprocess.run(["tar", "--zstd", "-xf", archive, "-C", folder], check=True)
        open(mark, "w").close()
    return folder


def address(text):
    """In one notation: IPv6 addresses come in several."""
    return str(ipaddress.ip_address(text))


def pair(alert):
    source = (address(alert["src_ip"]), alert.get("src_port", 0))
    destination = (address(alert["dest_ip"]), alert.get("dest_port", 0))
    return alert["alert"]["gid"], alert["alert"]["signature_id"], frozenset((source, destination))


def by_capture(run):
    found = collections.defaultdict(set)
    for event in run.events:
        if event.get("event_type") == "alert":
            found[event["pcap_filename"]].add(pair(event))
    return found


def wanted(alerts):
    """Snort's alerts in the same form; only what rules say: its own decoders and inspectors have other generators."""
    return {
        (alert["gid"], alert["sid"], frozenset(
            ((address(alert["src"]), alert["sport"] if alert["proto"] in PORTS else 0),
             (address(alert["dst"]), alert["dport"] if alert["proto"] in PORTS else 0))))
        for alert in alerts if alert["gid"] == 1}


def compare(options, name, captures_folder, rules_folder):
    rules, home = SETS[name]
    rules = os.path.join(rules_folder, rules)
    needs_application = rule_sids(rules)
    with open(os.path.join(options.suite, "snort3", name + ".expected.json"), encoding="utf-8") as file:
        expected = json.load(file)["captures"]
    captures = sorted(expected)
    if options.only:
        captures = [capture for capture in captures if fnmatch.fnmatch(capture, options.only) or options.only in capture]
    if options.quick:
        captures = [capture for capture in captures if expected[capture]]
    chunks = [captures[start:start + CHUNK] for start in range(0, len(captures), CHUNK)]

    def one(chunk):
        paths = [os.path.join(captures_folder, capture) for capture in chunk]
        return engine.inspect(
            options.engine, ["--dialect", "snort3", "--separate", "--ignore-checksums", "--set", "stream.midstream=yes"] + variables(home)
            + ["--rules", rules, "--capture"] + paths, SECONDS)

    counts, problems, differences = collections.Counter(), {}, collections.Counter()
    for chunk, run in zip(chunks, engine.every(chunks, one)):
        if run.problem:
            print("FAIL %s: %s … : %s" % (name, chunk[0], run.problem))
        found = by_capture(run)
        for capture in chunk:
            right = wanted(expected[capture])
            ours = found.get(os.path.join(captures_folder, capture), set())
            wrong = []
            for alert in right | ours:
                kind = "pairs of other rules" if needs_application.get(alert[1], True) else "pairs of packet rules"
                counts[kind, "all"] += 1
                counts[kind, "right"] += alert in right and alert in ours
                if alert not in right or alert not in ours:
                    side = "missing" if alert in right else "extra"
                    differences[side, alert[1], kind] += 1
                    if not needs_application.get(alert[1], True):
                        wrong.append("%s %d %s" % (side, alert[1], sorted(alert[2])))
            counts["captures right in packet rules", "all"] += 1
            counts["captures right in packet rules", "right"] += not wrong
            if wrong:
                problems["%s/%s" % (name, capture)] = wrong[:20]
    for (side, sid, kind), count in sorted(differences.items(), key=lambda item: -item[1]):
        if options.verbose or kind == "pairs of packet rules":
            print("%s %s %d (%s): %d" % (name, side, sid, kind, count))
    kinds = sorted({kind for kind, _ in counts})
    return {"%s %s" % (name, kind): [counts[kind, "right"], counts[kind, "all"]] for kind in kinds}, problems


def run(options):
    folder = os.path.join(options.suite, "snort3")
    captures = unpack(os.path.join(folder, "captures.tar.zst"), os.path.join(options.cache, "snort3-captures"))
    rules = unpack(os.path.join(folder, "rules.tar.zst"), os.path.join(options.cache, "snort3-rules"))
    score, problems = {}, {}
    for name, (file, home) in SETS.items():
        path = os.path.join(rules, file)
        errors = engine.check_rules(options.engine, [path], ["--dialect", "snort3"] + variables(home))[path]
        for error in errors[:10]:
            print("PARSE %s: %s" % (file, error))
        all_rules = len(rule_sids(path))
        score[name + " rules parsed"] = [all_rules - min(all_rules, len(errors)), all_rules]
        found, wrong = compare(options, name, captures, rules)
        score.update(found)
        problems.update(wrong)
    return score, problems
