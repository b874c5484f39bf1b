"""The suite of captures with expected alerts and drops, from suricata-verify."""
import collections
import fnmatch
import json
import os

import engine
import settings

# The families that the packet, stream and state side answers for; the others need application layers.
CORE = set("abhj")
SECONDS = 120
MISSING = object()


class Case:
    def __init__(self, test, files, variables):
        self.name = test["name"]
        self.primary = test["primary"]
        self.families = test["families"]
        self.expected = test["expected"]
        self.is_evidence = not test.get("negative_only", False)
        self.options = test["options"]
        self.effective = test["effective_config"]
        self.files = files
        self.captures = [os.path.join(files, name) for name in test["pcap"]]
        self.rules = [os.path.join(files, name) for name in test["rules"]]
        self.folder = os.path.dirname(self.rules[0]) if self.rules else files
        self.variables = variables
        self.other = [check for check in test.get("other_checks", []) if "count" in check]

    @property
    def is_core(self):
        return set(self.families) <= CORE

    def expand(self, text):
        return text.replace("${TEST_DIR}", self.folder).replace("${SRCDIR}", self.files)

    def arguments(self):
        """The engine's options, and the settings that it does not know."""
        options, unknown = settings.translate(self)
        arguments = ["--dialect", "suricata", "--packet", "--payload"]
        for name, value in self.variables.items():
            arguments += ["--var", "%s=%s" % (name, value)]
        return arguments + options + ["--rules"] + self.rules + ["--capture"] + self.captures, unknown


def lookup(event, path):
    """The value at a dotted path with [n] indices; MISSING when it is not there."""
    value = event
    for part in path.split("."):
        if part == "__len":
            return len(value) if hasattr(value, "__len__") else -1
        if part.startswith("__"):
            return value
        name, _, index = part.partition("[")
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
        if index:
            number = int(index.rstrip("]"))
            if not isinstance(value, list) or number >= len(value):
                return MISSING
            value = value[number]
    return value


def holds(event, key, wanted):
    if key in ("has-key", "not-has-key"):
        paths = wanted if isinstance(wanted, list) else [wanted]
        return all((lookup(event, path) is not MISSING) == (key == "has-key") for path in paths)
    value = lookup(event, key)
    test = key.rsplit(".", 1)[-1]
    isNumber = isinstance(value, (int, float)) and not isinstance(value, bool)
    if test == "__gt":
        return isNumber and value > wanted
    if test == "__gte":
        return isNumber and value >= wanted
    if test == "__lt":
        return isNumber and value < wanted
    if test == "__lte":
        return isNumber and value <= wanted
    if test in ("__find", "__contains"):
        return value is not MISSING and value is not None and wanted in value
    if test == "__startswith":
        return isinstance(value, str) and value.startswith(wanted)
    if test == "__endswith":
        return isinstance(value, str) and value.endswith(wanted)
    if wanted is None:
        return value is MISSING or value is None
    return value is not MISSING and value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


LIFTED = {
    "sid": "signature_id", "gid": "gid", "rev": "rev", "signature": "signature", "action": "action",
    "severity": "severity", "category": "category",
}


def matches(event, check):
    if check.get("kind") and event.get("event_type") != check["kind"]:
        return False
    alert = event.get("alert", {})
    if any(alert.get(field) != check[name] for name, field in LIFTED.items() if name in check):
        return False
    return all(holds(event, key, wanted) for part in ("match", "app_match") for key, wanted in check.get(part, {}).items())


def judge(case, program):
    """The failed checks of a case as texts; empty when it passes."""
    arguments, unknown = case.arguments()
    run = engine.inspect(program, arguments, SECONDS)
    reasons = []
    for check in case.expected:
        count = sum(matches(event, check) for event in run.events)
        if count != check["count"]:
            what = {name: check[name] for name in check if name not in ("count", "families", "from", "needs_app")}
            reasons.append("%d for %d of %s" % (count, check["count"], json.dumps(what, sort_keys=True)[:300]))
    other = [sum(matches(event, check) for event in run.events) == check["count"] for check in case.other]
    if reasons and run.problem:
        reasons.insert(0, run.problem)
    if reasons and unknown:
        reasons.append("settings without counterpart: " + ", ".join(unknown))
    if reasons and run.unsupported:
        reasons.append(run.unsupported[0][-200:])
    if run.timed_out or run.status < 0:
        reasons = reasons or [run.problem]
    return {"name": case.name, "reasons": reasons, "other": [sum(other), len(other)]}


def run(options):
    cases_file = options.cases or os.path.join(options.suite, "network", "cases.json")
    files = options.files or os.path.join(os.path.dirname(cases_file), "files")
    with open(cases_file, encoding="utf-8") as file:
        document = json.load(file)
    variables = document["meta"]["default_vars"]
    cases = [Case(test, files, variables) for test in document["tests"]]
    if options.only:
        cases = [case for case in cases if fnmatch.fnmatch(case.name, options.only) or options.only in case.name]
    results = engine.every(cases, lambda case: judge(case, options.engine))

    passed, total = collections.Counter(), collections.Counter()
    for case, result in zip(cases, results):
        groups = [case.primary, "all"] + (["core"] if case.is_core else [])
        groups += [group + " (with evidence)" for group in groups if group in ("core", "all") and case.is_evidence]
        for group in groups:
            total[group] += 1
            passed[group] += not result["reasons"]
    shown = [(case, result) for case, result in zip(cases, results) if result["reasons"]]
    if not options.only:
        shown = [(case, result) for case, result in shown if case.is_core or options.verbose]
    for case, result in shown:
        print("FAIL %s [%s] %s" % (case.name, case.families, "; ".join(result["reasons"])))
    other = [sum(result["other"][index] for result in results) for index in (0, 1)]
    print("other checks (flow, stats, anomaly …; not scored): %d of %d" % tuple(other))

    score = {group: [passed[group], total[group]] for group in sorted(total)}
    if not options.only:
        rule_files = sorted({rules for case in cases for rules in case.rules})
        names = [option for name, value in variables.items() for option in ("--var", "%s=%s" % (name, value))]
        errors = engine.check_rules(options.engine, rule_files, ["--dialect", "suricata"] + names)
        for file in rule_files:
            for error in errors[file][:3]:
                print("PARSE %s: %s" % (os.path.relpath(file, files), error))
        score["rule files parsed"] = [sum(not errors[file] for file in rule_files), len(rule_files)]
    return score, {case.name: result["reasons"] for case, result in zip(cases, results) if result["reasons"]}
