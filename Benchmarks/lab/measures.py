"""What `evaluation` measures, one function each. They take the script's options and write a table, figures and a plot."""
import os, random, signal, statistics, subprocess, sys, threading, time

from . import plot, report, traffic
from .bed import UUID, Bed, Engine, ROOT, children, cpu_of, memory_of, uncounted
from .traffic import part

ATTACK_RULE = ('alert tcp any any -> any 80 (msg:"password file"; flow:to_server,established; content:"/etc/passwd"; '
               'classtype:web-application-attack; sid:1000001;)\n')
ALERT_RULE = 'alert udp any any -> any 9999 (msg:"noise"; content:"noise"; classtype:attempted-recon; sid:1000002;)\n'
ATTACK_POLICY = """measures-per-minute: 1000000
rules:
  - name: attacks
    when: {classes: [web-application-attack]}
    count: {per: source, at-least: 1}
    ladder: [{block: 1d}]
  - name: noise
    when: {classes: [attempted-recon]}
    count: {per: source, at-least: 1000, within: 60s}
    ladder: [{block: 1m}]
"""


def engines(options, bed, rules):
    """Those that are measured, apart from the base."""
    found = [lambda: Engine(bed, "vmfence", rules, options.engine_cpu)]
    if options.engine:
        found.append(lambda: Engine(bed, "other", rules, options.engine_cpu, options.engine,
                                    (options.engine_packets, options.engine_drops)))
    return found


def rules_of(options, bed, count=1_000):
    return os.path.abspath(options.rules) if options.rules else traffic.make_rules(bed.path("common.rules"), count)


# Figure 12(a)

def drops(options):
    rates = [int(rate) for rate in options.rates.split(",")]
    points, rows = {}, []
    with Bed(options.build) as bed:
        capture, rules = traffic.make_capture(bed.path("replay.pcap")), rules_of(options, bed)
        for rate in rates:
            for number in range(options.rounds):
                for make in engines(options, bed, rules):
                    engine = make()
                    point = drop_point(options, bed, engine, capture, rate)
                    points.setdefault((engine.name, rate), []).append(point)
    names = sorted({name for name, _ in points}, reverse=True)
    series = {name: [] for name in names}
    for name in names:
        for rate in rates:
            found = points[name, rate]
            middle = statistics.median(point["drop_rate"] for point in found)
            offered = statistics.median(point["packets_per_second"] for point in found)
            series[name].append((offered, 100 * middle))
            rows.append([name, rate, round(offered), sum(p["wire"] for p in found), sum(p["lost"] for p in found),
                         100 * middle, sum(p["uncounted"] for p in found)])
    report.write(options, "drops", f"12(a): drop rate against packet rate; median of {options.rounds} rounds of {options.seconds} s",
                 ["engine", "asked/s", "packets/s", "on the wire", "not inspected", "drop rate %", "uncounted"], rows,
                 {f"{name} {rate}": found for (name, rate), found in points.items()})
    plot.write(report.path(options, "drops.svg"), [
        plot.lines("Drop rate against packet rate", series, "packets a second", "% not inspected")])
    refuse_uncounted(row[-1] for row in rows if row[0] == "vmfence")


def refuse_uncounted(counts):
    if any(counts):
        sys.exit("evaluation: packets were lost that nobody counted")


def drop_point(options, bed, engine, capture, rate):
    engine.start()
    before = bed.wire_packets()
    _, achieved = traffic.replay(bed, capture, rate, options.seconds, options.load_cpu)
    if engine.is_ours:
        figures = engine.settle(before)
        wire = bed.wire_packets() - before
        engine.stop()
        lost, unknown = figures["uninspected"] + figures["dropped"], uncounted(figures, wire)
    else:
        wire = bed.wire_packets() - before
        packets, lost = engine.stop()
        figures, unknown = {"received": packets}, 0
    return figures | {"wire": wire, "packets_per_second": achieved, "lost": int(lost), "uncounted": int(unknown),
                      "drop_rate": lost / max(1, wire)}


# Bulk

def throughput(options):
    found = {}
    with Bed(options.build) as bed:
        rules = rules_of(options, bed)
        makers = [lambda: Engine(bed, "base", rules)] + engines(options, bed, rules)
        for number in range(options.rounds):
            for make in turned(makers, number):
                engine = make()
                engine.start()
                before, figures, unknown = bed.wire_packets(), {}, 0
                rates = [traffic.load_bulk(bed, options.seconds, reverse, options.load_cpu) for reverse in (False, True)]
                if engine.is_ours:
                    figures = engine.settle(before)
                    unknown = uncounted(figures, bed.wire_packets() - before)
                wire = bed.wire_packets() - before
                engine.stop()
                found.setdefault(engine.name, []).append(
                    {"in_gbit": rates[0], "out_gbit": rates[1], "wire": wire, "uncounted": unknown} | figures)
    rows = []
    for name, results in found.items():
        lost = sum(result.get("uninspected", 0) + result.get("dropped", 0) for result in results)
        rows.append([name] + [statistics.median(result[field] for result in results) for field in ("in_gbit", "out_gbit")]
                    + [sum(result["wire"] for result in results), int(lost), sum(result["uncounted"] for result in results)])
    report.write(options, "throughput", f"iperf3, one connection; median of {options.rounds} rounds of {options.seconds} s",
                 ["engine", "to the guest Gbit/s", "from the guest Gbit/s", "packets on the wire", "not inspected", "uncounted"],
                 rows, found)
    plot.write(report.path(options, "throughput.svg"), [plot.bars(
        "One TCP connection", ["to the guest", "from the guest"], {row[0]: row[1:3] for row in rows}, "", "Gbit/s")])
    refuse_uncounted(row[-1] for row in rows)


# Figure 12(b)

HTTP_MODES = ("fixed", "bursts", "closed")


def http(options):
    connections = 10 if options.what == "smoke" else 100
    found, packets, closed, costs = {}, {}, {}, {}
    with Bed(options.build) as bed:
        wire, rules = traffic.build_wire(bed), rules_of(options, bed)
        server = traffic.start_http(bed, options.load_cpu)
        makers = [lambda: Engine(bed, "base", rules)] + engines(options, bed, rules)

        def load(mode, size, number, rate):
            if mode == "fixed":
                return traffic.offer_http(bed, wire, size, options.seconds, connections, rate, number, options.load_cpu)
            return traffic.load_http(bed, size, options.seconds, connections, options.load_cpu, rate)
        for size in options.http_sizes:
            closed[size] = traffic.load_http(bed, size, options.seconds, connections, options.load_cpu)["requests_per_second"]
            if "fixed" in options.modes:
                costs[size] = costs_of(options, lambda rate: load("fixed", size, 0, rate), closed[size])
        for number in range(options.rounds):
            # The same for all engines of a round.
            offered = {("bursts", size): SHARE * closed[size] for size in closed} | {("fixed", size): rate_of(costs[size], closed[size]) for size in costs}
            for make in turned(makers, number):
                engine = make()
                engine.start()
                # What is done only once, in the engine and in the kernel, belongs to no size of document.
                traffic.load_http(bed, options.http_sizes[0], 1, connections, options.load_cpu)
                for size in turned(options.http_sizes, number):
                    for mode in options.modes:
                        rate = offered.get((mode, size))
                        before, served = cpu_of(engine.pids()), cpu_of(children(server.pid))
                        result = load(mode, size, number, rate)
                        if mode == "fixed" and engine.name == "base":
                            costs[size].append(result["load_busy"] / rate)
                        # What the engine still has to do belongs to these requests; that it waits for the next ones does not.
                        time.sleep(0.2)
                        result["engine_cpu_us"] = (cpu_of(engine.pids()) - before) * 1e6 / result["requests"]
                        result["server_cpu_us"] = (cpu_of(children(server.pid)) - served) * 1e6 / result["requests"]
                        result["offered"] = rate
                        found.setdefault((engine.name, size, mode), []).append(result)
                if engine.is_ours:
                    packets.setdefault(engine.name, []).append(engine.settle())
                engine.stop()
    write_http(options, found, packets, connections)


def turned(items, number):
    """The same, beginning with another one in each round."""
    return items[number % len(items):] + items[:number % len(items)]


# How much of the base's capacity is asked for.
SHARE = 0.6


def rate_of(costs, closed):
    """The rate of independent requests that keeps the processor of the load busy for `SHARE` of the time, by what one has cost lately (seconds of that
    processor): of what a closed loop takes, a fifth at least, and this share at the most. A request that comes alone costs more than one in a
    closed loop, where one sleep serves many."""
    return min(SHARE * closed, max(0.2 * closed, SHARE / statistics.median(costs[-9:])))


def costs_of(options, offer, closed):
    """What a request costs the base at the rate that is wanted, three times. A request costs less where more wait behind each sleep, so it is asked at the rate
    that was found, until that rate and the two before would all have kept the processor as busy as it should be, to one part in a hundred of the time."""
    rates, costs = [0.4 * closed], []
    for _ in range(1 if options.what == "smoke" else 16):
        costs.append(max(0.05, offer(rates[-1])["load_busy"]) / rates[-1])
        cost = statistics.median(costs[-3:])
        if len(costs) >= 3 and all(abs(cost * rate - SHARE) < 0.01 for rate in rates[-3:]):
            break
        rates.append(rate_of(costs[-3:], closed))
    return costs[-3:]


def ratio_to(base, values, of=statistics.median):
    """The ratio of a figure of rounds to that of the rounds of the base, which were neighbours, and between what it lies in 95 of 100 draws of as many rounds (the bootstrap's
    percentiles). `of` gives the figure of some rounds."""
    def ratio(rounds):
        return of([values[number] for number in rounds]) / of([base[number] for number in rounds])
    draw, all_rounds = random.Random(78), range(len(values))
    ratios = sorted(ratio(draw.choices(all_rounds, k=len(values))) for _ in range(2_000))
    return ratio(all_rounds), part(ratios, 0.025), part(ratios, 0.975)


def write_http(options, found, packets, connections):
    names = [name for name in ("base", "vmfence", "other") if any(key[0] == name for key in found)]

    def values(name, size, mode, field):
        return [result[field] for result in found[name, size, mode]]

    def middle(name, size, mode, field):
        return statistics.median(values(name, size, mode, field))

    def middle_second(rounds):
        return statistics.median(second for seconds in rounds for second in seconds)
    rows = []
    for mode in options.modes:
        for size in options.http_sizes:
            for name in names:
                seconds = {each: values(each, size, mode, "p99_seconds") for each in ("base", name)}
                ratio, low, high = ratio_to(seconds["base"], seconds[name], middle_second)
                rows.append([mode, f"{size} KB", name, "-" if mode == "closed" else round(middle(name, size, mode, "offered")),
                             round(middle(name, size, mode, "requests_per_second")), middle(name, size, mode, "p50_ms"),
                             middle_second(seconds[name]), ratio, "-" if name == "base" else f"{low:.2f} to {high:.2f}", middle(name, size, mode, "p99_ms"),
                             100 * middle(name, size, mode, "load_busy"), middle(name, size, mode, "engine_cpu_us"), middle(name, size, mode, "server_cpu_us"),
                             sum(values(name, size, mode, "failed"))])
    report.write(
        options, "http", f"12(b): HTTP, {connections} connections; fixed: requests due at independent times, as many as keep the base's processor busy "
        f"for 60 % of the time; bursts: 60 % of what the base takes in a closed loop, all connections at once; closed: each connection asks again when it was answered; median of {options.rounds} rounds of "
        f"{options.seconds} s; p99 ms: of the middle second of all rounds, with its ratio to the base and that ratio's 95 % interval; p99 of a round: of the middle round",
        ["load", "document", "engine", "offered/s", "requests/s", "p50 ms", "p99 ms", "p99/base", "95 %", "p99 of a round", "load busy %", "engine us/request",
         "server us/request", "failed"], rows, {" ".join(map(str, key)): results for key, results in found.items()} | {"packets": packets})
    groups = [f"{size} KB" for size in options.http_sizes]

    def panel(title, mode, field, label):
        return plot.bars(title, groups, {
            name: [middle(name, size, mode, field) for size in options.http_sizes] for name in names}, "document", label)
    titles = {"fixed": "At a fixed rate", "bursts": "In bursts", "closed": "Closed loop"}
    plot.write(report.path(options, "http.svg"), [
        panel(f"{titles[mode]}: {title}", mode, field, label) for mode in options.modes
        for title, field, label in (("throughput", "requests_per_second", "requests/s"), ("latency", "p99_ms", "p99 in ms"))] + [
            panel(f"{titles[mode]}: the engine's processor time", mode, "engine_cpu_us", "us a request")
            for mode in options.modes[:1]])


# Figure 12(c)

def ftp(options):
    found = {}
    with Bed(options.build) as bed:
        rules = rules_of(options, bed)
        traffic.start_ftp(bed, options.ftp_sizes, options.load_cpu)
        makers = [lambda: Engine(bed, "base", rules)] + engines(options, bed, rules)
        for number in range(options.rounds):
            for make in turned(makers, number):
                engine = make()
                engine.start()
                for size in options.ftp_sizes:
                    # A single one says little: the same file takes half as long again the next time, with and without an engine.
                    times = max(options.transfers, int(options.seconds * 20 / size))
                    found.setdefault((engine.name, size), []).append(traffic.load_ftp(bed, size, times, options.load_cpu))
                engine.stop()
    names = [name for name in ("base", "vmfence", "other") if any(key[0] == name for key in found)]
    middle = {key: statistics.median(rate for rate, _ in values) for key, values in found.items()}
    rows = []
    for size in options.ftp_sizes:
        for name in names:
            ratio, low, high = ratio_to(*([rate for rate, _ in found[each, size]] for each in ("base", name)))
            rows.append([f"{size} MiB", name, middle[name, size], 100 * ratio,
                         "-" if name == "base" else f"{100 * low:.0f} to {100 * high:.0f}", sum(late for _, late in found[name, size])])
    report.write(options, "ftp", f"12(c): FTP, one client; the middle of at least {options.transfers} transfers, median of {options.rounds} rounds",
                 ["file", "engine", "MiB/s", "% of base", "95 %", "late connections"], rows,
                 {" ".join(map(str, key)): values for key, values in found.items()})
    plot.write(report.path(options, "ftp.svg"), [plot.bars(
        "FTP", [f"{size} MiB" for size in options.ftp_sizes],
        {name: [middle[name, size] for size in options.ftp_sizes] for name in names}, "file", "MiB/s")])


# Latency

def standing_bans(options, bed):
    """Leaves a decision log with as many bans as are to stand."""
    if not options.standing:
        return
    program = options.standing_bans or os.path.join(ROOT, "Benchmarks/.build/release/standing-bans")
    os.makedirs(bed.path("state"), exist_ok=True)
    subprocess.run([program, bed.path("state/decisions.log"), str(options.standing), UUID], check=True)


def attacked(options, bed, wire, samples, first):
    """Attacks from so many sources, one after another. Gives the milliseconds until each was cut off, and how many never were."""
    out = bed.run(bed.host, [wire, "latency", bed.outside, bed.guest, "10.77.0.1", str(samples), str(options.probe_us), str(options.patience_ms),
                             str(first)],
                  options.load_cpu).stdout.split()
    times = sorted(float(word) / 1000 for word in out if word not in ("none", "refused"))
    return times, len(out) - len(times)


def summary(times):
    return {"samples": len(times), "p50_ms": part(times, 0.5), "p90_ms": part(times, 0.9), "p99_ms": part(times, 0.99),
            "max_ms": times[-1]} if times else {"samples": 0, "p50_ms": 0.0, "p90_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0}


def latency(options):
    found, rows = {}, []
    with Bed(options.build) as bed:
        wire = traffic.build_wire(bed)
        rules = rules_of(options, bed)
        rules = bed.write("all.rules", open(rules).read() + ATTACK_RULE)
        capture = traffic.make_capture(bed.path("replay.pcap"))
        traffic.start_http(bed, options.load_cpu)
        standing_bans(options, bed)
        engine = Engine(bed, "vmfence", rules, options.engine_cpu, policy=ATTACK_POLICY)
        ready = engine.start()
        ready_cpu = cpu_of(engine.pids())
        stand = int(engine.total("vmfence_blocks_active"))
        for index, (name, rate) in enumerate((("idle", 0), (f"{options.load:,} packets/s", options.load))):
            load = None
            if rate:
                load = bed.start(bed.outside, ["tcpreplay", "-i", "eth0", "--preload-pcap", "--loop=100000000",
                                               f"--pps={rate}", capture], options.load_cpu)
                time.sleep(0.5)
            times, never = attacked(options, bed, wire, options.samples, index * options.samples)
            if load:
                bed.stop(load, signal.SIGINT)
            found[name] = times
            line = summary(times)
            rows.append([name, stand, line["samples"], never, line["p50_ms"], line["p90_ms"], line["p99_ms"], line["max_ms"]])
        figures = engine.settle()
        engine.stop()
    report.write(options, "latency", f"From the attack's packet to the block in force, seen by datagrams every {options.probe_us} us; ready {ready:.2f} s "
                 f"after the start ({ready_cpu:.2f} s of a processor), with {stand:,} bans restored",
                 ["other traffic", "bans standing", "samples", "never blocked", "p50 ms", "p90 ms", "p99 ms", "max ms"], rows,
                 {"seconds_until_ready": ready, "processor_seconds_until_ready": ready_cpu, "standing": stand, "milliseconds": found, "packets": figures})
    if any(found.values()):
        plot.write(report.path(options, "latency.svg"), [plot.histogram(
            f"From the attack's packet to the block in force ({stand:,} bans standing)",
            {name: times for name, times in found.items() if times}, "ms", width=700)])
    # One whose packet was lost before anybody could inspect it is never blocked; such losses are counted, and shown.
    if not all(found.values()):
        sys.exit("evaluation: no attack was blocked")


# Alert flood

def alerts(options):
    with Bed(options.build) as bed:
        wire = traffic.build_wire(bed)
        rules = bed.write("all.rules", ATTACK_RULE + ALERT_RULE)
        traffic.start_http(bed, options.load_cpu)
        standing_bans(options, bed)
        engine = Engine(bed, "vmfence", rules, options.engine_cpu, policy=ATTACK_POLICY)
        engine.start()
        quiet, never_quiet = attacked(options, bed, wire, max(3, options.samples // 10), 0)
        seconds = max(2, 6 * options.seconds)
        memory, stop = [], threading.Event()

        def watch():
            while not stop.wait(0.2):
                memory.append(memory_of(engine.pids()))
        watcher = threading.Thread(target=watch)
        before, begin = memory_of(engine.pids()), cpu_of(engine.pids())
        watcher.start()
        flood = bed.start(bed.host, [wire, "flood", bed.outside, "eth0", "02:77:00:00:00:01", "10.77.0.77", str(options.alerts),
                                     str(seconds), str(options.sources), "noise"], options.load_cpu, stdout=subprocess.PIPE)
        time.sleep(min(2, seconds / 4))
        times, never = attacked(options, bed, wire, max(3, options.samples // 10), 100_000)
        sent = flood.communicate()[0]
        figures = engine.settle()
        spent = cpu_of(engine.pids()) - begin
        told, unwritten = engine.total("vmfence_alerts_total"), engine.total("vmfence_events_lost_total")
        stop.set()
        watcher.join()
        after = memory_of(engine.pids())
        engine.stop()
    write_alerts(options, quiet, times, (never_quiet, never), memory, (before, after), sent, figures, (told, unwritten, spent))


def write_alerts(options, quiet, times, never, memory, around, sent, figures, of_alerts):
    import json
    flood, (told, unwritten, spent) = json.loads(sent), of_alerts
    rows = []
    for name, values, missed in (("no flood", quiet, never[0]), ("flood", times, never[1])):
        line = summary(values)
        rows.append([name, line["samples"], missed, line["p50_ms"], line["p99_ms"], line["max_ms"]])
    mib = [value / 2**20 for value in memory]
    report.write(
        options, "alerts", f"A flood of {flood['rate']:,.0f} packets/s that each are an alert, from {options.sources:,} sources, for "
        f"{flood['seconds']:.0f} s: {told:,.0f} alerts ({1e6 * spent / max(1, told):.1f} us of a processor each, all told), "
        f"{unwritten:,.0f} of them counted as not written, {figures['uninspected'] + figures['dropped']:,.0f} packets counted as not inspected; "
        f"memory of daemon and detector {around[0] / 2**20:.0f} MiB before, at most {max(mib):.0f}, {around[1] / 2**20:.0f} after",
        ["new blocks", "samples", "never blocked", "p50 ms", "p99 ms", "max ms"], rows,
        {"flood": flood, "alerts": told, "not_written": unwritten, "processor_seconds": spent, "packets": figures, "memory_mib": mib, "block_ms": times, "block_quiet_ms": quiet})
    step = 0.2
    plot.write(report.path(options, "alerts.svg"), [
        plot.lines("Memory during the flood", {"daemon and detector": [(step * index, value) for index, value in enumerate(mib)]},
                   "seconds", "MiB resident")] + ([plot.histogram(
                       "New blocks", {"no flood": quiet, "flood": times}, "ms")] if times and quiet else []))


# Restoring

def restore(options):
    """Starts the daemon with a log of many bans: with a packet filter that holds none, and once more after kill -9 with one that holds them all."""
    found = {"empty": [], "after kill -9": []}
    for _ in range(options.rounds):
        with Bed(options.build) as bed:
            standing_bans(options, bed)
            for name in found:
                engine = Engine(bed, "vmfence", rules_of(options, bed, 1), options.engine_cpu, policy=ATTACK_POLICY)
                ready = engine.start()
                cpu = cpu_of(engine.pids())
                # What stands in the kernel when the daemon says that it runs.
                held = sum(bed.run(bed.host, f"nft list set bridge vmfence {block_set}").stdout.count(" expires ")
                           for block_set in ("block4", "net6-64"))
                found[name].append({"ready": ready, "cpu": cpu, "held": held})
                engine.stop(signal.SIGKILL)
    rows = [[name] + [statistics.median(value[field] for value in values) for field in ("ready", "cpu")]
            + [min(value["held"] for value in values)] for name, values in found.items()]
    report.write(options, "restore", f"From the start to all bans in force, {options.standing:,} of them in the log; median of {options.rounds} rounds",
                 ["packet filter", "seconds", "processor s", "in force"], rows, found)
    if any(row[-1] < options.standing for row in rows):
        sys.exit("evaluation: bans are missing in the packet filter")


ALL = {"drops": drops, "throughput": throughput, "http": http, "ftp": ftp, "latency": latency, "alerts": alerts,
       "restore": restore}
