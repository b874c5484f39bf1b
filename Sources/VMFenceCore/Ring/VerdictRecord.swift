/// What a detector said of one packet, checked.
public struct PacketVerdict: Hashable, Sendable, BitwiseCopyable {
  /// The packet's number in its channel, from 0.
  public var id: UInt64
  /// The generation of the rules that inspected it: rule indices count in that rule set.
  public var generation: UInt32
  public var verdict: Verdict
  /// The rule that gave the verdict; `UInt32.max` when it is `pass`, and when no rule of this generation gave it.
  public var rule: UInt32
  /// Alerts of this packet that did not fit into its record; saturates at 65,535.
  public var overflow: Int
  /// When the packet was captured.
  public var timestamp: Timestamp
  /// Where the packet was captured.
  public var port: PortID
  /// There was no packet: the alerts are about what had waited for one until `timestamp`.
  public var isOfTime = false
}

extension AlertRecord {
  /// Writes this alert's 192 bytes, one field after the other.
  func encode(into area: SharedArea, at offset: Int) {
    area.store(timestamp.nanoseconds, at: offset)
    area.store(flowID, at: offset + 8)
    area.store(source.high, at: offset + 16)
    area.store(source.low, at: offset + 24)
    area.store(destination.high, at: offset + 32)
    area.store(destination.low, at: offset + 40)
    area.store(ruleIndex, at: offset + 48)
    area.store(sourcePort, at: offset + 52)
    area.store(destinationPort, at: offset + 54)
    area.store(vlan, at: offset + 56)
    area.store(ipProtocol, at: offset + 58)
    area.store(flags.rawValue, at: offset + 59)
    area.store(source.family.rawValue | destination.family.rawValue << 4, at: offset + 60)
    area.store(layer, at: offset + 61)
    area.store(excerptLength, at: offset + 62)
    area.store(origin.rawValue, at: offset + 63)
    for index in 0..<AlertRecord.excerptCapacity { area.store(excerpt[index], at: offset + 64 + index) }
    area.store(captureLength, at: offset + 128)
    for index in 0..<Int(captureLength) { area.store(captures[index], at: offset + 129 + index) }
  }

  /// Reads an alert from the supervisor's private copy; nil when a field has a value that no sound detector writes.
  init?(decoding area: SharedArea, at offset: Int, ruleCount: Int) {
    let ruleIndex = area.load(offset + 48, as: UInt32.self)
    let flags = area.load(offset + 59, as: UInt8.self)
    let families = area.load(offset + 60, as: UInt8.self)
    let excerptLength = area.load(offset + 62, as: UInt8.self)
    let captured = Int(area.load(offset + 128, as: UInt8.self))
    guard ruleIndex < ruleCount, flags < 64, excerptLength <= AlertRecord.excerptCapacity,
      captured <= AlertRecord.captureCapacity,
      let origin = PacketOrigin(rawValue: area.load(offset + 63, as: UInt8.self)),
      area.load(offset + 56, as: UInt16.self) < 4096,
      let source = IPAddress(decoding: area, at: offset + 16, family: families & 0x0F),
      let destination = IPAddress(decoding: area, at: offset + 32, family: families >> 4)
    else { return nil }
    self.init(
      timestamp: Timestamp(nanoseconds: area.load(offset, as: Int64.self)), ruleIndex: ruleIndex,
      flowID: area.load(offset + 8, as: UInt64.self), source: source, destination: destination,
      sourcePort: area.load(offset + 52, as: UInt16.self), destinationPort: area.load(offset + 54, as: UInt16.self),
      ipProtocol: area.load(offset + 58, as: UInt8.self), flags: Flags(rawValue: flags),
      vlan: area.load(offset + 56, as: UInt16.self))
    self.excerptLength = excerptLength
    self.origin = origin
    layer = area.load(offset + 61, as: UInt8.self)
    for index in 0..<Int(excerptLength) { excerpt[index] = area.load(offset + 64 + index, as: UInt8.self) }
    captureLength = UInt8(captured)
    for index in 0..<captured { captures[index] = area.load(offset + 129 + index, as: UInt8.self) }
  }
}

extension PacketAnomaly {
  /// Writes its 16 bytes.
  func encode(into area: SharedArea, at offset: Int) {
    area.store(flowID, at: offset)
    area.store(UInt64(number) | (kind == .stream ? 1 << 8 : 0) | UInt64(layer) << 16, at: offset + 8)
  }

  /// Reads one from the supervisor's private copy; nil when its kind does not exist.
  init?(decoding area: SharedArea, at offset: Int) {
    let word = area.load(offset + 8, as: UInt64.self)
    guard word >> 24 == 0, word >> 8 & 0xFF <= 1 else { return nil }
    self.init(
      kind: word >> 8 & 1 == 1 ? .stream : .decode, number: UInt8(truncatingIfNeeded: word),
      flowID: area.load(offset, as: UInt64.self), layer: UInt8(truncatingIfNeeded: word >> 16))
  }
}

extension IPAddress {
  fileprivate init?(decoding area: SharedArea, at offset: Int, family: UInt8) {
    let high = area.load(offset, as: UInt64.self)
    let low = area.load(offset + 8, as: UInt64.self)
    switch family {
    case Family.v4.rawValue:
      guard high == 0, let address = UInt32(exactly: low) else { return nil }
      self.init(v4: address)
    case Family.v6.rawValue: self.init(v6High: high, low: low)
    default: return nil
    }
  }
}
