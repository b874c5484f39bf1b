import VMFenceCore

// Headers read whole: lengths are checked once, by the initialiser, after which no property can fail. `DecodedPacket` has what
// every packet needs; these are for what only some look at.

/// Why bytes are not the header that they were taken for.
public struct HeaderError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    public static let truncated = Code("truncated")
    public static let badLength = Code("bad-length")
    public static let wrongVersion = Code("wrong-version")
    /// An address type other than the one that is read.
    public static let unsupported = Code("unsupported")
  }

  public var code: Code
  /// The header: `IPv4`, `ARP` …
  public var header: String
  public init(_ code: Code, in header: String) {
    self.code = code
    self.header = header
  }

  public var message: String { "no \(header) header: \(code.name)" }
  public var place: SourcePlace? { nil }
  public var remedy: String { "" }

  static func require(_ count: Int, of bytes: RawSpan, at offset: Int, _ header: String) throws(HeaderError) {
    guard offset >= 0, offset <= bytes.byteCount, bytes.byteCount - offset >= count else {
      throw HeaderError(.truncated, in: header)
    }
  }
}

/// ARP for Ethernet and IPv4 (RFC 826).
public struct ARPHeader: Hashable, Sendable, BitwiseCopyable {
  /// 1 request, 2 reply.
  public let operation: UInt16
  public let senderMAC: MACAddress
  public let sender: IPAddress
  public let targetMAC: MACAddress
  public let target: IPAddress

  public init(_ bytes: RawSpan, at offset: Int) throws(HeaderError) {
    try HeaderError.require(28, of: bytes, at: offset, "ARP")
    guard bytes.u32(offset) == 0x0001_0800, bytes.u16(offset + 4) == 0x0604 else {
      throw HeaderError(.unsupported, in: "ARP")
    }
    operation = bytes.u16(offset + 6)
    senderMAC = bytes.macAddress(offset + 8)
    sender = IPAddress(v4: bytes.u32(offset + 14))
    targetMAC = bytes.macAddress(offset + 18)
    target = IPAddress(v4: bytes.u32(offset + 24))
  }
}

/// RFC 791 §3.1.
public struct IPv4Header: Hashable, Sendable, BitwiseCopyable {
  /// Type of service: DSCP and ECN (RFC 2474, RFC 3168).
  public let typeOfService: UInt8
  public let totalLength: UInt16
  public let identification: UInt16
  public let isReservedBitSet: Bool
  public let dontFragment: Bool
  public let moreFragments: Bool
  /// In bytes.
  public let fragmentOffset: UInt16
  public let timeToLive: UInt8
  public let ipProtocol: UInt8
  public let source: IPAddress
  public let destination: IPAddress
  /// In bytes, 20...60.
  public let headerLength: Int
  /// The options, in order.
  public let options: OptionCursor

  public init(_ bytes: RawSpan, at offset: Int) throws(HeaderError) {
    try HeaderError.require(20, of: bytes, at: offset, "IPv4")
    guard bytes.u8(offset) >> 4 == 4 else { throw HeaderError(.wrongVersion, in: "IPv4") }
    headerLength = Int(bytes.u8(offset) & 0x0F) * 4
    guard headerLength >= 20 else { throw HeaderError(.badLength, in: "IPv4") }
    try HeaderError.require(headerLength, of: bytes, at: offset, "IPv4")
    typeOfService = bytes.u8(offset + 1)
    totalLength = bytes.u16(offset + 2)
    identification = bytes.u16(offset + 4)
    let fragment = bytes.u16(offset + 6)
    isReservedBitSet = fragment & 0x8000 != 0
    dontFragment = fragment & 0x4000 != 0
    moreFragments = fragment & 0x2000 != 0
    fragmentOffset = (fragment & 0x1FFF) * 8
    timeToLive = bytes.u8(offset + 8)
    ipProtocol = bytes.u8(offset + 9)
    source = IPAddress(v4: bytes.u32(offset + 12))
    destination = IPAddress(v4: bytes.u32(offset + 16))
    options = OptionCursor(offset: offset + 20, end: offset + headerLength)
  }
}

/// RFC 8200 §3.
public struct IPv6Header: Hashable, Sendable, BitwiseCopyable {
  public let trafficClass: UInt8
  /// 20 bits.
  public let flowLabel: UInt32
  public let payloadLength: UInt16
  public let nextHeader: UInt8
  public let hopLimit: UInt8
  public let source: IPAddress
  public let destination: IPAddress

  public init(_ bytes: RawSpan, at offset: Int) throws(HeaderError) {
    try HeaderError.require(40, of: bytes, at: offset, "IPv6")
    let first = bytes.u32(offset)
    guard first >> 28 == 6 else { throw HeaderError(.wrongVersion, in: "IPv6") }
    trafficClass = UInt8(truncatingIfNeeded: first >> 20)
    flowLabel = first & 0xF_FFFF
    payloadLength = bytes.u16(offset + 4)
    nextHeader = bytes.u8(offset + 6)
    hopLimit = bytes.u8(offset + 7)
    source = IPAddress(v6High: bytes.u64(offset + 8), low: bytes.u64(offset + 16))
    destination = IPAddress(v6High: bytes.u64(offset + 24), low: bytes.u64(offset + 32))
  }
}

/// RFC 9293 §3.1.
public struct TCPHeader: Hashable, Sendable, BitwiseCopyable {
  public let sourcePort: UInt16
  public let destinationPort: UInt16
  public let sequence: UInt32
  public let acknowledgement: UInt32
  public let flags: TCPFlags
  public let window: UInt16
  public let checksum: UInt16
  public let urgentPointer: UInt16
  /// In bytes, 20...60.
  public let headerLength: Int
  /// The options, in order.
  public let options: OptionCursor

  public init(_ bytes: RawSpan, at offset: Int) throws(HeaderError) {
    try HeaderError.require(20, of: bytes, at: offset, "TCP")
    headerLength = Int(bytes.u8(offset + 12) >> 4) * 4
    guard headerLength >= 20 else { throw HeaderError(.badLength, in: "TCP") }
    try HeaderError.require(headerLength, of: bytes, at: offset, "TCP")
    sourcePort = bytes.u16(offset)
    destinationPort = bytes.u16(offset + 2)
    sequence = bytes.u32(offset + 4)
    acknowledgement = bytes.u32(offset + 8)
    flags = TCPFlags(rawValue: bytes.u8(offset + 13))
    window = bytes.u16(offset + 14)
    checksum = bytes.u16(offset + 16)
    urgentPointer = bytes.u16(offset + 18)
    options = OptionCursor(offset: offset + 20, end: offset + headerLength)
  }
}

/// The eight bytes that ICMP (RFC 792) and ICMPv6 (RFC 4443) messages begin with.
public struct ICMPHeader: Hashable, Sendable, BitwiseCopyable {
  public let type: UInt8
  public let code: UInt8
  public let checksum: UInt16
  /// Of echo messages; for others the two halves of a word whose meaning is the type's.
  public let identifier: UInt16
  public let sequence: UInt16

  public init(_ bytes: RawSpan, at offset: Int) throws(HeaderError) {
    try HeaderError.require(8, of: bytes, at: offset, "ICMP")
    type = bytes.u8(offset)
    code = bytes.u8(offset + 1)
    checksum = bytes.u16(offset + 2)
    identifier = bytes.u16(offset + 4)
    sequence = bytes.u16(offset + 6)
  }
}

/// Walks the options of an IPv4 or TCP header, which share one form: kind 0 ends, kind 1 is one byte, every other kind has a length
/// byte that counts kind and length too. At most 40 steps.
public struct OptionCursor: Hashable, Sendable, BitwiseCopyable {
  private var offset: Int32
  private let end: Int32
  /// A length was less than 2 or reached beyond the header; the walk ended there.
  public private(set) var isMalformed = false

  /// The range was checked by whoever makes the cursor.
  init(offset: Int, end: Int) {
    self.offset = Int32(clamping: offset)
    self.end = Int32(clamping: end)
  }

  /// The next option, or nil at the end of the list.
  ///
  /// `bytes`: the frame that the header was read from.
  public mutating func next(in bytes: RawSpan) -> HeaderOption? {
    guard offset < end else { return nil }
    let kind = bytes.u8(Int(offset))
    switch kind {
    case 0:
      offset = end
      return nil
    case 1:
      offset += 1
      return HeaderOption(kind: 1, offset: offset, length: 0)
    default:
      let length = end - offset >= 2 ? Int32(bytes.u8(Int(offset) + 1)) : 0
      guard length >= 2, length <= end - offset else {
        isMalformed = true
        offset = end
        return nil
      }
      defer { offset += length }
      return HeaderOption(kind: kind, offset: offset + 2, length: length - 2)
    }
  }
}

/// One option of an IPv4 or TCP header.
public struct HeaderOption: Hashable, Sendable, BitwiseCopyable {
  public let kind: UInt8
  /// Where its data lies in the frame, kind and length left out.
  public let offset: Int32
  public let length: Int32
}
