import VMFenceCore

/// Extension headers of IPv6, and the authentication header, which IPv4 has too.
extension DecodedPacket {
  /// More extension headers are told of. RFC 8200 §4.1 has reason for 7; hosts take as many as fit.
  static let extensionHeaderLimit = 16

  /// The kinds of headers met so far in one datagram.
  private struct Seen: OptionSet {
    var rawValue: UInt8
    static let routing = Seen(rawValue: 1)
    static let hopByHop = Seen(rawValue: 2)
    static let destination = Seen(rawValue: 4)
    /// The order of RFC 8200 §4.1 has it twice: before a routing header, and last.
    static let destinationAgain = Seen(rawValue: 8)
    static let authentication = Seen(rawValue: 16)
    static let fragment = Seen(rawValue: 32)
  }

  /// Passes over extension headers (RFC 8200 §4, and the later ones of RFC 6275, 7401, 5533); in IPv4 only the authentication header
  /// (RFC 4302). Returns whether decoding can go on at `layer`. One too many of a kind, or in the wrong place, is told and passed over:
  /// what a host makes of it differs. Each is 8 bytes long at least, so a datagram bounds how many there are. ESP is not looked into: its content
  /// is encrypted.
  mutating func skipExtensionHeaders(_ bytes: RawSpan, _ layer: inout Layer, inIPv6: Bool) -> Bool {
    var count = 0
    var seen: Seen = []
    while let length = extensionLength(bytes, layer, inIPv6: inIPv6) {
      if count == Self.extensionHeaderLimit { flag(.tooManyExtensionHeaders, .tooManyLayers) }
      guard length <= layer.end - layer.offset else {
        flag(.badExtensionHeader, .ipv6ExtensionTruncated)
        return false
      }
      let header = layer.ipProtocol
      let start = layer.offset
      layer.ipProtocol = bytes.u8(start)
      layer.offset += length
      ipProtocol = layer.ipProtocol
      setPayload(from: layer.offset, to: layer.end)
      if header == IPProtocol.fragment {
        if !decodeFragmentHeader(bytes, at: start, layer, &seen) { return false }
      } else {
        note(header, bytes, at: start, length: length, isFirst: count == 0, &seen)
      }
      count += 1
    }
    // Whatever follows has two bytes at least.
    if inIPv6, count > 0, layer.ipProtocol != IPProtocol.none, layer.end - layer.offset < 2, !isFragment {
      flag(.badExtensionHeader, .ipv6ExtensionTruncated)
      return false
    }
    if inIPv6, layer.ipProtocol == IPProtocol.none, layer.offset < layer.end { events.insert(.ipv6DataAfterNone) }
    return true
  }

  /// In bytes; nil when the next header is no extension header.
  private func extensionLength(_ bytes: RawSpan, _ layer: Layer, inIPv6: Bool) -> Int? {
    switch layer.ipProtocol {
    case IPProtocol.authentication:
      // In units of 4 bytes, less 2; at least its fixed part of 12 bytes.
      guard layer.end - layer.offset >= 2 else { return 12 }
      return Swift.max(12, (Int(bytes.u8(layer.offset + 1)) + 2) * 4)
    case IPProtocol.fragment where inIPv6: return 8
    case IPProtocol.hopByHop where inIPv6, IPProtocol.routing where inIPv6,
      IPProtocol.destinationOptions where inIPv6, IPProtocol.mobility where inIPv6,
      IPProtocol.hostIdentity where inIPv6, IPProtocol.shim6 where inIPv6:
      return layer.end - layer.offset < 2 ? 8 : (Int(bytes.u8(layer.offset + 1)) + 1) * 8
    default: return nil
    }
  }

  /// `length`: that of the header, which lies within the datagram.
  private mutating func note(
    _ header: UInt8, _ bytes: RawSpan, at start: Int, length: Int, isFirst: Bool, _ seen: inout Seen
  ) {
    switch header {
    case IPProtocol.routing:
      if bytes.u8(start + 3) != 0 { anomalies.insert(.sourceRouted) }
      guard seen.insert(.routing).inserted else { return flag(.badExtensionHeader, .ipv6RoutingTwice) }
      // Deprecated by RFC 5095.
      if bytes.u8(start + 2) == 0 { events.insert(.ipv6RoutingType0) }
    case IPProtocol.hopByHop:
      // RFC 8200 §4.1: directly after the IPv6 header only.
      if !isFirst { anomalies.insert(.badExtensionHeader) }
      guard seen.insert(.hopByHop).inserted else { return flag(.badExtensionHeader, .ipv6HopByHopTwice) }
      checkOptions(bytes, from: start + 2, to: start + length, .ipv6HopByHopUnknownOption, .ipv6HopByHopOnlyPadding)
    case IPProtocol.destinationOptions:
      if !seen.insert(.destination).inserted, !seen.insert(.destinationAgain).inserted {
        return flag(.badExtensionHeader, .ipv6DestinationOptionsTwice)
      }
      checkOptions(
        bytes, from: start + 2, to: start + length, .ipv6DestinationUnknownOption, .ipv6DestinationOnlyPadding)
    case IPProtocol.authentication:
      if network == .ipv6, bytes.u16(start + 2) != 0 { events.insert(.ipv6AuthenticationReserved) }
      if !seen.insert(.authentication).inserted { flag(.badExtensionHeader, .ipv6AuthenticationTwice) }
    default: break
    }
  }

  /// The options of a hop-by-hop or destination options header (RFC 8200 §4.2).
  private mutating func checkOptions(
    _ bytes: RawSpan, from start: Int, to end: Int, _ unknown: DecodeEvent, _ onlyPadding: DecodeEvent
  ) {
    var offset = start
    var hasPadding = false
    var hasOther = false
    while offset < end {
      let type = bytes.u8(offset)
      if type == 0 {
        hasPadding = true
        offset += 1
        continue
      }
      guard end - offset >= 2, Int(bytes.u8(offset + 1)) <= end - offset - 2 else {
        flag(.badExtensionHeader, .ipv6OptionLength)
        return
      }
      let length = bytes.u8(offset + 1)
      // What the known options hold at least: router alert (RFC 2711), jumbo payload (RFC 2675), home address (RFC 6275).
      var least: UInt8 = 0
      switch type {
      case 0x01:
        hasPadding = true
        if length == 0 { events.insert(.ipv6EmptyPadding) }
      case 0x05: (least, hasOther) = (2, true)
      case 0xC2: (least, hasOther) = (4, true)
      case 0xC9: (least, hasOther) = (16, true)
      default:
        hasOther = true
        events.insert(unknown)
      }
      guard length >= least else {
        flag(.badExtensionHeader, .ipv6OptionLength)
        return
      }
      offset += 2 + Int(length)
    }
    if hasPadding, !hasOther { events.insert(onlyPadding) }
  }

  /// RFC 8200 §4.5. Returns whether what follows is the beginning of the datagram.
  private mutating func decodeFragmentHeader(
    _ bytes: RawSpan, at start: Int, _ layer: Layer, _ seen: inout Seen
  ) -> Bool {
    if bytes.u8(start + 1) != 0 { events.insert(.ipv6FragmentReserved) }
    guard seen.insert(.fragment).inserted else {
      flag(.badExtensionHeader, .ipv6FragmentHeaderTwice)
      return !isFragment
    }
    let field = bytes.u16(start + 2)
    fragmentOffset = field & 0xFFF8
    moreFragments = field & 1 != 0
    fragmentID = bytes.u32(start + 4)
    // An atomic fragment (RFC 6946).
    if !isFragment { events.insert(.ipv6FragmentHeaderUseless) }
    let length = layer.declaredEnd - layer.offset
    if Int(fragmentOffset) + length > 0xFFFF { flag(.badFragment, .ipv6FragmentsTooLarge) }
    if moreFragments, length % 8 != 0 { flag(.badFragment, .ipv6FragmentLength) }
    return fragmentOffset == 0
  }
}
