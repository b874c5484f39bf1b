import VMFenceCore
import VMFencePackets

/// Tests of headers and sizes.
extension SnortInspector {
  /// `size`: of the payload, in bytes.
  static func headerMatches(
    _ kind: HeaderKind, _ option: Int, _ match: PacketMatch, _ size: Int, _ frame: RawSpan, _ image: RawSpan
  ) -> Bool {
    let transport = match.hasTransport ? match.packet.transport : .none
    let isICMP = transport == .icmp || transport == .icmpv6
    return switch kind {
    case .tcpFlags: transport == .tcp && flagsMatch(option, match.packet.tcpFlags.rawValue, image)
    case .payloadSize: numberMatches(option, UInt32(clamping: size), image)
    case .icmpType: isICMP && numberMatches(option, UInt32(match.packet.icmpType), image)
    case .icmpCode: isICMP && numberMatches(option, UInt32(match.packet.icmpCode), image)
    }
  }

  private static func flagsMatch(_ option: Int, _ flags: UInt8, _ image: RawSpan) -> Bool {
    let wanted = image.u8(option + OptionRecord.small2)
    let set = flags & ~UInt8(truncatingIfNeeded: image.u32le(OptionRecord.word(option, 0)))
    return switch TCPFlagsTest.Mode(rawValue: image.u8(option + OptionRecord.small1)) {
    case .exactly: set == wanted
    case .all: set & wanted == wanted
    case .any: set & wanted != 0
    case .some(.none): set & wanted == 0
    case .notAll: set & wanted != wanted
    case nil: false
    }
  }

  static func numberMatches(_ option: Int, _ value: UInt32, _ image: RawSpan) -> Bool {
    let isInside =
      image.u32le(OptionRecord.word(option, 0)) <= value && value <= image.u32le(OptionRecord.word(option, 1))
    return isInside != (image.u8(option + OptionRecord.flags) & OptionRecord.isNegated != 0)
  }
}
