import VMFencePackets

/// What a host's IP layer throws away, so that no connection gets it.
extension DecodedPacket {
  /// Whether a host takes the datagram: one that is source-routed, as hosts are set up everywhere, or whose IPv4 options are malformed, none does.
  ///
  /// - `sidesKnown`: seen at its receiver. Elsewhere an IPv6 datagram may have to go by other addresses yet.
  @inline(__always)
  func isTaken(_ bytes: RawSpan, sidesKnown: Bool) -> Bool {
    if network == .ipv4 { return bytes.u8(Int(networkOffset)) & 0x0F == 5 || takesOptions(bytes) }
    return !(sidesKnown && anomalies.contains(.sourceRouted))
  }

  /// The options of IPv4 (RFC 791 §3.1) as RFC 1812 §4.2.2.1 and §5.2.4.1 have hosts and routers read them. Only what each host refuses counts, not
  /// all that `DecodeEvent` tells of: more would let a sender hide what hosts take.
  private func takesOptions(_ bytes: RawSpan) -> Bool {
    let end = Int(networkOffset) + Int(bytes.u8(Int(networkOffset)) & 0x0F) * 4
    var offset = Int(networkOffset) + 20
    var hasRecord = false
    var hasTime = false
    while offset < end {
      let kind = bytes.u8(offset)
      if kind == 0 { return true }
      if kind == 1 {
        offset += 1
        continue
      }
      guard end - offset >= 2 else { return false }
      let length = Int(bytes.u8(offset + 1))
      guard length >= 2, length <= end - offset else { return false }
      switch kind {
      // Loose and strict source routes.
      case 0x83, 0x89: return false
      case 0x07:
        guard !hasRecord, length >= 3, Self.hasRoom(bytes.u8(offset + 2), 4, 3, length) else { return false }
        hasRecord = true
      case 0x44:
        guard !hasTime, length >= 4 else { return false }
        let form = bytes.u8(offset + 3) & 0x0F
        guard Self.hasRoom(bytes.u8(offset + 2), 5, form == 1 || form == 3 ? 7 : 3, length) else { return false }
        hasTime = true
      default: break
      }
      offset += length
    }
    return true
  }

  /// Whether a pointer, which counts from 1, is at `first` or behind it, and has room for a record that ends `rest` bytes further, or none is left.
  private static func hasRoom(_ pointer: UInt8, _ first: Int, _ rest: Int, _ length: Int) -> Bool {
    Int(pointer) >= first && (Int(pointer) > length || Int(pointer) + rest <= length)
  }
}
