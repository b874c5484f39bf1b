"""What the kernel and debugfs say of disk images, recorded streams and hostile images, against what the integrity
monitor says of them."""
import json
import os
import subprocess
import tempfile
import time

import steps

SECONDS = 60
HOSTILE_SECONDS = 1.0
HOSTILE_BYTES = 64 << 20


def unpack(archive, folder):
    """Unpacks once; the mark is written last."""
    mark = os.path.join(folder, ".unpacked-%d" % os.path.getsize(archive))
    if not os.path.exists(mark):
        os.makedirs(folder, exist_ok=True)
        subprocess.run(["tar", "--sparse", "--zstd", "-xf", archive, "-C", folder], check=True)
        open(mark, "w").close()
    return folder


def folder(options, name):
    """The folder of one part of the suite: as named, or unpacked from the archive."""
    if getattr(options, name):
        return getattr(options, name)
    if options.images or options.traces or options.hostile:
        return None
    archive = os.path.join(options.suite, "disk", name + ".tar.zst")
    return unpack(archive, os.path.join(options.cache, name)) if os.path.exists(archive) else None


class Listing:
    """A listing of an image, as `integrity list` writes it."""

    def __init__(self, lines):
        self.files, self.damages, self.extents = {}, [], {}
        for line in lines:
            record = json.loads(line)
            if record["record"] == "file":
                name = bytes.fromhex(record["path_hex"]) if "path_hex" in record else record["path"].encode()
                self.files[record.get("partition", 0), name] = record
                self.extents[record.get("partition", 0), record["inode"]] = record.get("extents", [])
            elif record["record"] == "damage":
                self.damages.append(record["message"])


class Command:
    """One run of `vmfence-ref`, with its time and memory."""

    def __init__(self, engine, arguments, output=None):
        started = time.monotonic()
        with tempfile.TemporaryFile() as errors, (open(output, "wb") if output else tempfile.TemporaryFile()) as out:
            process = subprocess.Popen(
                [engine, "integrity"] + arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
            deadline = started + SECONDS
            self.timed_out = False
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > deadline and not self.timed_out:
                    self.timed_out = True
                    process.kill()
                time.sleep(0.002)
            process.returncode = os.waitstatus_to_exitcode(status)
            errors.seek(0)
            self.errors = errors.read(100_000).decode("utf-8", "replace")
        self.status = process.returncode
        self.seconds = usage.ru_utime + usage.ru_stime
        self.bytes = usage.ru_maxrss * 1024

    @property
    def crashed(self):
        if self.timed_out:
            return "did not end within %d s" % SECONDS
        return "ended by signal %d" % -self.status if self.status < 0 else None


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


# MARK: Images

def joined(extents):
    """Extents (file, disk, length, unwritten) with neighbours joined: the kernel splits them at its own will."""
    result = []
    for file, disk, length, unwritten in sorted(extents):
        if result:
            last = result[-1]
            if last[0] + last[2] == file and last[1] + last[2] == disk and last[3] == unwritten:
                last[2] += length
                continue
        result.append([file, disk, length, unwritten])
    return result


def differences(expected, found):
    """How a listed file differs from the truth, as texts."""
    result = []

    def compare(what, right, is_there):
        if right != is_there:
            result.append("%s %r, not %r" % (what, is_there, right))

    for key, name in (("ino", "inode"), ("uid", "uid"), ("gid", "gid"), ("nlink", "links"), ("size", "size"),
                      ("mtime_ns", "mtime_ns"), ("blocks512", "blocks512")):
        compare(name, expected[key], found[name])
    compare("mode", int(expected["mode"], 8), int(found["mode"], 8))
    if "rdev" in expected:
        compare("device", expected["rdev"], found.get("device"))
    if "link" in expected:
        compare("target", expected["link"], found.get("target"))
    compare("xattrs", expected.get("xattr_hex", {}), found.get("xattrs", {}))
    if "sha256" in expected:
        compare("sha256", expected["sha256"], found.get("sha256"))
    if "fiemap" in expected:
        truth = joined([e[0], e[1], e[2], bool(e[3] & 0x800)] for e in expected["fiemap"])
        own = joined([e["file"], e["disk"], e["length"], e.get("unwritten", False)] for e in found.get("extents", []))
        compare("extents", truth, own)
    return result


def compare_listing(listing, truth, partition=0):
    """(files right, files, problems) of one file system."""
    problems, right = [], 0
    seen = set()
    for file in truth["files"]:
        name = bytes.fromhex(file["path_hex"]) if "path_hex" in file else file["path"].encode()
        seen.add(name)
        found = listing.files.get((partition, name))
        wrong = ["is missing"] if found is None else differences(file, found)
        if wrong:
            problems.append("%s: %s" % (file["path"], "; ".join(wrong)[:300]))
        else:
            right += 1
    total = len(truth["files"])
    if total:
        for _, name in set(listing.files) - {(partition, name) for name in seen}:
            if not any(file.get("list_error") and name.startswith(file["path"].encode()) for file in truth["files"]):
                problems.append("%r is not there" % name)
    else:
        # The kernel of the truth could not mount it: what debugfs says of the blocks is left.
        for number, inode in truth.get("debugfs", {}).items():
            if (partition, int(number)) in listing.extents and listing.extents[partition, int(number)]:
                total += 1
                expected = debugfs_blocks(inode.get("extents", []))
                size = truth["block_size"]
                own = [b for e in listing.extents[partition, int(number)]
                       for b in range(e["disk"] // size, (e["disk"] + e["length"]) // size)]
                if sorted(own) == sorted(expected):
                    right += 1
                else:
                    problems.append("inode %s: blocks %r, not %r" % (number, own[:8], expected[:8]))
    return right, total, problems


def debugfs_blocks(extents):
    blocks = []
    for text in extents:
        place, _, range_ = text.partition("):")
        if not place.startswith("(") or not place[1:2].isdigit():
            continue
        first, _, last = range_.partition("-")
        blocks += range(int(first), int(last or first) + 1)
    return blocks


def run_images(options, path):
    right_images = total_images = right = total = 0
    problems = []
    for name in sorted(os.listdir(path)):
        if not name.endswith(".img") or (options.only and options.only not in name):
            continue
        total_images += 1
        with tempfile.NamedTemporaryFile() as out:
            command = Command(options.engine, ["list", "--json", os.path.join(path, name)], out.name)
            listing = Listing(read_lines(out.name)) if not command.crashed else None
        truth_path = os.path.join(path, "truth", name[:-4] + ".json")
        wrong = []
        if listing is None:
            wrong = [command.crashed]
        elif os.path.exists(truth_path):
            with open(truth_path, encoding="utf-8") as file:
                truth = json.load(file)
            if name.endswith("-journal-dirty.img"):
                # The truth was read without the journal; a committed transaction in it makes /etc/passwd 0666.
                changed = next(file["ino"] for file in truth["files"] if file["path"] == "/etc/passwd")
                for file in truth["files"]:
                    if file["ino"] == changed:
                        file["mode"] = "100666"
            image_right, image_total, wrong = compare_listing(listing, truth)
            right, total = right + image_right, total + image_total
        elif not listing.files:
            wrong = ["nothing was listed: " + command.errors[:200]]
        # A backup table in use is told; nothing else of these images is damaged.
        if listing and any("backup is used" not in text for text in listing.damages):
            wrong.append("damage: %s" % listing.damages[:3])
        if wrong:
            problems += ["images/%s: %s" % (name, text) for text in wrong]
        else:
            right_images += 1
    return {"images": [right_images, total_images], "files of images": [right, total]}, problems


# MARK: Recorded streams

def run_traces(options, path, images):
    views = views_total = right = total = 0
    problems = []
    for name in sorted(os.listdir(path)):
        if not name.endswith(".jsonl") or (options.only and options.only not in name):
            continue
        stem = name[:-len(".jsonl")]
        base = os.path.join(images, stem.rpartition("-")[0] + ".img")
        views_total += 1
        with tempfile.TemporaryDirectory() as temporary:
            eve, listed = os.path.join(temporary, "eve"), os.path.join(temporary, "list")
            command = Command(options.engine, [
                "replay", "--image", base, "--trace", os.path.join(path, name), "--protect", "/", "/**", "--eve", eve,
                "--list", listed, "--verify"])
            if command.crashed or not os.path.exists(listed):
                problems.append("traces/%s: %s" % (stem, command.crashed or command.errors[:300]))
                continue
            events = [json.loads(line)["vmfence"]["file"] for line in read_lines(eve)]
            listing = Listing(read_lines(listed))
        with open(os.path.join(path, stem + ".truth.json"), encoding="utf-8") as file:
            after = json.load(file)
        _, _, wrong = compare_listing(listing, after)
        if command.status != 0:
            wrong.append("exit %d: %s" % (command.status, command.errors[-300:]))
        wrong += ["damage: " + text for text in listing.damages]
        views += 0 if wrong else 1
        problems += ["traces/%s: %s" % (stem, text) for text in wrong]
        truth = os.path.join(images, "truth", os.path.basename(base)[:-4] + ".json")
        before = {"files": []}
        if os.path.exists(truth):
            with open(truth, encoding="utf-8") as file:
                before = json.load(file)
        trace_right, trace_total, wrong = steps.judge(read_lines(os.path.join(path, name)), events, stem, before, after)
        right, total = right + trace_right, total + trace_total
        problems += ["traces/%s: %s" % (stem, text) for text in wrong]
    return {"views after traces": [views, views_total], "steps and changes of traces": [right, total]}, problems


# MARK: Hostile images

# Damage that is none: what is to be seen in the listing instead.
def expectation(name, listing, truth):
    paths = {path.decode("utf-8", "replace") for _, path in listing.files}
    if name == "links-0":
        return None if any(f["links"] == 0 for f in listing.files.values()) else "the file without links is not listed"
    if name == "dirent-ftype-lies":
        return None if len(paths) > 5 else "the rest is not listed"
    if name == "cross-link-protected":
        return None
    if name == "dir-two-parents":
        return None if listing.damages or len(paths) > 10 else "neither both paths nor a report"
    if name.startswith("name-") and name not in ("name-slash", "name-dot", "name-dotdot", "name-dup-shadow"):
        return None if len(paths) > 5 else "the names are not listed"
    return None if listing.damages else "no damage was reported"


def hostile_trace(image, folder):
    """A guest that writes the beginning of its disk back, then flushes, as a recorded stream."""
    path = os.path.join(folder, "trace.jsonl")
    with open(image, "rb") as file:
        data = file.read(1 << 18)
    data = data[:len(data) // 4096 * 4096]
    with open(os.path.join(folder, "trace.bin"), "wb") as file:
        file.write(data)
    with open(path, "w", encoding="utf-8") as file:
        sequence = 0
        for offset in range(0, len(data), 4096):
            file.write(json.dumps({"seq": sequence, "t_ns": sequence * 1000, "op": "write", "off": offset, "len": 4096,
                                   "fua": False, "pos": offset}) + "\n")
            sequence += 1
        file.write(json.dumps({"seq": sequence, "t_ns": sequence * 1000, "op": "flush", "off": 0, "len": 0,
                               "fua": False}) + "\n")
    return path, len(data) // 4096 + 1


def run_hostile(options, path):
    right = total = 0
    problems, slowest, largest = [], 0, 0
    truth = {}
    for candidate in (os.path.join(path, "hostile.json"), os.path.join(options.suite, "disk", "hostile.json")):
        if os.path.exists(candidate):
            with open(candidate, encoding="utf-8") as file:
                truth = json.load(file)
            break
    for name in sorted(os.listdir(path)):
        if not name.endswith(".img") or (options.only and options.only not in name):
            continue
        total += 1
        wrong = []
        image = os.path.join(path, name)
        with tempfile.TemporaryDirectory() as temporary:
            out, eve = os.path.join(temporary, "out"), os.path.join(temporary, "eve")
            listed = Command(options.engine, ["list", "--json", image], out)
            trace, requests = hostile_trace(image, temporary)
            watched = Command(options.engine, [
                "replay", "--image", image, "--trace", trace, "--protect", "/", "/**", "--eve", eve])
            for what, command in (("list", listed), ("replay", watched)):
                slowest, largest = max(slowest, command.seconds), max(largest, command.bytes)
                if command.crashed:
                    wrong.append("%s %s" % (what, command.crashed))
                if command.seconds > HOSTILE_SECONDS:
                    wrong.append("%s took %.2f s" % (what, command.seconds))
                if command.bytes > HOSTILE_BYTES:
                    wrong.append("%s took %d MiB" % (what, command.bytes >> 20))
            if not listed.crashed:
                text = expectation(name[:-4], Listing(read_lines(out)), truth.get(name[:-4]))
                if text:
                    wrong.append(text)
            if not watched.crashed and "requests: %d," % requests not in watched.errors:
                wrong.append("not every request was served: " + watched.errors[:200])
        if wrong:
            problems += ["hostile/%s: %s" % (name, text) for text in wrong]
        else:
            right += 1
    print("hostile images: at most %.2f s and %d MiB each" % (slowest, largest >> 20))
    return {"hostile images": [right, total]}, problems


def run(options):
    options.cache = os.path.join(options.cache, "disk")
    score, problems = {}, []
    images = folder(options, "images")
    traces, hostile = folder(options, "traces"), folder(options, "hostile")
    parts = []
    if images:
        parts.append(run_images(options, images))
    if traces:
        base = images or os.path.join(options.cache, "images")
        parts.append(run_traces(options, traces, base))
    if hostile:
        parts.append(run_hostile(options, hostile))
    for part_score, part_problems in parts:
        score.update(part_score)
        problems += part_problems
    for text in problems[:None if options.verbose else 40]:
        print("  " + text)
    return score, problems
