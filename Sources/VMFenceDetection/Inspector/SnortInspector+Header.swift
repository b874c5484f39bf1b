import VMFenceCore
import VMFencePackets

/// Tests of headers and sizes.
extension SnortInspector {
  /// `size`: of the payload, in bytes.
  func headerMatches(
    _ kind: HeaderKind, _ option: Int, _ match: borrowing PacketMatch, _ size: Int, _ frame: RawSpan, _ image: RawSpan
  ) -> Bool {
    let small1 = image.u8(option + OptionRecord.small1)
    let small2 = image.u8(option + OptionRecord.small2)
    switch kind {
    case .tcpFlags:
      let ignored = UInt8(truncatingIfNeeded: image.u32le(OptionRecord.word(option, 0)))
      return match.isTCP && Self.flagsMatch(small1, match.packet.tcpFlags.rawValue & ~ignored, small2)
    case .payloadSize: return NumberRecord.matches(option, UInt64(size), image)
    case .field:
      guard let field = HeaderField(rawValue: small1), small2 == 0 || !match.packet.isTunnel else { return false }
      return fieldMatches(field, option, match, frame, image)
    case .fragmentBits:
      guard let bits = match.fragmentBits(frame) else { return false }
      return Self.flagsMatch(small1, bits, small2)
    case .ipOption: return match.hasIPOption(small2 == 0 ? small1 : nil, frame)
    case .sameAddress: return match.packet.source == match.packet.destination
    case .checksum:
      guard let header = ChecksummedHeader(rawValue: small1), let isValid = match.checksumIsValid(header, frame) else {
        return false
      }
      // What nobody verifies counts as right.
      return (isValid || !match.verifiesChecksums)
        == (image.u8(option + OptionRecord.flags) & OptionRecord.isNegated == 0)
    case .network: return match.packet.network == (small1 == 6 ? .ipv6 : .ipv4)
    case .vlan: return Self.vlanMatches(small1, option, match, image)
    case .decodeEvent:
      guard !match.isStream, !match.packet.events.isEmpty else { return false }
      return EventRecord.contains(option, image) {
        DecodeEvent(rawValue: $0).map(match.packet.events.contains) ?? false
      }
    }
  }

  private func fieldMatches(
    _ field: HeaderField, _ option: Int, _ match: borrowing PacketMatch, _ frame: RawSpan, _ image: RawSpan
  ) -> Bool {
    switch field {
    case .packetNumber: return NumberRecord.matches(option, counters.packets, image)
    case .sctpChunkType:
      guard match.isSCTP else { return false }
      var chunks = SCTPChunks(match.packet)
      while let chunk = chunks.next(in: frame) {
        if NumberRecord.matches(option, UInt64(chunk.type), image) { return true }
      }
      return false
    default:
      guard let value = match.value(of: field, in: frame) else { return false }
      return NumberRecord.matches(option, value, image)
    }
  }

  private static func flagsMatch(_ mode: UInt8, _ set: UInt8, _ wanted: UInt8) -> Bool {
    switch TCPFlagsTest.Mode(rawValue: mode) {
    case .exactly: set == wanted
    case .all: set & wanted == wanted
    case .any: set & wanted != 0
    case .some(.none): set & wanted == 0
    case .notAll: set & wanted != wanted
    case nil: false
    }
  }

  private static func vlanMatches(_ layer: UInt8, _ option: Int, _ match: borrowing PacketMatch, _ image: RawSpan)
    -> Bool
  {
    func matches(_ tag: Int) -> Bool { match.vlan(tag).map { NumberRecord.matches(option, $0, image) } ?? false }
    switch layer {
    case HeaderKind.anyTag: return matches(0) || matches(1)
    case HeaderKind.allTags: return matches(0) && (match.vlan(1) == nil || matches(1))
    default: return matches(Int(Int8(bitPattern: layer)))
    }
  }
}
