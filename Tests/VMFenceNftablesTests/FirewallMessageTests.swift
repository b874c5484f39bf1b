import Testing
import VMFenceCore

@testable import VMFenceNftables

/// Numbers that look random and are the same each time (SplitMix64).
struct SplitMix: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
    return mixed ^ mixed >> 31
  }
  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}

/// What passes between a daemon and `vmfence-firewall`.
@Suite("The packet filter's messages")
struct FirewallMessageTests {
  private static let station = TCPReset.Station(
    mac: MACAddress("02:77:00:00:00:01")!, address: IPAddress("fd77::1")!, port: 80)
  private static let reset = AddressedReset(
    domain: vm1, direction: .toGuest,
    reset: TCPReset(
      source: station, destination: .init(mac: station.mac, address: IPAddress("fd77::99")!, port: 0xFFFF),
      vlan: 0xA00A, next: .max, acknowledged: 0))

  /// Each kind of record, with all that it can have and with nothing.
  private static let records: [FirewallVerb: [FirewallRecord]] = [
    .open: [.text("vmfence"), .text(""), .network(IPNetwork("10.0.0.0/8")!), .network(IPNetwork("::/0")!)],
    .apply: [
      .measure(block("10.77.0.99", for: vm1)), .measure(block("fd77::/64", seconds: nil, decision: .max)),
      .measure(
        FirewallMeasure(
          scope: .domain(vm2), kind: .rateLimit(packetsPerSecond: .max), expires: Timestamp(nanoseconds: .min),
          decision: 0, comment: "ü \u{1b}\n")),
      .measure(FirewallMeasure(scope: .domain(vm1), kind: .quarantine, expires: nil, decision: 1)),
      .removed(block("0.0.0.0/0").key), .removed(.init(scope: .host, kind: .quarantine)),
    ],
    .replace: [.measure(block("10.77.0.99/31", for: vm1))],
    .ports: [
      .port(vm1, port("vif1.0", 1)),
      .port(vm2, NetworkPort(interface: "a", mac: MACAddress(rawValue: 0xFFFF_FFFF_FFFF))),
      .exception(vm1, []), .exception(vm2, Set(SpoofingKind.allCases)), .network(IPNetwork("fe80::1")!),
    ],
    .cut: [
      .flow(
        FlowCut(
          domain: vm1, source: IPAddress("10.77.0.1")!, destination: IPAddress("10.77.0.2")!, sourcePort: 1,
          destinationPort: .max, ipProtocol: 6, comment: "sid 1:2"))
    ],
    .reset: [.reset(reset)],
    .look: [], .read: [], .counts: [], .more: [],
  ]

  /// One count of each kind, all different.
  private static let counts: TrafficCounts = {
    var counts = TrafficCounts()
    counts.blocked = TrafficCount(packets: 1, bytes: 101)
    counts.cut = TrafficCount(packets: 2, bytes: 102)
    counts.quarantined = TrafficCount(packets: 3, bytes: 103)
    counts.limited = TrafficCount(packets: .max, bytes: .max)
    for (number, kind) in SpoofingKind.allCases.enumerated() {
      counts.spoofed[kind] = TrafficCount(packets: UInt64(10 + number), bytes: 110)
      counts.spoofedAtPorts["vif\(number).0"] = [kind: TrafficCount(packets: UInt64(20 + number), bytes: 120)]
    }
    return counts
  }()

  @Test("counts come out as they went in; a port has none but of pretences")
  func trafficCounts() {
    var counts = TrafficCounts()
    for count in FirewallCount.list(Self.counts) { count.add(to: &counts) }
    #expect(counts == Self.counts)
    var other = TrafficCounts()
    FirewallCount(reason: 0, interface: "vif1.0", count: TrafficCount(packets: 1)).add(to: &other)
    #expect(other == TrafficCounts())
    for (reason, interface) in [(UInt8(10), ""), (0xFF, ""), (4, "no such/name")] {
      var answer = FirewallAnswer(.counts)
      answer.records = [.count(FirewallCount(reason: reason, interface: interface, count: TrafficCount(packets: 1)))]
      #expect(FirewallAnswer(answer.part(from: 0, sequence: 1).bytes, to: .counts, 1) == nil)
    }
  }

  private func question(_ verb: FirewallVerb) -> FirewallQuestion {
    FirewallQuestion(verb, time: -7, number: .max - 1, records: Self.records[verb]!)
  }

  @Test("questions come out as they went in", arguments: FirewallVerb.allCases)
  func questions(verb: FirewallVerb) throws {
    let (bytes, next) = question(verb).part(from: 0, sequence: 9)
    #expect(next == Self.records[verb]!.count)
    var expected = question(verb)
    expected.sequence = 9
    #expect(FirewallQuestion(bytes) == expected)
    #expect(FirewallQuestion(bytes + [0]) == nil)
    for count in bytes.indices { #expect(FirewallQuestion(Array(bytes.prefix(count))) == nil, "\(count) bytes") }
    var other = bytes
    other[0] ^= 1
    #expect(FirewallQuestion(other) == nil, "another build")
    other = bytes
    other[4] = 99
    #expect(FirewallQuestion(other) == nil, "an unknown verb")
    other = bytes
    other[16] = 2
    #expect(FirewallQuestion(other) == nil, "neither a part nor all")
    other = bytes
    other[20] &+= 1
    #expect(FirewallQuestion(other) == nil, "more records than there are")
  }

  @Test("answers come out as they went in")
  func answers() throws {
    let cases: [(FirewallVerb, [FirewallRecord])] = [
      (.open, [.text("no resets")]), (.apply, []), (.read, Self.records[.replace]!), (.cut, Self.records[.cut]!),
      (.reset, [.isSent(true), .isSent(false)]),
      (.counts, FirewallCount.list(Self.counts).map { .count($0) }),
      (
        .look,
        [ForeignChange.Kind.tableDeleted, .changed, .unknown].map {
          .change(ForeignChange(kind: $0, process: "nft", processID: .max))
        }
      ),
    ]
    for (verb, records) in cases {
      var answer = FirewallAnswer(verb)
      (answer.sequence, answer.generation, answer.number, answer.records) = (9, 1 << 40, 5, records)
      let bytes = answer.part(from: 0, sequence: 9).bytes
      #expect(FirewallAnswer(bytes, to: verb, 9) == answer)
      #expect(FirewallAnswer(bytes, to: verb, 8) == nil, "to another question")
      #expect(FirewallAnswer(bytes, to: .ports, 9) == nil, "to another verb")
      #expect(FirewallAnswer(bytes + [0], to: verb, 9) == nil)
      for count in bytes.indices { #expect(FirewallAnswer(Array(bytes.prefix(count)), to: verb, 9) == nil) }
      answer.generation += 1
      #expect(FirewallAnswer(answer.part(from: 0, sequence: 9).bytes, to: verb, 9) == nil, "no generation")
    }
    var read = FirewallAnswer(.read)
    read.records = Self.records[.cut]!
    #expect(FirewallAnswer(read.part(from: 0, sequence: 1).bytes, to: .read, 1) == nil, "flows are no measures")
  }

  @Test("a reset without a tag, or one that acknowledges nothing, has nothing there")
  func absences() {
    var reset = Self.reset
    reset.reset = TCPReset(
      source: Self.station, destination: Self.station, vlan: nil, next: 7, acknowledged: nil)
    let bytes = FirewallQuestion(.reset, records: [.reset(reset)]).part(from: 0, sequence: 1).bytes
    #expect(FirewallQuestion(bytes)?.records == [.reset(reset)])
    // The record ends with: tagged 1, tag 2, next 4, acknowledges 1, acknowledged 4.
    for place in [1, 4, 10, 11] {
      var other = bytes
      other[bytes.count - place] = 1
      #expect(FirewallQuestion(other) == nil, "\(place) bytes before the end")
    }
  }

  @Test("a failure keeps its code and words; what is no failure of ours is none")
  func failures() throws {
    for code in [FirewallError.Code.conflict, .unsupported, .permissionDenied, .inUse, .full, .failed] {
      let answer = FirewallAnswer(.apply, FirewallError(code, "m\u{1b}[31m", remedy: "r"))
      let bytes = answer.part(from: 0, sequence: 1).bytes
      let error = try #require(FirewallAnswer(bytes, to: .apply, 1)?.error(during: "x", table: "t"))
      #expect(error.code == code && error.message.hasPrefix("m") && error.remedy == "r")
      #expect(!error.message.contains("\u{1b}"), "what it says is shown to people")
      var other = bytes
      other[4] = 8
      #expect(FirewallAnswer(other, to: .apply, 1) == nil)
      other[4] = 6
      #expect(FirewallAnswer(other, to: .apply, 1) == nil, "who holds the table has no words")
    }
  }

  @Test("whose a table is, and of which family, arrives as it was said; a family of which none is ours is no answer")
  func holders() throws {
    for family in [TableFamily.bridge, .netdev] {
      let held = FirewallAnswer(.open, heldBy: 0xFFFF_FFF0, family)
      let answer = try #require(FirewallAnswer(held.part(from: 0, sequence: 1).bytes, to: .open, 1))
      let error = try #require(answer.error(during: "open the packet filter", table: "t"))
      #expect(error.code == .inUse && error.message.contains("netlink port 4294967280"), "\(error)")
      #expect(error.message.contains("another process owns table \(family) t:"), "\(error)")
    }
    for number in [0xFFFF_FFF0, 1 << 32, 6 << 32, 256 << 32, UInt64.max] {
      var held = FirewallAnswer(.open)
      (held.failure, held.number) = (.held, number)
      #expect(FirewallAnswer(held.part(from: 0, sequence: 1).bytes, to: .open, 1) == nil, "\(number)")
    }
  }

  @Test("whatever comes, it is a question or an answer that keeps its bounds, or none, and never a trap")
  func mutations() {
    var random = SplitMix(state: 1)
    var sound = 0
    for _ in 0..<60_000 {
      let verb = FirewallVerb.allCases[random.below(FirewallVerb.allCases.count)]
      var bytes = question(verb).part(from: 0, sequence: 3).bytes
      if random.below(4) == 0 { bytes = Array(bytes.prefix(random.below(bytes.count + 1))) }
      for _ in 0..<random.below(4) where !bytes.isEmpty {
        bytes[random.below(bytes.count)] = UInt8(truncatingIfNeeded: random.next())
      }
      // The head of an answer is as long.
      let answer = FirewallAnswer(bytes, to: verb, 3)
      #expect(answer?.records.allSatisfy { verb.answers(with: $0) || answer?.failure != nil } ?? true)
      guard let question = FirewallQuestion(bytes) else { continue }
      sound += 1
      #expect(question.records.count <= bytes.count)
      for record in question.records {
        #expect(question.verb.asks(with: record))
        switch record {
        case .port(_, let port):
          #expect(NetworkPort.isInterfaceName(port.interface) && port.mac.rawValue >> 48 == 0)
        case .measure(let measure):
          if case .block(let network) = measure.key.kind {
            #expect(network.base.masked(prefix: Int(network.prefix)) == network.base)
          }
        case .flow(let flow): #expect(flow.source.family == flow.destination.family)
        case .reset(let reset):
          // Whatever it says, it is a frame that resets a connection, and nothing else.
          for frame in [reset.reset.toSource, reset.reset.toDestination] { #expect(frame.count < 100) }
        default: break
        }
      }
    }
    #expect(sound > 1_000)
  }

  @Test("a long list goes in parts that are no longer than a message may be, and nothing of it is lost")
  func parts() throws {
    let measures = (0..<5_000).map { FirewallRecord.measure(block("10.\($0 >> 8).\($0 & 255).0/24", for: vm1)) }
    let whole = FirewallQuestion(.replace, records: measures)
    var (next, sequence, seen) = (0, UInt64(0), [FirewallRecord]())
    repeat {
      sequence += 1
      let part = whole.part(from: next, sequence: sequence)
      #expect(part.bytes.count <= FirewallMessage.byteLimit && part.next > next)
      let question = try #require(FirewallQuestion(part.bytes))
      #expect(question.hasMore == (part.next < measures.count))
      seen += question.records
      next = part.next
    } while next < measures.count
    #expect(seen == measures && sequence > 3)
    let addresses = (0..<600).map { IPAddress(v4: UInt32($0)) }
    let records = FirewallRecord.ports(
      vm1, NetworkPort(interface: "vif1.0", mac: .init(rawValue: 1), addresses: addresses))
    #expect(records.count == 3)
  }

  @Test("the process answers sound questions only, and ends at others")
  func server() throws {
    var isolations = 0
    func ask(_ server: inout FirewallServer, _ bytes: [UInt8]) -> [UInt8]? {
      server.answer(bytes) { isolations += 1 }
    }
    func server() -> FirewallServer { FirewallServer(sender: .failure(FirewallError(.failed, "none here"))) }
    for verb in FirewallVerb.allCases where verb != .open {
      var closed = server()
      #expect(ask(&closed, question(verb).part(from: 0, sequence: 1).bytes) == nil, "it is not open")
    }
    var other = server()
    #expect(ask(&other, []) == nil && ask(&other, [UInt8](repeating: 0xFF, count: 4_000)) == nil)
    // The part of one question cannot be followed by another question.
    var begun = question(.open).part(from: 0, sequence: 1).bytes
    begun[16] = 1
    #expect(ask(&other, begun) != nil)
    #expect(ask(&other, begun) == nil, "a question that was answered")
    #expect(ask(&other, question(.look).part(from: 0, sequence: 2).bytes) == nil)
    #expect(isolations == 0)
  }
}
