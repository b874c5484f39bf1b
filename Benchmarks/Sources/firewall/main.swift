// What measures cost at the kernel's packet filter: many at once, one more, single ones at the same time, reading back, and taking over after a
// restart. Of what takes long, the time on the clock, and the processor's time: on a busy machine only the latter says something.
//
//   swift build -c release --product firewall && sudo unshare -n .build/release/firewall [MEASURES [PROGRAM]]
//
// With the program `vmfence-firewall`, the same through a process of its own follows.
//
// Run it in a network namespace of its own: it makes and removes a table `bridge vmfence-benchmark`.

import VMFenceCore
import VMFenceNftables
import VMFenceProcess

#if canImport(Glibc)
import Glibc
#endif

let count = CommandLine.arguments.dropFirst().first.flatMap(Int.init) ?? 100_000
let clock = ContinuousClock()
let start = Timestamp(seconds: 1_800_000_000)
let configuration = NftablesSink.Configuration(table: "vmfence-benchmark")

func domain(_ number: Int) -> DomainUUID { DomainUUID(high: 0x1111_4111, low: UInt64(number)) }

/// Half of them IPv4 addresses, half IPv6 networks of 64 bits, over 100 domains.
func measure(_ number: Int) -> FirewallMeasure {
  let network =
    number % 2 == 0
    ? IPNetwork(IPAddress(v4: 0x0A00_0000 + UInt32(number)))
    : IPNetwork(IPAddress(v6High: 0x2001_0DB8_0000_0000 + UInt64(number), low: 0), prefix: 64)
  return FirewallMeasure(
    scope: .domain(domain(number % 100)), kind: .block(network), expires: start + .seconds(86_400),
    decision: UInt64(number),
    comment: "sid 1:\(2_000_000 + number)")
}

func milliseconds(_ duration: Duration) -> String {
  let microseconds = duration.wholeNanoseconds / 1_000
  return "\(microseconds / 1_000).\(String(microseconds % 1_000 + 1_000).dropFirst()) ms"
}

/// The time that this process has had of the processors, in our code and in the kernel.
func processorTime() -> Duration {
  var usage = rusage()
  // SAFETY: getrusage(2) writes the structure; 0 is RUSAGE_SELF.
  _ = unsafe getrusage(0, &usage)
  return [usage.ru_utime, usage.ru_stime].reduce(.zero) { $0 + .seconds($1.tv_sec) + .microseconds($1.tv_usec) }
}

func timed<Result>(_ what: (Result) -> String, _ body: () async throws -> Result) async rethrows -> Result {
  let (begin, before) = (clock.now, processorTime())
  let result = try await body()
  print("\(what(result)): \(milliseconds(clock.now - begin)), processor \(milliseconds(processorTime() - before))")
  return result
}

func report(_ what: String, each durations: [Duration]) {
  let sorted = durations.sorted()
  func part(_ share: Double) -> String {
    milliseconds(sorted[min(sorted.count - 1, Int(Double(sorted.count) * share))])
  }
  print(
    "\(what), \(sorted.count) times: p50 \(part(0.5)), p99 \(part(0.99)), most \(milliseconds(sorted[sorted.count - 1]))"
  )
}

/// - Returns: the ports at its end. The sink is gone then, as after the end of a process.
func run() async throws -> [DomainUUID: [NetworkPort]] {
  let first = try NftablesSink.open(configuration)
  var ports: [DomainUUID: [NetworkPort]] = [:]
  for number in 0..<100 {
    ports[domain(number)] = [NetworkPort(interface: "vif\(number).0", mac: MACAddress(rawValue: 0x0200_0000_0000))]
  }
  try await first.update(ports: ports)
  let measures = (0..<count).map(measure)
  var generation = try await first.replace(with: [], at: start)
  let change = FirewallChange(from: generation, time: start, add: measures)
  generation = try await timed({ _ in "\(count) measures in one change" }) { try await first.apply(change) }

  var durations: [Duration] = []
  for number in count..<count + 2_000 {
    let change = FirewallChange(from: generation, time: start, add: [measure(number)])
    let begin = clock.now
    generation = try await first.apply(change)
    durations.append(clock.now - begin)
  }
  report("one more, with \(count) standing", each: durations)
  durations.removeAll()
  for number in 0..<2_000 {
    let change = FirewallChange(from: generation, time: start, add: [measure(number)])
    let begin = clock.now
    generation = try await first.apply(change)
    durations.append(clock.now - begin)
  }
  report("one prolonged", each: durations)
  durations.removeAll()
  for number in 0..<2_000 {
    let flow = FlowCut(
      domain: domain(number % 100), source: IPAddress(v4: 0x0A00_0000 + UInt32(number)),
      destination: IPAddress(v4: 0x0A4D_0001),
      sourcePort: 40_000, destinationPort: 80, ipProtocol: 6, comment: "sid 1:1")
    let begin = clock.now
    try await first.cut([flow])
    durations.append(clock.now - begin)
  }
  report("one flow cut", each: durations)

  let transactions = first.transactions
  await timed({ _ in "2000 single ones by 2000 tasks at once" }) {
    await withTaskGroup(of: Void.self) { group in
      for number in 0..<2_000 {
        group.addTask { _ = try? await first.add([measure(2 * count + number)], at: start) }
      }
    }
  }
  print("  in \(first.transactions - transactions) transactions")

  for what in ["that nobody else has changed", "after somebody else's change"] {
    _ = try await timed({ "\($0.measures.count) measures read back \(what)" }) { try await first.readBack(at: start) }
    // Another table's change is enough.
    _ = try NftablesSink.open(.init(table: "vmfence-benchmark-2", holdsTable: false))
  }
  ports[domain(1)] = [NetworkPort(interface: "vif777.0", mac: MACAddress(rawValue: 0x0200_0000_0000))]
  try await timed({ _ in "one domain's measures moved to another port" }) { try await first.update(ports: ports) }
  return ports
}

/// What a daemon does at its start: takes the table over, names the ports, reads back.
func restart(_ ports: [DomainUUID: [NetworkPort]]) async throws {
  let sink = try await timed({ "\($0.adoptedMeasures) measures taken over by another process's sink" }) {
    try NftablesSink.open(configuration)
  }
  try await timed({ _ in "the same ports named" }) { try await sink.update(ports: ports) }
  _ = try await timed({ "\($0.measures.count) measures read back" }) { try await sink.readBack(at: start) }
  _ = try await sink.replace(with: [], at: start)
}

/// What the same costs through `vmfence-firewall`.
func through(_ program: String, _ ports: [DomainUUID: [NetworkPort]]) async throws {
  let launch: ProcessFirewallSink.Start = { () throws(DetectorError) in try HelperProcess(executable: program) }
  do {
    let sink = try ProcessFirewallSink.open(configuration, launch)
    try await sink.update(ports: ports)
    let measures = (0..<count).map(measure)
    var generation = try await timed({ _ in "through a process: \(count) measures in one change" }) {
      try await sink.replace(with: measures, at: start)
    }
    var durations: [Duration] = []
    for number in count..<count + 2_000 {
      let change = FirewallChange(from: generation, time: start, add: [measure(number)])
      let begin = clock.now
      generation = try await sink.apply(change)
      durations.append(clock.now - begin)
    }
    report("one more, with \(count) standing", each: durations)
    _ = try await timed({ "\($0.measures.count) measures read back" }) {
      try await sink.readBack(at: start)
    }
  }
  let sink = try await timed({ _ in "taken over by another process" }) {
    try ProcessFirewallSink.open(configuration, launch)
  }
  try await sink.update(ports: ports)
  _ = try await timed({ "\($0.measures.count) measures read back" }) {
    try await sink.readBack(at: start)
  }
  _ = try await sink.replace(with: [], at: start)
}

do {
  let ports = try await run()
  try await restart(ports)
  if let program = CommandLine.arguments.dropFirst(2).first { try await through(program, ports) }
} catch {
  print("\(error)")
}
