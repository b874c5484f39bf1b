"""Runs `vmfence-ref` on cases: in parallel, each with a time limit."""
import concurrent.futures
import json
import os
import re
import subprocess
import tempfile


class Run:
    """What one run gave."""

    def __init__(self, status, events, errors, timed_out=False):
        self.status, self.events, self.errors, self.timed_out = status, events, errors, timed_out

    @property
    def problem(self):
        """Why the run counts for nothing, or None."""
        if self.timed_out:
            return "exceeded its time"
        if self.status < 0:
            return "ended by signal %d" % -self.status
        if self.status != 0:
            lines = [line for line in self.errors.splitlines() if "error:" in line or line.startswith("Error")]
            return "exit %d: %s" % (self.status, (lines or self.errors.splitlines() or [""])[-1][:300])
        return None

    @property
    def unsupported(self):
        return [line for line in self.errors.splitlines() if "not supported yet" in line]


def inspect(engine, options, seconds):
    """Runs `inspect` with `options`, and reads the events that it wrote."""
    with tempfile.TemporaryDirectory(prefix="vmfence-conformance-") as folder:
        events = os.path.join(folder, "eve.json")
        command = [engine, "inspect", "--eve", events] + options
        with open(os.path.join(folder, "errors"), "w+b") as errors:
            try:
                status = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, timeout=seconds,
                ).returncode
                timed_out = False
            except subprocess.TimeoutExpired:
                status, timed_out = 1, True
            errors.seek(0)
            text = errors.read(4_000_000).decode("utf-8", "replace")
        found = []
        if os.path.exists(events):
            with open(events, encoding="utf-8") as file:
                for line in file:
                    try:
                        found.append(json.loads(line))
                    except json.JSONDecodeError:
                        if not timed_out and status >= 0:
                            raise
        return Run(status, found, text, timed_out)


def every(items, body, jobs=None):
    """`body` of each item, in parallel; the results in the items' order."""
    with concurrent.futures.ThreadPoolExecutor(jobs or os.cpu_count() or 2) as pool:
        return list(pool.map(body, items))


def check_rules(engine, files, options, seconds=120):
    """Parses rule files: {file: [errors]}; a rule that is not supported yet is no error."""
    found = {file: [] for file in files}
    for start in range(0, len(files), 50):
        part = files[start:start + 50]
        try:
            output = subprocess.run(
                [engine, "check"] + part + options, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            for file in part:
                found[file].append("exceeded its time")
            continue
        if output.returncode < 0:
            for file in part:
                found[file].append("ended by signal %d" % -output.returncode)
        for line in output.stdout.decode("utf-8", "replace").splitlines():
            match = re.match(r"(.*?\.rules)(?::(\d+))?(?::\d+)?: error: (.*)", line)
            if match and match.group(1) in found and "not supported yet" not in line:
                found[match.group(1)].append("line %s: %s" % (match.group(2), match.group(3)))
    return found
