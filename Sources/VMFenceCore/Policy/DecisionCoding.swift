// Decisions as bytes, for the decision log. Little-endian; texts and lists with their length first; an optional is a byte
// that says whether it is there.
//
//   format (1) | id u64 | time i64 | incarnation? (uuid u64 u64, domid u32) | measure | status u8 | policy text |
//   reason text | step u32 | expires? i64 | trigger text | source? network | logged u8

enum DecisionCoding {
  static let format: UInt8 = 1
  /// A text's limit in bytes. Longer ones are cut.
  static let textLimit = 4_096
  /// No host takes more decisions in its life, and the next number can be counted up to.
  static let numberLimit = UInt64(Int64.max)
  /// More than any encoded decision.
  static let sizeLimit = 16_384
  static let statuses: [Decision.Status] = [
    .enforced, .desired, .dryRun, .pending, .withheld, .denied, .expired,
  ]

  static func encode(_ decision: Decision) -> [UInt8] {
    var out = ByteWriter()
    out.put(format)
    out.put(decision.id)
    out.put(decision.time.nanoseconds)
    out.put(decision.incarnation) { out, incarnation in
      out.put(incarnation.uuid)
      out.put(incarnation.domainID.rawValue)
    }
    out.put(decision.measure)
    out.put(UInt8(truncatingIfNeeded: statuses.firstIndex(of: decision.status) ?? 0))
    out.put(decision.policy)
    out.put(decision.reason)
    out.put(UInt32(clamping: decision.step))
    out.put(decision.expires) { $0.put($1.nanoseconds) }
    out.put(decision.trigger)
    out.put(decision.source) { $0.put($1) }
    out.put(UInt8(decision.isLogged ? 1 : 0))
    return out.bytes
  }

  /// nil for anything that `encode` does not write.
  static func decode(_ bytes: [UInt8]) -> Decision? {
    var input = ByteReader(bytes)
    guard input.byte() == format, let id = input.u64(), id <= numberLimit, let time = input.time(),
      let incarnation = input.optional({ $0.incarnation() }), let measure = input.measure(),
      let status = input.byte(), Int(status) < statuses.count, let policy = input.text(), let reason = input.text(),
      let step = input.u32(), let expires = input.optional({ $0.time() }), let trigger = input.text(),
      let source = input.optional({ $0.network() }), let logged = input.byte(), logged <= 1, input.isAtEnd
    else { return nil }
    return Decision(
      id: id, time: time, incarnation: incarnation.value, measure: measure, status: statuses[Int(status)],
      policy: policy, reason: reason, step: Int(step), expires: expires.value, trigger: trigger, source: source.value,
      isLogged: logged == 1)
  }
}

struct ByteWriter {
  private(set) var bytes: [UInt8] = []

  mutating func put(_ number: some FixedWidthInteger) {
    for shift in stride(from: 0, to: number.bitWidth, by: 8) {
      bytes.append(UInt8(truncatingIfNeeded: number >> shift))
    }
  }

  mutating func put(raw other: [UInt8]) { bytes += other }

  mutating func put<Value>(_ value: Value?, _ body: (inout ByteWriter, Value) -> Void) {
    put(UInt8(value == nil ? 0 : 1))
    if let value { body(&self, value) }
  }

  mutating func put(_ text: String) {
    var utf8 = Array(text.utf8.prefix(DecisionCoding.textLimit))
    // The cut may fall inside a character, which has four bytes at the most: drop what is left of it.
    while String(validating: utf8, as: UTF8.self) == nil { utf8.removeLast() }
    put(UInt16(utf8.count))
    bytes += utf8
  }

  mutating func put(_ uuid: DomainUUID) {
    put(uuid.high)
    put(uuid.low)
  }

  mutating func put(_ network: IPNetwork) {
    put(network.base.family.rawValue)
    put(network.base.high)
    put(network.base.low)
    put(network.prefix)
  }

  mutating func put(_ measure: Decision.Measure) {
    switch measure {
    case .notify: put(UInt8(0))
    case .block(let network):
      put(UInt8(1))
      put(network)
    case .blockOnHost(let network):
      put(UInt8(2))
      put(network)
    case .quarantine: put(UInt8(3))
    case .rateLimit(let packetsPerSecond):
      put(UInt8(4))
      put(packetsPerSecond)
    case .pause: put(UInt8(5))
    case .shutDown: put(UInt8(6))
    case .lift(let key):
      put(UInt8(7))
      put(key)
    }
  }

  private mutating func put(_ key: FirewallMeasure.Key) {
    switch key.scope {
    case .host: put(UInt8(0))
    case .domain(let uuid):
      put(UInt8(1))
      put(uuid)
    }
    switch key.kind {
    case .block(let network):
      put(UInt8(0))
      put(network)
    case .quarantine: put(UInt8(1))
    case .rateLimit(let packetsPerSecond):
      put(UInt8(2))
      put(packetsPerSecond)
    }
  }
}

/// Reads what `ByteWriter` wrote; every read says whether it was there.
struct ByteReader {
  /// Keeps "read, and there is none" apart from "could not be read".
  struct Box<Value> { var value: Value? }

  private let bytes: [UInt8]
  private var offset = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  var isAtEnd: Bool { offset == bytes.count }

  private mutating func number<Number: FixedWidthInteger & UnsignedInteger>(_ type: Number.Type) -> Number? {
    let size = Number.bitWidth / 8
    guard bytes.count - offset >= size else { return nil }
    defer { offset += size }
    return bytes[offset..<offset + size].reversed().reduce(0) { $0 << 8 | Number($1) }
  }

  mutating func byte() -> UInt8? {
    guard offset < bytes.count else { return nil }
    defer { offset += 1 }
    return bytes[offset]
  }

  mutating func u32() -> UInt32? { number(UInt32.self) }
  mutating func u64() -> UInt64? { number(UInt64.self) }
  mutating func time() -> Timestamp? { u64().map { Timestamp(nanoseconds: Int64(bitPattern: $0)) } }

  mutating func optional<Value>(_ body: (inout ByteReader) -> Value?) -> Box<Value>? {
    switch byte() {
    case 0: Box(value: nil)
    case 1: body(&self).map { Box(value: $0) }
    default: nil
    }
  }

  mutating func text() -> String? {
    guard let length = number(UInt16.self), length <= DecisionCoding.textLimit, bytes.count - offset >= Int(length)
    else { return nil }
    defer { offset += Int(length) }
    return String(validating: bytes[offset..<offset + Int(length)], as: UTF8.self)
  }

  mutating func uuid() -> DomainUUID? {
    guard let high = u64(), let low = u64() else { return nil }
    return DomainUUID(high: high, low: low)
  }

  mutating func incarnation() -> Incarnation? {
    guard let uuid = uuid(), let number = u32() else { return nil }
    return Incarnation(uuid: uuid, domainID: DomainID(number))
  }

  mutating func network() -> IPNetwork? {
    guard let family = byte().flatMap(IPAddress.Family.init), let high = u64(), let low = u64(), let prefix = byte(),
      Int(prefix) <= family.bitWidth
    else { return nil }
    let address: IPAddress
    switch family {
    case .v4:
      guard high == 0, let low = UInt32(exactly: low) else { return nil }
      address = IPAddress(v4: low)
    case .v6: address = IPAddress(v6High: high, low: low)
    }
    let network = IPNetwork(address, prefix: Int(prefix))
    return network.base == address ? network : nil
  }

  mutating func measure() -> Decision.Measure? {
    switch byte() {
    case 0: .notify
    case 1: network().map { .block($0) }
    case 2: network().map { .blockOnHost($0) }
    case 3: .quarantine
    case 4: u32().map { .rateLimit(packetsPerSecond: $0) }
    case 5: .pause
    case 6: .shutDown
    case 7: key().map { .lift($0) }
    default: nil
    }
  }

  private mutating func key() -> FirewallMeasure.Key? {
    let scope: FirewallScope? =
      switch byte() {
      case 0: .host
      case 1: uuid().map { .domain($0) }
      default: nil
      }
    guard let scope else { return nil }
    let kind: FirewallMeasureKind? =
      switch byte() {
      case 0: network().map { .block($0) }
      case 1: .quarantine
      case 2: u32().map { .rateLimit(packetsPerSecond: $0) }
      default: nil
      }
    return kind.map { FirewallMeasure.Key(scope: scope, kind: $0) }
  }
}
