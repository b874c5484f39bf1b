import VMFenceCore

/// ICMP, ICMPv6 and IGMP.
extension DecodedPacket {
  /// RFC 792: type, code, checksum, and four bytes whose meaning is the type's.
  mutating func decodeICMP(_ bytes: RawSpan, _ layer: Layer) {
    guard readControlHeader(bytes, layer, as: .icmp, .icmpPacketTooSmall) else { return }
    // The highest code of each type that is assigned (IANA), and whether the message quotes a datagram.
    var highest: UInt8 = 0
    var quotes = false
    switch icmpType {
    case 0, 8, 10, 13...18: break
    case 3: (highest, quotes) = (15, true)
    case 4: quotes = true
    case 5: (highest, quotes) = (3, true)
    // Router advertisements: 0, or 16 for a router that forwards nothing else (RFC 5944).
    case 9: highest = icmpCode == 16 ? 16 : 0
    case 11: (highest, quotes) = (1, true)
    case 12: (highest, quotes) = (2, true)
    default:
      events.insert(.icmpUnknownType)
      return
    }
    guard icmpCode <= highest else {
      events.insert(.icmpUnknownCode)
      return
    }
    let quote = layer.offset + 8
    guard quotes, quote < layer.end, !isFragment else { return }
    if layer.end - quote < 20 {
      events.insert(.icmpQuoteTruncated)
    } else if bytes.u8(quote) >> 4 != 4 {
      events.insert(.icmpQuoteVersion)
    }
  }

  /// RFC 4443, and the messages of RFC 2710, 4861 and 4890.
  mutating func decodeICMPv6(_ bytes: RawSpan, _ layer: Layer) {
    guard readControlHeader(bytes, layer, as: .icmpv6, .icmpv6PacketTooSmall) else { return }
    var highest: UInt8 = 0
    var quotes = false
    switch icmpType {
    case 1: (highest, quotes) = (7, true)
    case 2: quotes = true
    case 3: (highest, quotes) = (1, true)
    case 4: (highest, quotes) = (3, true)
    case 128, 129, 133...137: break
    case 130...132:
      // RFC 2710 §3.
      if timeToLive != 1 { events.insert(.icmpv6ListenerHopLimit) }
    // Each with codes of its own.
    case 138...153, 155, 157...159: return
    case 100, 101, 200, 201:
      events.insert(.icmpv6ExperimentalType)
      return
    case 5...99, 102...126, 160...199, 202...254:
      events.insert(.icmpv6UnassignedType)
      return
    default:
      events.insert(.icmpv6UnknownType)
      return
    }
    guard icmpCode <= highest else {
      events.insert(.icmpv6UnknownCode)
      return
    }
    let quote = layer.offset + 8
    guard quotes, quote < layer.end, !isFragment else { return }
    if layer.end - quote < 40 {
      events.insert(.icmpv6QuoteTruncated)
    } else if bytes.u8(quote) >> 4 != 6 {
      events.insert(.icmpv6QuoteVersion)
    }
  }

  private mutating func readControlHeader(
    _ bytes: RawSpan, _ layer: Layer, as kind: TransportLayer, _ tooSmall: DecodeEvent
  ) -> Bool {
    guard layer.end - layer.offset >= 8 else {
      flag(.truncatedTransport, tooSmall)
      return false
    }
    transport = kind
    sourcePort = UInt16(bytes.u8(layer.offset))
    destinationPort = UInt16(bytes.u8(layer.offset + 1))
    setPayload(from: layer.offset + 8, to: layer.end)
    return true
  }

  /// IGMP (RFC 1112, 2236, 3376): eight bytes, and in version 3 the sources of a query or the records of a report, which belong to the
  /// header. False when it is malformed.
  mutating func checkGroupMessage(_ bytes: RawSpan, _ layer: Layer) -> Bool {
    let start = layer.offset
    guard layer.end - start >= 8 else {
      flag(.truncatedTransport, .igmpTooSmall)
      return false
    }
    // The sources and records of a fragmented message lie in other fragments too.
    guard !isFragment else { return true }
    var offset = start + 8
    switch bytes.u8(start) {
    case 0x11 where layer.end - start >= 12:
      offset = start + 12 + 4 * Int(bytes.u16(start + 10))
      guard offset <= layer.end else {
        flag(.badTransportLength, .igmp3TooSmall)
        return false
      }
    case 0x22:
      for _ in 0..<bytes.u16(start + 6) {
        guard layer.end - offset >= 8 else {
          flag(.badTransportLength, .igmp3TooSmall)
          return false
        }
        // A record: type, length of its auxiliary data in words, number of sources, group; sources; auxiliary data.
        offset += 8 + 4 * (Int(bytes.u8(offset + 1)) + Int(bytes.u16(offset + 2)))
        guard offset <= layer.end else {
          flag(.badTransportLength, .igmpMalformed)
          return false
        }
      }
    default: break
    }
    setPayload(from: offset, to: layer.end)
    return true
  }
}
