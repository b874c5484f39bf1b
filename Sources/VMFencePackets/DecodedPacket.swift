import VMFenceCore

/// What decoding one frame found: positions and the header fields that every later step needs, in one flat value. Positions are byte
/// offsets from the start of the frame, and each was checked against the frame's length when this value was made: a
/// range given here lies inside the frame, so loads within it cannot fail. The value is about 150 bytes long: hand it on as `borrowing`
/// or `inout`, a copy costs as much as decoding did.
///
/// Made by `DecodedPacket.decode(_:linkType:strippedVLAN:settings:)`, which never throws and never traps: what is wrong with a frame is
/// in `anomalies` (by kind, for those who go on with it) and in `events` (by the names that rules have), and decoding stops at the
/// layer that is wrong.
///
/// What a tunnel carries is a packet of its own: `enterTunnel(_:settings:)` makes this value that packet, in the same frame.
/// VLAN tags, MPLS labels, PPPoE and their like are no tunnels: the packet begins after them.
public struct DecodedPacket: Sendable, BitwiseCopyable {
  // In an order that leaves no gaps: what is made for each packet is cleared with a few wide stores.

  /// Ethernet addresses; zero for link types that have none.
  public var sourceMAC = MACAddress(rawValue: 0)
  public var destinationMAC = MACAddress(rawValue: 0)

  /// The addresses of the datagram, or an ARP packet's sender and target.
  public var source = IPAddress(v4: 0)
  /// The protocol of the transport layer, after IPv6 extension headers.
  public var ipProtocol: UInt8 = 0
  /// The outermost and the next VLAN tag (TCI), the one that the kernel stripped included; `vlanCount` says how many there are.
  public var outerVLAN: UInt16 = 0
  public var innerVLAN: UInt16 = 0
  /// The EtherType after all VLAN tags (0 for raw IP link types is replaced by that of the IP version).
  public var etherType: UInt16 = 0

  public var destination = IPAddress(v4: 0)
  /// TTL or hop limit.
  public var timeToLive: UInt8 = 0
  /// In bytes, from the start of the original datagram's payload. 0 for the first or only fragment.
  public var fragmentOffset: UInt16 = 0
  public var vlanCount: UInt8 = 0
  /// What the network layer is.
  public var network: NetworkLayer = .none
  public var transport: TransportLayer = .none
  public var moreFragments: Bool = false

  /// Where the network layer's header begins, and where the datagram ends by its own length field (at most the frame's end).
  public var networkOffset: Int32 = 0
  public var networkEnd: Int32 = 0
  /// IPv4 identification, or that of the IPv6 fragment header.
  public var fragmentID: UInt32 = 0

  public var transportOffset: Int32 = 0
  /// Ports, or ICMP type and code. With a transport of `.none` they are 0.
  public var sourcePort: UInt16 = 0
  public var destinationPort: UInt16 = 0
  public var tcpSequence: UInt32 = 0
  public var tcpAcknowledgement: UInt32 = 0
  public var tcpWindow: UInt16 = 0
  public var tcpFlags = TCPFlags(rawValue: 0)

  /// The payload of the innermost layer decoded: bytes `payloadOffset` ..< `payloadOffset + payloadLength` of the frame.
  public var payloadOffset: Int32 = 0
  public var payloadLength: Int32 = 0

  public var anomalies = DecodeAnomalies(rawValue: 0)

  /// The third VLAN tag, where there are so many.
  public var thirdVLAN: UInt16 = 0
  /// How this packet came to be, and in how many tunnels it is.
  public var origin = PacketOrigin.wire
  public var tunnelDepth: UInt8 = 0
  /// What this packet's tunnel carries: an EtherType (`tunnelType`; 0: it is no tunnel), and where it lies.
  var tunnelType: UInt16 = 0
  var tunnelOrigin = PacketOrigin.wire
  /// Headers read so far, those of the packets around this one included.
  var headerCount: UInt8 = 0
  var tunnelOffset: Int32 = 0
  var tunnelEnd: Int32 = 0

  public var events = DecodeEventSet()

  @inlinable public init() {}

  /// Whether there is a packet in this one.
  public var isTunnel: Bool { tunnelType != 0 }

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
  @inlinable public static var fin: TCPFlags { TCPFlags(rawValue: 0x01) }
  @inlinable public static var syn: TCPFlags { TCPFlags(rawValue: 0x02) }
  @inlinable public static var rst: TCPFlags { TCPFlags(rawValue: 0x04) }
  @inlinable public static var psh: TCPFlags { TCPFlags(rawValue: 0x08) }
  @inlinable public static var ack: TCPFlags { TCPFlags(rawValue: 0x10) }
  @inlinable public static var urg: TCPFlags { TCPFlags(rawValue: 0x20) }
  @inlinable public static var ece: TCPFlags { TCPFlags(rawValue: 0x40) }
  @inlinable public static var cwr: TCPFlags { TCPFlags(rawValue: 0x80) }
}

/// What decoding found wrong with a frame.
public struct DecodeAnomalies: OptionSet, Hashable, Sendable, BitwiseCopyable {
  public var rawValue: UInt32
  @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// The frame ends inside its link header, or before the length that an 802.3 header gives.
  @inlinable public static var truncatedLink: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 0) }
  @inlinable public static var unknownLinkType: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 1) }
  @inlinable public static var tooManyVLANTags: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 2) }
  @inlinable public static var truncatedNetwork: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 3) }
  /// The version field disagrees with the EtherType.
  @inlinable public static var wrongIPVersion: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 4) }
  @inlinable public static var badHeaderLength: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 5) }
  /// The datagram's own length is more than was captured (or less than its headers).
  @inlinable public static var badDatagramLength: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 6) }
  @inlinable public static var truncatedTransport: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 8) }
  @inlinable public static var badTransportLength: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 9) }
  @inlinable public static var tooManyExtensionHeaders: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 10) }
  @inlinable public static var badExtensionHeader: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 11) }
  @inlinable public static var badARP: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 12) }
  /// A fragment that would end beyond the largest datagram, or an IPv6 one that is not the last and whose length is not a multiple
  /// of 8 (RFC 8200 §4.5).
  @inlinable public static var badFragment: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 13) }
  /// A total, payload or UDP length of 0, as segmentation offload leaves it in frames longer than 65,535 bytes between
  /// guests of one host: the end of the enclosing layer was taken. In a frame from a wire it is malformed.
  @inlinable public static var zeroLengthField: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 14) }
  /// An IPv6 routing header with segments left: `destination` is not the final one.
  @inlinable public static var sourceRouted: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 15) }
  /// A header of a protocol that carries others and is none of the above.
  @inlinable public static var badCarrier: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 16) }
  /// More headers than are followed in one frame.
  @inlinable public static var tooManyHeaders: DecodeAnomalies { DecodeAnomalies(rawValue: 1 << 17) }
}
