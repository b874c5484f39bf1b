"""A host with a bridge, a guest with real servers and an outside, each in a network namespace; and the engine under test on the host.

    guest eth0 ── vif1.0 ── xenbr0 ── uplink0 ── eth0 outside        10.77.0.1, .254 (host), .99

Nothing leaves the namespaces. Everything that is started is ended.
"""
import json, os, re, shlex, shutil, signal, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TICKS = os.sysconf("SC_CLK_TCK")
GUEST, OUTSIDE = "10.77.0.1", "10.77.0.99"
GUEST_MAC, OUTSIDE_MAC = "02:77:00:00:00:01", "02:77:00:00:00:63"
UUID = "6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001"
# Of the capture, in bytes: as `run` has it with one capture. Another engine should get as much.
BUFFER = 8 << 20


def sh(script, **options):
    return subprocess.run(["sh", "-ec", script], check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def missing(*programs):
    """Those of these programs that are not installed."""
    return [program for program in programs if not shutil.which(program)]


def cpu_of(pids):
    """Seconds of processor time that these processes have used (proc(5), fields 14 and 15)."""
    total = 0
    for pid in pids:
        try:
            fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def time_of(cpu):
    """Seconds that a processor has done something, and all seconds (proc_stat(5); without waiting for disks)."""
    for line in open("/proc/stat"):
        words = line.split()
        if words[0] == f"cpu{cpu}":
            ticks = [int(word) for word in words[1:9]]
            return (sum(ticks) - ticks[3] - ticks[4]) / TICKS, sum(ticks) / TICKS
    sys.exit(f"evaluation: there is no processor {cpu}")


def busy_since(before, cpu):
    """The part of the time since then (`time_of`) that the processor was not idle."""
    return (time_of(cpu)[0] - before[0]) / max(1e-9, time_of(cpu)[1] - before[1])


def memory_of(pids):
    """Resident memory of these processes, in bytes."""
    total = 0
    for pid in pids:
        try:
            total += int(re.search(r"^VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read(), re.M)[1]) << 10
        except (OSError, TypeError):
            continue
    return total


def children(pid):
    """The process and all that it has started."""
    found, queue = [], [pid]
    while queue:
        process = queue.pop()
        found.append(process)
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                queue += [int(word) for word in open(f"/proc/{process}/task/{task}/children").read().split()]
        except OSError:
            continue
    return found


def lives(pid):
    """Whether it is a process that has not ended (proc(5), field 3)."""
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def uncounted(figures, wire):
    """How many packets nobody has counted: those on the wire that were neither captured nor counted as dropped by the kernel, and those captured
    that were neither inspected nor counted as not inspected. What passed before the counters of `wire` were read is captured all the same."""
    return int(max(0, wire - figures["captured"] - figures["dropped"])
               + abs(figures["captured"] - figures["inspected"] - figures["uninspected"]))


class Bed:
    def __init__(self, build=None):
        self.folder = tempfile.mkdtemp(prefix="vmfence-bench-")
        os.chmod(self.folder, 0o755)
        self.build = build or os.path.join(ROOT, ".build/release")
        label = f"vmf-bench-{os.getpid()}"
        self.host, self.guest, self.outside = f"{label}-host", f"{label}-vm1", f"{label}-out"
        self.processes = []
        settings = "net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0"
        # What every kernel has and allows. With BBR, which some machines have as their default, the short way makes the window so small that answers of more than
        # four segments wait for a delayed acknowledgement, 40 ms each time.
        settings += " net.ipv4.tcp_congestion_control=reno"
        for name in (self.host, self.guest, self.outside):
            sh(f"ip netns add {name}; ip netns exec {name} sysctl -qw {settings}; ip -n {name} link set lo up")
        sh(f"""
            ip -n {self.host} link add xenbr0 address 02:77:00:00:00:fe type bridge forward_delay 0
            ip -n {self.host} addr add 10.77.0.254/24 dev xenbr0
            ip -n {self.host} link set xenbr0 up""")
        for name, port, address, mac, other, other_mac in (
            (self.guest, "vif1.0", GUEST, GUEST_MAC, OUTSIDE, OUTSIDE_MAC),
            (self.outside, "uplink0", OUTSIDE, OUTSIDE_MAC, GUEST, GUEST_MAC)):
            sh(f"""
                ip -n {self.host} link add {port} type veth peer name eth0 netns {name} address {mac}
                ip -n {self.host} link set {port} master xenbr0 up
                ip -n {name} addr add {address}/24 dev eth0
                ip -n {name} link set eth0 up
                ip -n {name} neigh replace {other} lladdr {other_mac} dev eth0 nud permanent""")
        # Sources of attacks: each is an address of the outside.
        sh(f"""ip -n {self.outside} route add local 10.64.0.0/10 dev lo
               ip -n {self.guest} route add 10.64.0.0/10 via {OUTSIDE}""")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            self.stop(process)
        for name in (self.host, self.guest, self.outside):
            subprocess.run(["sh", "-c", f"ip netns pids {name} | xargs -r kill -9; ip netns del {name}"],
                           stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    # Programs

    def command(self, namespace, command, cpu=None):
        words = shlex.split(command) if isinstance(command, str) else list(command)
        pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
        return ["ip", "netns", "exec", namespace] + pin + words

    def run(self, namespace, command, cpu=None, **options):
        return subprocess.run(self.command(namespace, command, cpu), stdout=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL, **options)

    def start(self, namespace, command, cpu=None, **options):
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | options
        process = subprocess.Popen(self.command(namespace, command, cpu), stdin=subprocess.DEVNULL, text=True, **options)
        self.processes.append(process)
        return process

    def stop(self, process, number=signal.SIGTERM, patience=30):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process in self.processes:
            self.processes.remove(process)

    def wait_for(self, what, condition, patience=60):
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                sys.exit(f"evaluation: waited {patience} s for {what}")
            time.sleep(0.02)

    def link(self, field, port="vif1.0"):
        """A counter of the host's end of a port."""
        return int(self.run(self.host, f"cat /sys/class/net/{port}/statistics/{field}").stdout)

    def wire_packets(self):
        """Packets that have passed the guest's port, both ways, and those that it lost after they were seen there."""
        return sum(self.link(field) for field in ("tx_packets", "rx_packets", "tx_dropped"))


class Engine:
    """What is measured: VMFence, another engine, or nothing."""

    def __init__(self, bed, name, rules, cpu=None, command=None, patterns=(), more="", policy=None, log=None):
        self.bed, self.name, self.cpu = bed, name, cpu
        self.process, self.output = None, None
        self.command, self.patterns, self.rules = command, patterns, rules
        self.more, self.policy, self.log = more, policy or "rules: []\n", log

    @property
    def is_ours(self):
        return self.name == "vmfence"

    def start(self):
        """- Returns: the seconds until it was ready."""
        begin = time.monotonic()
        if self.name == "base":
            return 0.0
        self.output = open(self.bed.path(f"{self.name}.log"), "w+")
        if not self.is_ours:
            words = self.command.format(interface="vif1.0", rules=self.rules, buffer=BUFFER, cpu=self.cpu)
            self.process = self.bed.start(self.bed.host, words, self.cpu, stdout=self.output, stderr=self.output)
            time.sleep(5)
            return 5.0
        self._configure()
        command = [os.path.join(self.bed.build, "vmfence-ref"), "run", "--config", self.bed.path("host.yaml"),
                   "--eve", self.bed.path("eve.json")]
        self.process = self.bed.start(self.bed.host, command, self.cpu, stdout=self.output, stderr=self.output)

        def is_ready():
            if self.process.poll() is not None:
                sys.exit(f"evaluation: vmfence-ref has ended:\n{self.said()}")
            return "capturing on vif1.0" in self.said() and re.search(r"\brunning\b", self.said())
        self.bed.wait_for("vmfence-ref", is_ready)
        return time.monotonic() - begin

    def _configure(self):
        bed = self.bed
        bed.write("policy.yaml", self.policy)
        bed.write("inventory.yaml", f"""version: 1
domains:
  - name: guest
    uuid: {UUID}
    domid: 1
    tenant: acme
    ports: [{{interface: vif1.0, bridge: xenbr0, mac: "{GUEST_MAC}", addresses: [{GUEST}]}}]
""")
        os.makedirs(bed.path("state"), exist_ok=True)
        bed.write("host.yaml", f"""version: 1
node: dom0
inventory: inventory.yaml
state-directory: state
metrics: {{address: 127.0.0.1, port: 9477}}
rules: {{dialect: snort2, common: {self.rules}}}
policy: policy.yaml
{self.more}
""")

    def said(self):
        return open(self.output.name).read()

    def pids(self):
        return children(self.process.pid) if self.process else []

    def metrics(self):
        """The daemon's own figures, by name with labels. They are brought up to date once a second."""
        text = self.bed.run(self.bed.host, "curl -s http://127.0.0.1:9477/metrics").stdout
        return {name: float(value) for name, value in re.findall(r"^(\w+(?:{[^}]*})?) (\S+)$", text, re.M)}

    def total(self, name, figures=None):
        return sum(value for key, value in (figures or self.metrics()).items() if key.split("{")[0] == name)

    def settle(self, before=None):
        """Waits until everything that was captured has been inspected, or counted as not inspected, and until everything on the wire since
        `wire_packets` was `before`, if that is given, has been captured or counted as lost; a minute at the most. A daemon that says nothing new for a
        while may only not have come to it."""
        last, quiet, end = None, 0, time.monotonic() + 60
        while True:
            time.sleep(0.5)
            metrics = self.metrics()
            figures = {short: self.total(f"vmfence_{name}_total", metrics) for short, name in (
                ("captured", "capture_packets"), ("inspected", "inspected_packets"), ("uninspected", "packets_uninspected"),
                ("dropped", "capture_drops"))}
            quiet = quiet + 1 if figures == last else 0
            last = figures
            wire = 0 if before is None else self.bed.wire_packets() - before
            if quiet >= 3 and uncounted(figures, wire) == 0 or time.monotonic() > end:
                return figures

    def stop(self, number=None):
        """- Returns: what another engine said of its packets and drops, by the patterns that were given."""
        if not self.process:
            return None
        pids = self.pids()
        self.bed.stop(self.process, number or (signal.SIGTERM if self.is_ours else signal.SIGINT))
        self.process = None
        # What it has started ends a moment after it, and owns its tables until then.
        self.bed.wait_for("the processes of an engine to end", lambda: not any(map(lives, pids)))
        if self.is_ours and number is None:
            # Its measures outlive it, and so do its tables, which cost each frame something: what comes next, the base above all, is without them.
            for family in ("bridge", "netdev"):
                subprocess.run(self.bed.command(self.bed.host, ["nft", "delete", "table", family, "vmfence"]), stderr=subprocess.DEVNULL)
        if self.is_ours or not self.patterns:
            return None
        found = [re.findall(pattern, self.said()) for pattern in self.patterns]
        if not all(found):
            sys.exit(f"evaluation: {self.name} said nothing of its packets and drops:\n{self.said()[-2000:]}")
        return [float(values[-1].replace(",", "")) for values in found]
