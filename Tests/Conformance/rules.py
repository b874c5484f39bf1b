"""Captures generated rule by rule, with Snort 3's verdict for every flow."""
import collections
import fnmatch
import gzip
import json
import os
import shutil
import subprocess

import engine
import snort3

SECONDS = 900


def expected(suite, name):
    path = os.path.join(suite, "rules", name + ".expected.json.zst")
    return json.loads(subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout)["files"]


def unpacked(options, name):
    """The capture as a plain file in the cache."""
    source = os.path.join(options.suite, "rules", name)
    target = os.path.join(options.cache, "rules", os.path.basename(name)[: -len(".gz")])
    if not os.path.exists(target) or os.path.getmtime(target) < os.path.getmtime(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with gzip.open(source) as packed, open(target + ".part", "wb") as plain:
            shutil.copyfileobj(packed, plain)
        os.replace(target + ".part", target)
    return target


def found_by_ends(run):
    """{unordered pair of addresses: Counter of sids}"""
    found = collections.defaultdict(collections.Counter)
    for event in run.events:
        if event.get("event_type") == "alert" and event["alert"]["gid"] == 1:
            found[frozenset((event["src_ip"], event["dest_ip"]))][event["alert"]["signature_id"]] += 1
    return found


def compare(options, label, rules, home, files):
    """`files`: {capture: [(addresses, variant, Counter of sids)]}; compares the sets of sids per flow."""
    names = sorted(files)
    if options.only:
        names = [name for name in names if fnmatch.fnmatch(name, options.only) or options.only in name]

    def one(name):
        return engine.inspect(
            options.engine, ["--dialect", "snort3"] + snort3.variables(home) + ["--set", "stream.midstream=yes"]
            + ["--rules", rules, "--capture", unpacked(options, name)], SECONDS)

    right, same, total, alerting, found_alerting = 0, 0, 0, 0, 0
    problems, missing, extra, variants = {}, collections.Counter(), collections.Counter(), collections.Counter()
    for name, run in zip(names, engine.every(names, one)):
        if run.problem:
            print("FAIL %s %s: %s" % (label, name, run.problem))
        found = found_by_ends(run)
        for ends, variant, sids in files[name]:
            ours = found.get(ends, collections.Counter())
            total += 1
            right += set(ours) == set(sids)
            alerting += bool(sids)
            found_alerting += bool(sids) and set(ours) == set(sids)
            same += ours == sids
            if set(ours) == set(sids):
                continue
            variants[variant.split(":")[0]] += 1
            missing.update(set(sids) - set(ours))
            extra.update(set(ours) - set(sids))
            problems["%s %s %s %s" % (label, name, "-".join(sorted(ends)), variant)] = [
                "missing %s" % sorted(set(sids) - set(ours)), "extra %s" % sorted(set(ours) - set(sids))]
    print("%s: wrong flows by variant: %s" % (label, dict(variants.most_common(30))))
    print("%s: missing most: %s" % (label, missing.most_common(30)))
    print("%s: extra most: %s" % (label, extra.most_common(30)))
    score = {
        "%s flows" % label: [right, total], "%s flows that alert" % label: [found_alerting, alerting],
        "%s flows with equal counts" % label: [same, total]}
    return score, problems


def run(options):
    rules_folder = snort3.unpack(
        os.path.join(options.suite, "snort3", "rules.tar.zst"), os.path.join(options.cache, "snort3-rules"))
    score, problems = {}, {}
    community = expected(options.suite, "community")
    with open(os.path.join(options.suite, "rules", "community.unstable.json"), encoding="utf-8") as file:
        unstable = {(name.split("/")[-1], sid, variant) for name, sid, variant, _ in json.load(file)["flows"]}

    def is_stable(name, flow):
        return (name.split("/")[-1], flow["sid"], flow["variant"]) not in unstable

    with open(os.path.join(options.suite, "rules", "community.packet-only.given.json"), encoding="utf-8") as file:
        given = json.load(file)["files"]
    for configuration in ("stream_only", "default"):
        files = {}
        for name, verdicts in given.items():
            capture = "captures/" + name.split("/")[-1]
            sids = collections.defaultdict(collections.Counter)
            for index, sid, count in verdicts[configuration]:
                sids[index][sid] = count
            files[capture] = [
                (frozenset((flow["flow"][1], flow["flow"][3])), flow["variant"], sids[index])
                for index, flow in enumerate(community[capture]) if is_stable(name, flow)]
        found, wrong = compare(
            options, "packet-only (%s)" % configuration, os.path.join(options.suite, "rules", "packet-only.rules"),
            "any", files)
        score.update(found)
        problems.update(wrong)
    if options.quick:
        return score, problems
    for name in ("community", "et2021"):
        verdicts = community if name == "community" else expected(options.suite, name)
        files = {
            capture: [
                (frozenset((flow["flow"][1], flow["flow"][3])), flow["variant"],
                 collections.Counter({alert["sid"]: alert["count"] for alert in flow["alerts"]}))
                for flow in flows if is_stable(capture, flow)]
            for capture, flows in verdicts.items()}
        file, home = snort3.SETS[name]
        found, wrong = compare(options, name, os.path.join(rules_folder, file), home, files)
        score.update(found)
        problems.update(wrong)
    return score, problems
