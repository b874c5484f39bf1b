"""Runs one suite, prints its score, writes it as JSON, and compares it with the baseline. See scripts/conformance."""
import argparse
import json
import os
import sys
import time

import disk
import network
import rules
import snort3

SUITES = {"network": network, "snort3": snort3, "rules": rules, "disk": disk}


def arguments():
    parser = argparse.ArgumentParser(prog="conformance")
    parser.add_argument("which", choices=SUITES)
    parser.add_argument("--root", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--suite", default=os.environ.get("VMFENCE_CONFORMANCE"), help="the folder with all suites")
    parser.add_argument("--cases", help="another cases file of the network suite's form")
    parser.add_argument("--files", help="the folder that its paths start from")
    for part in ("images", "traces", "hostile"):
        parser.add_argument("--" + part, help="disk: another folder of " + part)
    parser.add_argument("--only", help="part of a name, or a pattern with *")
    parser.add_argument("--json", help="where to write the score and what failed")
    parser.add_argument("--quick", action="store_true", help="leave out what takes minutes")
    parser.add_argument("--verbose", "-v", action="store_true", help="list failures of all families")
    parser.add_argument("--raise", dest="raise_baseline", action="store_true", help="write the score into the baseline")
    parser.add_argument("--engine", help="a vmfence-ref that is built already")
    return parser.parse_args()


def below(score, baseline):
    """What the score lacks of the baseline, as texts."""
    return [
        "%s: %d, at least %d expected" % (name, score[name][0], least)
        for name, least in baseline.items() if name in score and score[name][0] < least]


def main():
    options = arguments()
    options.engine = options.engine or os.path.join(options.root, ".build", "release", "vmfence-ref")
    options.suite = options.suite or os.path.join(os.path.dirname(os.path.abspath(options.root)), "shared", "conformance")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    options.cache = os.path.join(cache, "vmfence-conformance")
    needed = options.cases or options.images or options.traces or options.hostile or os.path.join(options.suite, options.which)
    if not os.path.exists(needed):
        print("conformance: the suite is not there: %s (name its folder with --suite DIR)" % needed, file=sys.stderr)
        return 1 if os.environ.get("CI") or options.cases else 0
    started = time.monotonic()
    score, problems = SUITES[options.which].run(options)
    width = max(len(name) for name in score)
    for name, (right, total) in score.items():
        print("%-*s %6d of %6d" % (width, name, right, total))
    print("%s: %.0f s" % (options.which, time.monotonic() - started))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"suite": options.which, "score": score, "failed": problems}, file, indent=1, sort_keys=True)
    if options.only or options.cases or options.images or options.traces or options.hostile:
        return 0
    path = os.path.join(options.root, "Tests", "Conformance", "baseline.json")
    with open(path, encoding="utf-8") as file:
        baseline = json.load(file)
    lost = below(score, baseline.get(options.which, {}))
    for text in lost:
        print("conformance: below the baseline: " + text, file=sys.stderr)
    if options.raise_baseline and not lost:
        for name in baseline.get(options.which, {}):
            if name in score:
                baseline[options.which][name] = score[name][0]
        with open(path, "w", encoding="utf-8") as file:
            json.dump(baseline, file, indent=2, sort_keys=True)
            file.write("\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
