import VMFenceCore

/// The first 32 bytes of a message in a lane.
struct FrameHeader: Equatable {
  static let byteCount = 32
  static let magic: UInt32 = 0x4746_4D56

  var version: UInt8
  var type: UInt8
  var length: Int
  var checksum: UInt32
  var epoch: UInt64
  var sequence: UInt64

  init(version: UInt8, type: UInt8, length: Int, epoch: UInt64, sequence: UInt64) {
    (self.version, self.type, self.length, self.epoch, self.sequence) = (version, type, length, epoch, sequence)
    checksum = 0
  }

  /// From private memory. Everything that does not depend on the session is checked.
  init(_ bytes: RawSpan) throws(ChannelViolation) {
    guard bytes.byteCount >= Self.byteCount, bytes.u32le(0) == Self.magic else {
      throw ChannelViolation(.header, "no message begins here")
    }
    version = bytes.u8(4)
    type = bytes.u8(5)
    let length = bytes.u32le(8)
    guard bytes.u16le(6) == 0 else { throw ChannelViolation(.header, "unknown flags") }
    guard length <= UInt32(ChannelLayout.payloadLimit) else {
      throw ChannelViolation(
        .header, "a message of \(length) bytes, and \(ChannelLayout.payloadLimit) are the most")
    }
    self.length = Int(length)
    checksum = bytes.u32le(12)
    epoch = bytes.u64le(16)
    sequence = bytes.u64le(24)
  }

  /// With the payload, padded to words.
  var paddedLength: Int { Self.byteCount + (length + 7) & ~7 }

  /// The header's bytes; the checksum is that of the header with zero in its place, and of the payload.
  static func encode(_ header: FrameHeader, _ payload: [UInt8]) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(header.paddedLength)
    bytes.append(little: magic)
    bytes += [header.version, header.type, 0, 0]
    bytes.append(little: UInt32(payload.count))
    bytes.append(little: UInt32(0))
    bytes.append(little: header.epoch)
    bytes.append(little: header.sequence)
    bytes += payload
    var checksum: [UInt8] = []
    checksum.append(little: CRC32C.checksum(bytes))
    bytes.replaceSubrange(12..<16, with: checksum)
    while bytes.count % 8 != 0 { bytes.append(0) }
    return bytes
  }

  /// Whether a whole message in private memory is what its header says, padding included.
  func matches(_ bytes: [UInt8]) -> Bool {
    let end = Self.byteCount + length
    guard bytes.count == paddedLength, bytes[end...].allSatisfy({ $0 == 0 }) else { return false }
    var crc = CRC32C()
    crc.update(bytes[..<12])
    crc.update(zeroes: 4)
    crc.update(bytes[16..<end])
    return crc.value == checksum
  }
}
