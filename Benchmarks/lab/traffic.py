"""Captures to replay, rules to match them with, and servers and clients to measure."""
import json, os, random, re, shutil, struct, subprocess, sys, time

from .bed import GUEST_MAC, OUTSIDE_MAC, ROOT, busy_since, time_of


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data if len(data) % 2 == 0 else data + b"\0"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(source, port, number, protocol, payload):
    """An Ethernet frame to the guest's port and to an address behind it that nobody has, so that nothing answers."""
    target = bytes([10, 77, 0, 77])
    if protocol == 17:
        body = struct.pack("!HHHH", port, 53, 8 + len(payload), 0) + payload
    else:
        body = struct.pack("!HHIIBBHHH", port, 80, number, 1, 0x50, 0x18, 0xFFFF, 0, 0) + payload
        pseudo = source + target + struct.pack("!BBH", 0, 6, len(body))
        whole = pseudo + body + (b"\0" if len(body) % 2 else b"")
        body = body[:16] + struct.pack("!H", checksum(whole)) + body[18:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number & 0xFFFF, 0, 64, protocol, 0) + source + target
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    mac = bytes(int(part, 16) for mac in (GUEST_MAC, OUTSIDE_MAC) for part in mac.split(":"))
    return mac + b"\x08\x00" + header + body


def make_capture(path, packets=20_000, flows=500):
    """Packets of clients, two thirds of them TCP: text as web clients send it, 60 to 1,460 bytes, 500 flows. The same each time."""
    draw = random.Random(12)
    words = [bytes(draw.choices(b"abcdefghijklmnopqrstuvwxyz/.=&", k=draw.randint(3, 12))) for _ in range(2_000)]
    numbers = [1] * flows
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for index in range(packets):
            flow = draw.randrange(flows)
            size = draw.choice((60, 60, 200, 576, 1_000, 1_460, 1_460))
            text = b"GET /" + b" ".join(draw.choices(words, k=size // 8 + 1))
            payload = text[:size]
            source = bytes([10, 100, flow >> 8, flow & 255])
            protocol = 17 if flow % 3 == 0 else 6
            data = frame(source, 20_000 + flow, numbers[flow], protocol, payload)
            numbers[flow] += len(payload)
            file.write(struct.pack("<IIII", index // 1_000, index % 1_000 * 1_000, len(data), len(data)) + data)
    return path


def make_rules(path, count):
    """Rules with a content each, in the dialect that Snort 2 and others read; few packets of `make_capture` match any."""
    draw = random.Random(34)
    with open(path, "w") as file:
        for number in range(count):
            content = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(6, 14)))
            protocol = "tcp" if number % 3 else "udp"
            file.write(f'alert {protocol} any any -> any any (msg:"pattern {number}"; content:"{content}"; nocase; '
                       f'sid:{3_000_000 + number}; rev:1;)\n')
    return path


def replay(bed, capture, rate, seconds, cpu=None):
    """tcpreplay(1) from outside to the guest. Gives the packets that were sent, and how many a second."""
    out = bed.run(bed.outside, ["tcpreplay", "-i", "eth0", "--preload-pcap", "--loop=100000", f"--limit={max(1, int(rate * seconds))}",
                                f"--pps={rate}", capture], cpu, stderr=subprocess.STDOUT).stdout
    found = re.search(r"Actual: (\d+) packets .* sent in ([\d.]+) seconds", out)
    if not found:
        sys.exit(f"evaluation: tcpreplay failed:\n{out}")
    return int(found[1]), int(found[1]) / max(float(found[2]), 1e-9)


# HTTP

SIZES = [1, 2, 4, 8]


def start_http(bed, cpu=None):
    """nginx(8) in the guest, set as Debian's package sets it, with a document of each size in KiB."""
    # Not in the bed's own folder, which the daemon watches: no real guest writes there.
    os.makedirs(bed.path("www/log"), exist_ok=True)
    draw = random.Random(56)
    for size in SIZES:
        bed.write(f"www/{size}k.html", "".join(draw.choices("abcdefghijklmnopqrstuvwxyz <>", k=size << 10)))
    bed.write("www/index.html", "hello\n")
    conf = bed.write("nginx.conf", f"""daemon off; worker_processes 1; pid {bed.path('nginx.pid')}; user root;
error_log {bed.path('nginx-error.log')} crit;
events {{ worker_connections 1024; }}
http {{ access_log {bed.path('www/log/access.log')}; keepalive_requests 1000000; sendfile on; tcp_nopush on; types {{ text/html html; }}
  client_body_temp_path {bed.path('t1')}; proxy_temp_path {bed.path('t2')}; fastcgi_temp_path {bed.path('t3')};
  uwsgi_temp_path {bed.path('t4')}; scgi_temp_path {bed.path('t5')};
  server {{ listen 80; root {bed.path('www')}; }} }}
""")
    server = bed.start(bed.guest, f"nginx -c {conf} -p {bed.folder}", cpu)
    bed.wait_for("nginx", lambda: bed.run(bed.outside, "curl -sf -m 1 http://10.77.0.1/").returncode == 0)
    return server


def offer_http(bed, wire, size, seconds, connections, rate, seed, cpu=None):
    """Requests that are due at times of a Poisson process with `rate` (a second, all together), each over a connection that is free; see
    lab/wire/http.c. The milliseconds of a request count from when it was due."""
    path = bed.path("times")
    out = bed.run(bed.outside, [wire, "http", "10.77.0.1", f"/{size}k.html", str(connections), f"{rate:.3f}", str(seconds), str(seed), path], cpu)
    if out.returncode != 0:
        sys.exit(f"evaluation: wire http failed with {out.returncode}")
    told = json.loads(out.stdout)
    rows = [line.split() for line in open(path)]
    return timed([(float(due), float(took) / 1000) for due, took in rows], seconds, told["failed"]) | {"load_busy": told["busy"]}


def load_http(bed, size, seconds, connections, cpu, rate=None):
    """h2load(1) in HTTP/1.1: each connection asks again as soon as it was answered. With `rate` (requests a second, all together) it asks at fixed
    times, or when it was answered if that is later. All connections do so at once, since all begin at once: that makes bursts of one request each, and the
    milliseconds of a request say how long a burst takes."""
    log = bed.path("h2load.log")
    words = ["h2load", "--h1", "-t", "1", "-c", str(connections), "-D", f"{int(seconds * 1000)}ms", f"--log-file={log}"]
    if rate:
        words.append(f"--rps={rate / connections:.3f}")
    # The machine may have stood still for as long as it was to ask.
    for attempt in range(3):
        result = load_http_once(bed, words + [f"http://10.77.0.1/{size}k.html"], log, cpu)
        if result[0]:
            break
    answers, failed, busy = result
    return timed(answers, seconds, failed) | {"load_busy": busy}


def load_http_once(bed, words, log, cpu):
    """Of each answer the seconds from the first request to its own, and the milliseconds that it took; how many requests failed; the part of the time that the
    processor was busy."""
    if os.path.exists(log):
        os.unlink(log)
    spent = time_of(cpu)
    out = bed.run(bed.outside, words, cpu, stderr=subprocess.STDOUT).stdout
    busy = busy_since(spent, cpu)
    found = re.search(r"requests: .* (\d+) succeeded, (\d+) failed", out)
    if not found or not os.path.exists(log):
        sys.exit(f"evaluation: h2load failed:\n{out}")
    # Start in microseconds, status, time in microseconds.
    rows = [line.split() for line in open(log)]
    first = min((int(row[0]) for row in rows), default=0)
    return [((int(row[0]) - first) / 1e6, int(row[2]) / 1000) for row in rows if row[1] == "200"], int(found[2]), busy


def timed(answers, seconds, failed):
    """Of answers, each with the seconds from the beginning to its request and the milliseconds that it took: how many there were a second, p50 and p99, the p99
    of each second by itself, and how many requests failed."""
    if not answers:
        sys.exit("evaluation: no request was answered")
    by_second = [[] for _ in range(max(1, int(seconds)))]
    for begin, took in answers:
        by_second[min(len(by_second) - 1, int(begin))].append(took)
    times = sorted(took for _, took in answers)
    return {"requests_per_second": len(times) / seconds, "p50_ms": part(times, 0.5), "p99_ms": part(times, 0.99),
            "p99_seconds": [part(sorted(second), 0.99) for second in by_second if second], "requests": len(times), "failed": failed}


def part(ordered, share):
    """The smallest value that this share of the values does not exceed."""
    return ordered[min(len(ordered) - 1, max(0, int(len(ordered) * share + 0.999999) - 1))]


# FTP

def start_ftp(bed, sizes, cpu=None):
    """vsftpd(8) in the guest, for anybody; a file of each size in MiB."""
    os.makedirs(bed.path("ftp/empty"), exist_ok=True)
    os.chmod(bed.path("ftp"), 0o555)
    os.makedirs(bed.path("ftproot"), exist_ok=True)
    for size in sizes:
        with open(bed.path(f"ftproot/{size}m"), "wb") as file:
            file.write(random.Random(size).randbytes(size << 20))
    os.chmod(bed.path("ftproot"), 0o555)
    conf = bed.write("vsftpd.conf", f"""listen=YES
background=NO
anonymous_enable=YES
local_enable=NO
no_anon_password=YES
anon_root={bed.path('ftproot')}
secure_chroot_dir={bed.path('ftp/empty')}
seccomp_sandbox=NO
""")
    # It closes what it inherits; a shell keeps what its end is noticed by.
    server = bed.start(bed.guest, ["sh", "-c", f"vsftpd {conf}; true"], cpu)
    bed.wait_for("vsftpd", lambda: bed.run(
        bed.outside, f"curl -sf -m 2 -o /dev/null ftp://10.77.0.1/{sizes[0]}m").returncode == 0)
    return server


def load_ftp(bed, size, times, cpu=None):
    """curl(1) fetches a file, `times` times one after another over one control connection. Gives MiB a second of the middle transfer, from its
    connection's being made to its end, and how many connections took longer than half a second to be made (vsftpd is not always there yet when the
    client knocks, with and without an engine; TCP then waits for a second)."""
    words = ["curl", "-sf", "-m", "300", "-w", "%{time_connect} %{time_total}\\n"]
    done = bed.run(bed.outside, words + ["-o", "/dev/null", f"ftp://10.77.0.1/{size}m"] * times, cpu)
    if done.returncode != 0:
        sys.exit(f"evaluation: curl failed with {done.returncode}")
    rows = [tuple(map(float, line.split())) for line in done.stdout.split("\n") if line]
    return size / part(sorted(total - connect for connect, total in rows), 0.5), sum(connect > 0.5 for connect, _ in rows)


def load_bulk(bed, seconds, reverse, cpu=None):
    """iperf3(1), one TCP connection, from outside to the guest or (`reverse`) the other way. Gives Gbit/s."""
    server = bed.start(bed.guest, "iperf3 -s -1", cpu)
    bed.wait_for("iperf3", lambda: ":5201 " in bed.run(bed.guest, "ss -Htln").stdout)
    out = bed.run(bed.outside, ["iperf3", "-J", "-c", "10.77.0.1", "-t", str(max(1, int(seconds)))] + ["-R"] * reverse, cpu).stdout
    bed.stop(server)
    found = json.loads(out)
    if "error" in found:
        sys.exit(f"evaluation: iperf3: {found['error']}")
    return found["end"]["sum_received"]["bits_per_second"] / 1e9


# Frames of our own

def build_wire(bed):
    """Compiles `wire` (see lab/wire/main.c) into the bed's folder."""
    source = os.path.join(ROOT, "Benchmarks/lab/wire")
    program = bed.path("wire")
    subprocess.run(["cc" if shutil.which("cc") else "clang", "-O2", "-o", program] + [f"{source}/{name}.c" for name in ("main", "http", "flood", "latency")] + ["-lm"],
                   check=True)
    return program
