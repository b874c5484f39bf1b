import VMFenceCore
import VMFencePackets

extension ImageValidator {
  static func validate(
    _ kind: HeaderKind, _ record: Int, _ bytes: RawSpan
  ) throws(RuleCompilationError) {
    let small = bytes.u8(record + OptionRecord.small1)
    switch kind {
    case .tcpFlags, .fragmentBits:
      try require(TCPFlagsTest.Mode(rawValue: small) != nil, "how flags are compared")
    case .field: try require(HeaderField(rawValue: small) != nil, "the field of a header")
    case .checksum: try require(ChecksummedHeader(rawValue: small) != nil, "the header of a checksum")
    case .network: try require(small == 4 || small == 6, "the version of IP")
    case .decodeEvent:
      try require(
        EventRecord.isValid(record, bytes) { DecodeEvent(rawValue: $0) != nil }, "an event of decoding")
    case .payloadSize, .ipOption, .sameAddress, .vlan: break
    }
  }
}
