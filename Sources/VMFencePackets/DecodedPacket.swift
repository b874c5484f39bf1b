import VMFenceCore

/// What decoding one frame found: positions and the header fields that every later step needs, in one flat value. Positions are byte
/// offsets from the start of the frame, and each was checked against the frame's length when this value was made: a
/// range given here lies inside the frame, so loads within it cannot fail.
///
/// Made by `DecodedPacket.decode(_:linkType:strippedVLAN:)`, which never throws and never traps: what is wrong with a frame is in
/// `anomalies`, and decoding stops at the layer that is wrong.
public struct DecodedPacket: Sendable, BitwiseCopyable {
  /// Ethernet addresses; zero for link types that have none.
  public var sourceMAC = MACAddress(rawValue: 0)
  public var destinationMAC = MACAddress(rawValue: 0)
  /// The outermost and the next VLAN tag (TCI), the one that the kernel stripped included; `vlanCount` says how many there are.
  public var outerVLAN: UInt16 = 0
  public var innerVLAN: UInt16 = 0
  public var vlanCount: UInt8 = 0
  /// The EtherType after all VLAN tags (0 for raw IP link types is replaced by that of the IP version).
  public var etherType: UInt16 = 0

  /// What the network layer is.
  public var network: NetworkLayer = .none
  /// Where its header begins, and where the datagram ends by its own length field (at most the frame's end).
  public var networkOffset: Int32 = 0
  public var networkEnd: Int32 = 0
  /// The addresses of the datagram, or an ARP packet's sender and target.
  public var source = IPAddress.anyV4
  public var destination = IPAddress.anyV4
  /// The protocol of the transport layer, after IPv6 extension headers.
  public var ipProtocol: UInt8 = 0
  /// TTL or hop limit.
  public var timeToLive: UInt8 = 0
  /// In bytes, from the start of the original datagram's payload. 0 for the first or only fragment.
  public var fragmentOffset: UInt16 = 0
  public var moreFragments: Bool = false
  /// IPv4 identification, or that of the IPv6 fragment header.
  public var fragmentID: UInt32 = 0

  public var transport: TransportLayer = .none
  public var transportOffset: Int32 = 0
  /// Ports, or ICMP type and code. With a transport of `.none` they are 0.
  public var sourcePort: UInt16 = 0
  public var destinationPort: UInt16 = 0
  public var tcpFlags: TCPFlags = []
  public var tcpSequence: UInt32 = 0
  public var tcpAcknowledgement: UInt32 = 0
  public var tcpWindow: UInt16 = 0

  /// The payload of the innermost layer decoded: bytes `payloadOffset` ..< `payloadOffset + payloadLength` of the frame.
  public var payloadOffset: Int32 = 0
  public var payloadLength: Int32 = 0

  public var anomalies: DecodeAnomalies = []

  @inlinable public init() {}

  @inlinable public var isFragment: Bool { moreFragments || fragmentOffset != 0 }
  @inlinable public var icmpType: UInt8 { UInt8(truncatingIfNeeded: sourcePort) }
  @inlinable public var icmpCode: UInt8 { UInt8(truncatingIfNeeded: destinationPort) }
}

public enum NetworkLayer: UInt8, Hashable, Sendable, BitwiseCopyable {
  case none, arp, ipv4, ipv6
}

public enum TransportLayer: UInt8, Hashable, Sendable, BitwiseCopyable {
  case none, tcp, udp, icmp, icmpv6, sctp, other
}

/// The control bits of a TCP header (RFC 9293 §3.1).
public struct TCPFlags: OptionSet, Hashable, Sendable, BitwiseCopyable {
  public var rawValue: UInt8
  @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }
  public static let fin = TCPFlags(rawValue: 0x01)
  public static let syn = TCPFlags(rawValue: 0x02)
  public static let rst = TCPFlags(rawValue: 0x04)
  public static let psh = TCPFlags(rawValue: 0x08)
  public static let ack = TCPFlags(rawValue: 0x10)
  public static let urg = TCPFlags(rawValue: 0x20)
  public static let ece = TCPFlags(rawValue: 0x40)
  public static let cwr = TCPFlags(rawValue: 0x80)
}

/// What decoding found wrong with a frame.
public struct DecodeAnomalies: OptionSet, Hashable, Sendable, BitwiseCopyable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// The frame ends inside its link header, or before the length that an 802.3 header gives.
  public static let truncatedLink = DecodeAnomalies(rawValue: 1 << 0)
  public static let unknownLinkType = DecodeAnomalies(rawValue: 1 << 1)
  public static let tooManyVLANTags = DecodeAnomalies(rawValue: 1 << 2)
  public static let truncatedNetwork = DecodeAnomalies(rawValue: 1 << 3)
  /// The version field disagrees with the EtherType.
  public static let wrongIPVersion = DecodeAnomalies(rawValue: 1 << 4)
  public static let badHeaderLength = DecodeAnomalies(rawValue: 1 << 5)
  /// The datagram's own length is more than was captured (or less than its headers).
  public static let badDatagramLength = DecodeAnomalies(rawValue: 1 << 6)
  /// Never set by decoding, which does not know whether the checksum has been computed: for whoever verified it and wants it kept
  /// with the packet (`verifyChecksums(in:)`).
  public static let badIPv4Checksum = DecodeAnomalies(rawValue: 1 << 7)
  public static let truncatedTransport = DecodeAnomalies(rawValue: 1 << 8)
  public static let badTransportLength = DecodeAnomalies(rawValue: 1 << 9)
  public static let tooManyExtensionHeaders = DecodeAnomalies(rawValue: 1 << 10)
  public static let badExtensionHeader = DecodeAnomalies(rawValue: 1 << 11)
  public static let badARP = DecodeAnomalies(rawValue: 1 << 12)
  /// A fragment that would end beyond the largest datagram, or an IPv6 one that is not the last and whose length is not a multiple
  /// of 8 (RFC 8200 §4.5).
  public static let badFragment = DecodeAnomalies(rawValue: 1 << 13)
  /// A total, payload or UDP length of 0, as segmentation offload leaves it in frames longer than 65,535 bytes between
  /// guests of one host: the end of the enclosing layer was taken. In a frame from a wire it is malformed.
  public static let zeroLengthField = DecodeAnomalies(rawValue: 1 << 14)
  /// An IPv6 routing header with segments left: `destination` is not the final one.
  public static let sourceRouted = DecodeAnomalies(rawValue: 1 << 15)
}
