"""The scripted steps of a recorded stream, and the events that must tell them.

Where each step is synced, every step must be told by its own kind of event, at its place in the stream, and nothing
else. Otherwise the guest's kernel puts many steps into one transaction, so that what is told is the difference between
two commits: a file that is made and renamed is created under its last name, one that is made and deleted is not told at
all. Then every path that differs between the first and the last state must be told of, and no other."""
import json
import posixpath

# What each kind of step is told as; the path is that of `path`, or of `to`.
KINDS = {
    "create": [("create", "path")], "append": [("append", "path")], "log-append": [("append", "path")],
    "overwrite-inplace": [("write", "path")], "overwrite-fsync": [("write", "path")], "mmap-write": [("write", "path")],
    "o_direct-write": [("write", "path")], "write-in-fallocated": [("write|append", "path")], "punch-hole": [("write", "path")],
    "chmod": [("chmod", "path")], "chown": [("chown", "path")], "utime": [("times", "path")],
    "rename-same-dir": [("rename", "to")], "rename-across": [("rename", "to")], "rename-dir": [("rename", "to")],
    "rename-exchange": [("rename", "path"), ("rename", "to")], "atomic-replace": [("replace", "path")],
    "atomic-replace-nofsync": [("replace", "path")], "dpkg-replace": [("replace", "path")],
    "delete-recreate-same-name": [("replace", "path")], "truncate-down": [("truncate", "path")],
    "truncate-up": [("truncate", "path")], "hardlink": [("link", "to")], "symlink": [("create", "path")],
    "mkdir": [("create", "path")], "create-in-newdir": [("create", "path")], "setxattr": [("xattr", "path")],
    "delete": [("unlink", "path")], "create-reuse-inode": [("create", "path")], "log-create": [("create", "path")],
    "logrotate": [("rename", "to"), ("create", "path")], "big-write": [("create", "path")],
    "fallocate": [("create", "path")], "sparse-write": [("create", "path")],
    "ex-create": [("create", "path"), ("create", "to")], "rmdir": [("rmdir", "path")],
    "many-creates": [("create", "below")], "many-deletes": [("unlink", "below")], "evil-name": [("create", "below")],
    "open-unlink-write": [], "read": [],
}
# Changes that may come beside the one that the step is about: of contents and times of the same file.
BESIDE = {"write", "times", "append", "truncate", "create", "chmod", "chown", "link", "unlink"}


def parse(lines):
    """[(step, first request of it)], in order."""
    steps, requests = [], 0
    for line in lines:
        record = json.loads(line)
        if record["op"] != "mark":
            requests += 1
        elif record["ev"] in ("begin", "finish"):
            steps.append((record, requests))
    return steps


def name(event):
    return event["path"].encode("utf-8", "surrogatepass")


def is_told(operation, where, step, events):
    for event in events:
        if event["operation"] not in operation.split("|"):
            continue
        if where == "below":
            if event["path"].startswith(step["path"] + "/"):
                return True
        elif event["path"] == step[where]:
            if operation in ("write", "append") and step.get("off") is not None and "offset" in event:
                first, length = step["off"], step.get("len", 0)
                if not first <= event["offset"] <= event["offset"] + event["length"] <= first + max(length, 1):
                    continue
            return True
    return False


def is_about(event, step):
    """Whether an event concerns what the step touches."""
    inodes = {step.get(key) for key in ("path_ino_before", "path_ino_after", "to_ino_before", "to_ino_after")}
    if event["inode"] in inodes:
        return True
    for key in ("path", "to"):
        path = step.get(key)
        if path and (event["path"] == path or event["path"].startswith(path + "/")
                     or posixpath.dirname(event["path"]) == posixpath.dirname(path)):
            return True
    return False


def judge_synced(lines, events):
    right = total = 0
    problems = []
    steps = parse(lines)
    for (step, first), (_, end) in zip(steps, steps[1:] + [({}, 1 << 60)]):
        if step["ev"] != "begin":
            continue
        total += 1
        inside = [event for event in events if first <= event["request"] < end]
        wanted = KINDS.get(step["kind"])
        if wanted is None:
            problems.append("step %d: unknown kind %s" % (step["n"], step["kind"]))
            continue
        wrong = ["no %s of %s" % (operation, step.get(where, step["path"]))
                 for operation, where in wanted if not is_told(operation, where, step, inside)]
        kinds = {operation for operations, _ in wanted for operation in operations.split("|")}
        for event in inside:
            if not is_about(event, step) or event["operation"] not in kinds | BESIDE:
                wrong.append("%s of %s is not part of it" % (event["operation"], event["path"]))
        if wrong:
            problems.append("step %d %s: %s" % (step["n"], step["kind"], "; ".join(wrong[:4])))
        else:
            right += 1
    return right, total, problems


def by_path(truth):
    found = {}
    for file in truth["files"]:
        path = bytes.fromhex(file["path_hex"]).decode("utf-8", "replace") if "path_hex" in file else file["path"]
        found[path] = (file["ino"], file["mode"], file["uid"], file["gid"], file["size"], file.get("sha256"),
                       file.get("link"), json.dumps(file.get("xattr_hex", {}), sort_keys=True))
    return found


def judge_lazy(lines, events, before, after):
    old, new = by_path(before), by_path(after)
    directories = {file["path"] for truth in (before, after) for file in truth["files"] if file["mode"].startswith("4")}
    changed = {path for path in set(old) | set(new)
               if old.get(path) != new.get(path) and not (path in directories and path in old and path in new)}
    # What is below a directory that was renamed is told with the directory.
    told = {path.encode("utf-8", "replace").decode() for event in events
            for path in (event["path"], event.get("old_path", event["path"]))}
    problems, right = [], 0
    for path in sorted(changed):
        parents = {path[:index] for index, letter in enumerate(path) if letter == "/" and index}
        if path in told or parents & told & directories:
            right += 1
        else:
            problems.append("nothing tells of %r" % path)
    touched = [step for step, _ in parse(lines) if step["ev"] == "begin"]
    for event in events:
        if event["operation"] in ("gap", "damage") or not any(is_about(event, step) for step in touched):
            problems.append("%s of %s is no step" % (event["operation"], event["path"]))
    return right if not problems else right - 1, len(changed), problems


def judge(lines, events, stem, before, after):
    """(right, all, problems): of steps where each is synced, of changed paths otherwise."""
    if stem.endswith("-sync"):
        return judge_synced(lines, events)
    return judge_lazy(lines, events, before, after)
