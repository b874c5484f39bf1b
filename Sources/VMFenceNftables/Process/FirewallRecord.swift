import VMFenceCore

/// A reset that is to be sent, and what says whether it may be.
struct AddressedReset: Hashable, Sendable {
  var domain: DomainUUID
  /// Of the packet that it was made from.
  var direction: FrameDirection
  var reset: TCPReset
}

/// What was stopped for one reason: at one port, or, without one, at all.
struct FirewallCount: Hashable, Sendable {
  /// Blocks, cut flows, quarantine, rate limits; then pretences in the order in which they are declared, of which ports have counts, too.
  static let firstKind = 4
  static let reasonCount = firstKind + SpoofingKind.allCases.count

  var reason: UInt8
  var interface: String
  var count: TrafficCount

  /// All but those of single measures.
  static func list(_ counts: TrafficCounts) -> [FirewallCount] {
    var list: [FirewallCount] = []
    for (number, (_, count)) in counts.byReason.enumerated() where count.packets > 0 {
      list.append(FirewallCount(reason: UInt8(number), interface: "", count: count))
    }
    for (interface, kinds) in counts.spoofedAtPorts where NetworkPort.isInterfaceName(interface) {
      for (number, kind) in SpoofingKind.allCases.enumerated() {
        guard let count = kinds[kind] else { continue }
        list.append(FirewallCount(reason: UInt8(firstKind + number), interface: interface, count: count))
      }
    }
    return list
  }

  func add(to counts: inout TrafficCounts) {
    let number = Int(reason) - Self.firstKind
    switch reason {
    case 0...3 where !interface.isEmpty: return
    case 0: counts.blocked = count
    case 1: counts.cut = count
    case 2: counts.quarantined = count
    case 3: counts.limited = count
    case _ where interface.isEmpty: counts.spoofed[SpoofingKind.allCases[number]] = count
    default: counts.spoofedAtPorts[interface, default: [:]][SpoofingKind.allCases[number]] = count
    }
  }
}

/// One thing of a list in a question or an answer. Each is short: its texts and lists are bounded.
enum FirewallRecord: Equatable, Sendable {
  case measure(FirewallMeasure)
  case removed(FirewallMeasure.Key)
  /// One that follows another of the same domain and interface has more addresses of it.
  case port(DomainUUID, NetworkPort)
  /// What a domain may do although others may not.
  case exception(DomainUUID, Set<SpoofingKind>)
  case flow(FlowCut)
  case reset(AddressedReset)
  case isSent(Bool)
  case change(ForeignChange)
  case network(IPNetwork)
  case count(FirewallCount)
  case text(String)

  /// Bytes of a text, and of a comment or name.
  static let textLimit = 2_048
  static let commentLimit = 255
  /// Addresses of a port in one record.
  static let addressLimit = 255

  private enum Tag {
    static let measure: UInt8 = 1
    static let removed: UInt8 = 2
    static let port: UInt8 = 3
    static let exception: UInt8 = 4
    static let flow: UInt8 = 5
    static let reset: UInt8 = 6
    static let isSent: UInt8 = 7
    static let change: UInt8 = 8
    static let network: UInt8 = 9
    static let text: UInt8 = 10
    static let count: UInt8 = 11
  }

  /// The records of a port: as many as its addresses need.
  static func ports(_ domain: DomainUUID, _ port: NetworkPort) -> [FirewallRecord] {
    var (rest, records) = (port.addresses[...], [FirewallRecord]())
    repeat {
      var part = port
      part.addresses = Array(rest.prefix(addressLimit))
      rest = rest.dropFirst(addressLimit)
      records.append(.port(domain, part))
    } while !rest.isEmpty
    return records
  }

  // MARK: Writing

  func write(to bytes: inout [UInt8]) {
    switch self {
    case .measure(let measure):
      bytes.append(Tag.measure)
      bytes.append(measure.key)
      bytes.append(measure.expires == nil ? 0 : 1)
      if let expires = measure.expires { bytes.append(little: UInt64(bitPattern: expires.nanoseconds)) }
      bytes.append(little: measure.decision)
      bytes.append(comment: measure.comment)
    case .removed(let key):
      bytes.append(Tag.removed)
      bytes.append(key)
    case .port(let domain, let port):
      bytes.append(Tag.port)
      bytes.append(domain)
      bytes.append(comment: port.interface)
      bytes.append(port.bridge == nil ? 0 : 1)
      if let bridge = port.bridge { bytes.append(comment: bridge) }
      bytes.append(little: port.mac.rawValue)
      bytes.append(UInt8(truncatingIfNeeded: port.addresses.count))
      for address in port.addresses { bytes.append(address) }
    case .exception(let domain, let kinds):
      bytes.append(Tag.exception)
      bytes.append(domain)
      bytes.append(SpoofingKind.mask(of: kinds))
    case .flow(let flow):
      bytes.append(Tag.flow)
      bytes.append(flow.domain)
      bytes.append(flow.source)
      bytes.append(flow.destination)
      bytes.append(little: flow.sourcePort)
      bytes.append(little: flow.destinationPort)
      bytes.append(flow.ipProtocol)
      bytes.append(comment: flow.comment)
    case .reset(let reset): write(reset, to: &bytes)
    case .isSent(let isSent): bytes += [Tag.isSent, isSent ? 1 : 0]
    case .change(let change):
      bytes.append(Tag.change)
      bytes.append(change.kind.number)
      bytes.append(little: change.processID)
      bytes.append(comment: change.process)
    case .network(let network):
      bytes.append(Tag.network)
      bytes.append(network)
    case .count(let count):
      bytes.append(Tag.count)
      bytes.append(count.reason)
      bytes.append(comment: count.interface)
      bytes.append(little: count.count.packets)
      bytes.append(little: count.count.bytes)
    case .text(let text):
      bytes.append(Tag.text)
      let utf8 = text.utf8.prefix(Self.textLimit)
      bytes.append(little: UInt16(utf8.count))
      bytes += utf8
    }
  }

  private func write(_ addressed: AddressedReset, to bytes: inout [UInt8]) {
    let reset = addressed.reset
    bytes.append(Tag.reset)
    bytes.append(addressed.domain)
    bytes.append(addressed.direction.rawValue)
    for station in [reset.source, reset.destination] {
      bytes.append(little: station.mac.rawValue)
      bytes.append(station.address)
      bytes.append(little: station.port)
    }
    bytes.append(reset.vlan == nil ? 0 : 1)
    bytes.append(little: reset.vlan ?? 0)
    bytes.append(little: reset.next)
    bytes.append(reset.acknowledged == nil ? 0 : 1)
    bytes.append(little: reset.acknowledged ?? 0)
  }

  // MARK: Reading

  init(_ reader: inout RecordReader) throws(RecordFailure) {
    switch try reader.number(UInt8.self) {
    case Tag.measure:
      let key = try reader.key()
      let expires = try reader.flag(UInt8.self) ? Timestamp(nanoseconds: Int64(bitPattern: reader.number())) : nil
      let decision = try reader.number(UInt64.self)
      self = .measure(
        FirewallMeasure(
          scope: key.scope, kind: key.kind, expires: expires, decision: decision, comment: try reader.comment()))
    case Tag.removed: self = .removed(try reader.key())
    case Tag.port: self = try Self.port(&reader)
    case Tag.exception:
      let domain = try reader.domain()
      guard let kinds = SpoofingKind.set(of: try reader.number()) else { throw RecordFailure() }
      self = .exception(domain, kinds)
    case Tag.flow:
      let domain = try reader.domain()
      let (source, destination) = (try reader.address(), try reader.address())
      guard source.family == destination.family else { throw RecordFailure() }
      self = .flow(
        FlowCut(
          domain: domain, source: source, destination: destination, sourcePort: try reader.number(),
          destinationPort: try reader.number(), ipProtocol: try reader.number(), comment: try reader.comment()))
    case Tag.reset: self = try Self.reset(&reader)
    case Tag.isSent: self = .isSent(try reader.flag(UInt8.self))
    case Tag.change:
      guard let kind = ForeignChange.Kind(number: try reader.number()) else { throw RecordFailure() }
      let processID: UInt32 = try reader.number()
      self = .change(
        ForeignChange(kind: kind, process: try reader.comment().escapedForDisplay, processID: processID))
    case Tag.network: self = .network(try reader.network())
    case Tag.count:
      let (reason, interface) = (try reader.number(UInt8.self), try reader.comment())
      guard reason < FirewallCount.reasonCount,
        interface.isEmpty || NetworkPort.isInterfaceName(interface)
      else { throw RecordFailure() }
      let count = TrafficCount(packets: try reader.number(), bytes: try reader.number())
      self = .count(FirewallCount(reason: reason, interface: interface, count: count))
    case Tag.text: self = .text(try reader.text(Int(try reader.number(UInt16.self)), limit: Self.textLimit))
    default: throw RecordFailure()
    }
  }

  private static func port(_ reader: inout RecordReader) throws(RecordFailure) -> FirewallRecord {
    let domain = try reader.domain()
    let interface = try reader.comment()
    let bridge = try reader.flag(UInt8.self) ? try reader.comment() : nil
    let mac = try reader.mac()
    guard NetworkPort.isInterfaceName(interface), bridge.map(NetworkPort.isInterfaceName) ?? true else {
      throw RecordFailure()
    }
    var addresses: [IPAddress] = []
    for _ in 0..<(try reader.number(UInt8.self)) { addresses.append(try reader.address()) }
    return .port(domain, NetworkPort(interface: interface, bridge: bridge, mac: mac, addresses: addresses))
  }

  private static func reset(_ reader: inout RecordReader) throws(RecordFailure) -> FirewallRecord {
    let domain = try reader.domain()
    guard let direction = FrameDirection(rawValue: try reader.number()) else { throw RecordFailure() }
    let (source, destination) = (try reader.station(), try reader.station())
    guard source.address.family == destination.address.family else { throw RecordFailure() }
    let (isTagged, tag) = (try reader.flag(UInt8.self), try reader.number(UInt16.self))
    let next: UInt32 = try reader.number()
    let (acknowledges, acknowledged) = (try reader.flag(UInt8.self), try reader.number(UInt32.self))
    // What is not there is zero.
    guard isTagged || tag == 0, acknowledges || acknowledged == 0 else { throw RecordFailure() }
    return .reset(
      AddressedReset(
        domain: domain, direction: direction,
        reset: TCPReset(
          source: source, destination: destination, vlan: isTagged ? tag : nil, next: next,
          acknowledged: acknowledges ? acknowledged : nil)))
  }
}

/// A message that no sound one sends.
struct RecordFailure: Error {}

/// Reads a message from its beginning, and never past its end.
struct RecordReader {
  private let bytes: [UInt8]
  private var offset = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  mutating func number<Number: FixedWidthInteger & UnsignedInteger>(
    _ type: Number.Type = Number.self
  ) throws(RecordFailure) -> Number {
    let count = Number.bitWidth / 8
    guard bytes.count - offset >= count else { throw RecordFailure() }
    var value: Number = 0
    for index in (0..<count).reversed() { value = value << 8 | Number(bytes[offset + index]) }
    offset += count
    return value
  }

  /// 0 or 1.
  mutating func flag<Number: FixedWidthInteger & UnsignedInteger>(
    _ type: Number.Type
  ) throws(RecordFailure) -> Bool {
    let value: Number = try number()
    guard value <= 1 else { throw RecordFailure() }
    return value == 1
  }

  mutating func text(_ count: Int, limit: Int) throws(RecordFailure) -> String {
    guard count <= limit, bytes.count - offset >= count else { throw RecordFailure() }
    defer { offset += count }
    return String(decoding: bytes[offset..<offset + count], as: UTF8.self)
  }

  mutating func comment() throws(RecordFailure) -> String {
    try text(Int(try number(UInt8.self)), limit: FirewallRecord.commentLimit)
  }

  mutating func domain() throws(RecordFailure) -> DomainUUID {
    DomainUUID(high: try number(), low: try number())
  }

  mutating func mac() throws(RecordFailure) -> MACAddress {
    let value: UInt64 = try number()
    guard value >> 48 == 0 else { throw RecordFailure() }
    return MACAddress(rawValue: value)
  }

  mutating func address() throws(RecordFailure) -> IPAddress {
    switch try number(UInt8.self) {
    case IPAddress.Family.v4.rawValue: IPAddress(v4: try number())
    case IPAddress.Family.v6.rawValue: IPAddress(v6High: try number(), low: try number())
    default: throw RecordFailure()
    }
  }

  mutating func station() throws(RecordFailure) -> TCPReset.Station {
    TCPReset.Station(mac: try mac(), address: try address(), port: try number())
  }

  mutating func network() throws(RecordFailure) -> IPNetwork {
    let (address, prefix) = (try address(), Int(try number(UInt8.self)))
    let network = IPNetwork(address, prefix: prefix)
    guard network.base == address, Int(network.prefix) == prefix else { throw RecordFailure() }
    return network
  }

  mutating func key() throws(RecordFailure) -> FirewallMeasure.Key {
    let scope = try flag(UInt8.self) ? FirewallScope.domain(try domain()) : .host
    switch try number(UInt8.self) {
    case 0: return FirewallMeasure.Key(scope: scope, kind: .block(try network()))
    case 1: return FirewallMeasure.Key(scope: scope, kind: .quarantine)
    case 2: return FirewallMeasure.Key(scope: scope, kind: .rateLimit(packetsPerSecond: try number()))
    default: throw RecordFailure()
    }
  }

  /// All that follows: so many records, and nothing behind them.
  mutating func records(
    _ count: UInt32, _ isExpected: (FirewallRecord) -> Bool
  ) throws(RecordFailure) -> [FirewallRecord] {
    var records: [FirewallRecord] = []
    // The shortest has two bytes.
    guard Int(count) <= (bytes.count - offset) / 2 else { throw RecordFailure() }
    records.reserveCapacity(Int(count))
    for _ in 0..<count {
      let record = try FirewallRecord(&self)
      guard isExpected(record) else { throw RecordFailure() }
      records.append(record)
    }
    guard offset == bytes.count else { throw RecordFailure() }
    return records
  }
}

extension [UInt8] {
  fileprivate mutating func append(comment text: String) {
    let utf8 = text.utf8.prefix(FirewallRecord.commentLimit)
    append(UInt8(utf8.count))
    self += utf8
  }

  fileprivate mutating func append(_ domain: DomainUUID) {
    append(little: domain.high)
    append(little: domain.low)
  }

  fileprivate mutating func append(_ address: IPAddress) {
    append(address.family.rawValue)
    if address.family == .v4 { return append(little: UInt32(truncatingIfNeeded: address.low)) }
    append(little: address.high)
    append(little: address.low)
  }

  fileprivate mutating func append(_ network: IPNetwork) {
    append(network.base)
    append(network.prefix)
  }

  fileprivate mutating func append(_ key: FirewallMeasure.Key) {
    switch key.scope {
    case .host: append(0)
    case .domain(let domain):
      append(1)
      append(domain)
    }
    switch key.kind {
    case .block(let network):
      append(0)
      append(network)
    case .quarantine: append(1)
    case .rateLimit(let rate):
      append(2)
      append(little: rate)
    }
  }
}

extension SpoofingKind {
  /// One bit for each, in the order in which they are declared.
  static func mask(of kinds: Set<SpoofingKind>) -> UInt8 {
    var mask: UInt8 = 0
    for (bit, kind) in allCases.enumerated() where kinds.contains(kind) { mask |= 1 << UInt8(bit) }
    return mask
  }

  /// nil when there is a bit of none.
  static func set(of mask: UInt8) -> Set<SpoofingKind>? {
    guard mask >> UInt8(allCases.count) == 0 else { return nil }
    return Set(allCases.enumerated().filter { mask >> UInt8($0.offset) & 1 == 1 }.map(\.element))
  }
}

extension ForeignChange.Kind {
  fileprivate var number: UInt8 {
    switch self {
    case .tableDeleted: 0
    case .changed: 1
    case .unknown: 2
    }
  }

  fileprivate init?(number: UInt8) {
    guard let kind = [Self.tableDeleted, .changed, .unknown].first(where: { $0.number == number }) else { return nil }
    self = kind
  }
}
