// What measures cost at the kernel's packet filter: many at once, one more, reading back, and taking over after a restart.
//
//   swift build -c release --product firewall && sudo unshare -n .build/release/firewall [MEASURES]
//
// Run it in a network namespace of its own: it makes and removes a table `bridge vmfence-benchmark`.

import VMFenceCore
import VMFenceNftables

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

func report(_ what: String, _ duration: Duration) { print("\(what): \(milliseconds(duration))") }

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
  var begin = clock.now
  generation = try await first.apply(change)
  report("\(count) measures in one change", clock.now - begin)

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

  begin = clock.now
  let state = try await first.readBack(at: start)
  report("\(state.measures.count) measures read back", clock.now - begin)
  begin = clock.now
  ports[domain(1)] = [NetworkPort(interface: "vif777.0", mac: MACAddress(rawValue: 0x0200_0000_0000))]
  try await first.update(ports: ports)
  report("one domain's measures moved to another port", clock.now - begin)
  return ports
}

/// What a daemon does at its start: takes the table over, names the ports, reads back.
func restart(_ ports: [DomainUUID: [NetworkPort]]) async throws {
  let begin = clock.now
  let sink = try NftablesSink.open(configuration)
  try await sink.update(ports: ports)
  let state = try await sink.readBack(at: start)
  report("\(state.measures.count) measures taken over by another process's sink, and read back", clock.now - begin)
  _ = try await sink.replace(with: [], at: start)
}

do {
  try await restart(run())
} catch {
  print("\(error)")
}
