import VMFenceCore

/// The Internet checksum (RFC 1071).
public enum Checksum {
  /// The checksum of `offset ..< offset + count`: what its field holds when these bytes are summed with the field as zero, and 0 when they
  /// are summed with a right one in place.
  ///
  /// - Precondition: the range lies inside `bytes`.
  @inlinable
  public static func internet(_ bytes: RawSpan, from offset: Int, count: Int) -> UInt16 {
    ~fold(sum(bytes, from: offset, count: count)).byteSwapped
  }

  @inlinable
  public static func internet(_ bytes: RawSpan) -> UInt16 { internet(bytes, from: 0, count: bytes.byteCount) }

  /// The one's-complement sum of little-endian words, 8 bytes at a time (more where the compiler vectorises it): the sum does not depend on the byte order but for the
  /// order of its own bytes (RFC 1071 §2 B), so it is swapped once at the end.
  @inlinable
  static func sum(_ bytes: RawSpan, from offset: Int, count: Int, adding start: UInt64 = 0) -> UInt64 {
    precondition(offset >= 0 && count >= 0 && count <= bytes.byteCount - offset, "a range outside of the bytes")
    // Two sums of 32-bit halves: no carries to take along, and 2^32 words before one could overflow.
    var low = start & 0xFFFF_FFFF
    var high = start >> 32
    var position = offset
    let end = offset + count
    while position <= end - 8 {
      // SAFETY: position + 8 <= end, which the precondition put inside the bytes; every bit pattern is a UInt64.
      let word = UInt64(
        littleEndian: unsafe bytes.unsafeLoadUnaligned(fromUncheckedByteOffset: position, as: UInt64.self))
      low &+= word & 0xFFFF_FFFF
      high &+= word >> 32
      position &+= 8
    }
    if position <= end - 4 {
      low &+= UInt64(bytes.u32le(position))
      position += 4
    }
    if position <= end - 2 {
      low &+= UInt64(bytes.u16le(position))
      position += 2
    }
    if position < end { low &+= UInt64(bytes.u8(position)) }
    // Both are below 2^63 for any range that exists; 2^32 is 1 in one's complement of 16 bits.
    return (low & 0xFFFF_FFFF) &+ (low >> 32) &+ (high & 0xFFFF_FFFF) &+ (high >> 32)
  }

  /// A sum folded to 16 bits.
  @inlinable
  static func fold(_ sum: UInt64) -> UInt16 {
    var value = (sum & 0xFFFF_FFFF) &+ (sum >> 32)
    value = (value & 0xFFFF) &+ (value >> 16)
    value = (value & 0xFFFF) &+ (value >> 16)
    value = (value & 0xFFFF) &+ (value >> 16)
    return UInt16(truncatingIfNeeded: value)
  }
}

/// What verifying a packet's checksums found.
public enum ChecksumVerdict: UInt8, Hashable, Sendable, BitwiseCopyable {
  /// All of them are right, or the sender was free to leave one out and did (UDP over IPv4).
  case correct
  /// The IPv4 header's is wrong: every host drops the packet.
  case badNetwork
  /// That of TCP, UDP, ICMP or ICMPv6 is wrong: the receiver drops the packet.
  case badTransport
  /// There is none that could be checked: a fragment, a datagram that was not captured whole, another protocol. An IPv4 header
  /// was right.
  case unverifiable
}

extension DecodedPacket {
  /// Verifies the checksums of IPv4 (RFC 791), TCP (RFC 9293), UDP (RFC 768, RFC 8200 §8.1), ICMP (RFC 792) and ICMPv6 (RFC 4443).
  ///
  /// Only for frames whose checksums have been computed (`ChecksumState`): between guests of one host they often
  /// have not.
  ///
  /// `bytes`: the frame that this packet was decoded from.
  public func verifyChecksums(in bytes: RawSpan) -> ChecksumVerdict {
    let start = Int(networkOffset)
    guard network == .ipv4 || network == .ipv6, Int(networkEnd) <= bytes.byteCount else { return .unverifiable }
    if network == .ipv4 {
      let headerLength = Int(bytes.u8(start) & 0x0F) * 4
      guard Checksum.internet(bytes, from: start, count: headerLength) == 0 else { return .badNetwork }
    }
    let unverifiable: DecodeAnomalies = [.badDatagramLength, .zeroLengthField, .sourceRouted]
    guard !isFragment, anomalies.isDisjoint(with: unverifiable) else { return .unverifiable }

    let offset = Int(transportOffset)
    let end = transport == .udp ? Int(payloadOffset) + Int(payloadLength) : Int(networkEnd)
    let length = end - offset
    switch transport {
    case .icmp:
      return Checksum.internet(bytes, from: offset, count: length) == 0 ? .correct : .badTransport
    case .udp where bytes.u16(offset + 6) == 0:
      return network == .ipv4 ? .correct : .badTransport
    case .tcp, .udp, .icmpv6:
      // The pseudo-header: both addresses, the length, the protocol.
      let (addresses, count) = network == .ipv4 ? (start + 12, 8) : (start + 8, 32)
      var sum = Checksum.sum(bytes, from: addresses, count: count)
      sum &+= UInt64(UInt32(truncatingIfNeeded: length).byteSwapped) &+ UInt64(UInt16(ipProtocol).byteSwapped)
      sum = Checksum.sum(bytes, from: offset, count: length, adding: sum)
      return Checksum.fold(sum) == 0xFFFF ? .correct : .badTransport
    case .none, .sctp, .other:
      return .unverifiable
    }
  }
}
