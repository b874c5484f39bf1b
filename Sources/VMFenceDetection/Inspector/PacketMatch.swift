import VMFenceCore
import VMFencePackets

/// What rules are being compared with, apart from its bytes. Not copyable: it is handed on for every rule, and is as long as some of the
/// packets that it is about.
struct PacketMatch: ~Copyable {
  private let inPlace = InPlace()
  var packet: DecodedPacket
  /// nil for fragments.
  var flow: FlowTable.Sighting?
  var timestamp: Timestamp
  var source = Source.packet
  var origin = PacketOrigin.wire
  /// Whether the packet's checksums are there to be verified, and somebody wants them to.
  var verifiesChecksums = false
  /// Only rules about checksums look at it.
  var hasBadChecksum = false
  /// Its receiver could not take it: only rules about that look at it.
  var isMalformed = false
  /// What was told of its segment.
  var events = StreamEvents()
  /// Of a window: bytes that the stream lacks before it.
  var missing: UInt32 = 0
  /// Inline: the frame's payload is not what came but what counts.
  var isRewritten = false
  /// Put together from fragments, here or in a tunnel: no frame holds it.
  var isRebuilt = false
  /// Of a window: how many bytes of its stream come before it.
  var streamOffset = 0
  /// Of a window: where the bytes begin that were not inspected yet.
  var fresh = 0
  /// Of a window: from where on it is searched; what stands before is known by what `SnortInspector.found` holds.
  var searched = 0

  init(packet: DecodedPacket, flow: FlowTable.Sighting?, timestamp: Timestamp) {
    self.packet = packet
    self.flow = flow
    self.timestamp = timestamp
  }

  /// The stream that a packet went into, as far as it came with that packet.
  init(streamOf segment: borrowing PacketMatch) {
    self.init(packet: segment.packet, flow: segment.flow, timestamp: segment.timestamp)
    source = .stream
    origin = segment.origin
    verifiesChecksums = segment.verifiesChecksums
    events = segment.events
    isRewritten = segment.isRewritten
  }

  enum Source {
    /// A packet that is in no reassembled stream: all rules.
    case packet
    /// A TCP packet whose payload went into a reassembled stream: rules that want packets.
    case segment
    /// A window of a reassembled stream: rules that want streams. `packet` is the one that completed it.
    case stream
  }

  mutating func noteFragment(_ events: FragmentEvents) {
    let isV4 = packet.network == .ipv4
    if events.contains(.overlap) { packet.events.insert(isV4 ? .ipv4FragmentOverlap : .ipv6FragmentOverlap) }
    if events.contains(.tooLarge) { packet.events.insert(isV4 ? .ipv4FragmentsTooLarge : .ipv6FragmentsTooLarge) }
    if events.contains(.ignored) { packet.events.insert(isV4 ? .ipv4FragmentIgnored : .ipv6FragmentIgnored) }
    if events.contains(.badLength), !isV4 { packet.events.insert(.ipv6FragmentLength) }
  }

  var isStream: Bool { source == .stream }

  /// Whether the transport header is that of a whole datagram.
  var hasTransport: Bool { !packet.isFragment && packet.transport != .none }

  /// The classes whose groups are searched.
  var packetClasses: (PacketClass, PacketClass?) {
    guard hasTransport else { return (.other, nil) }
    return switch packet.transport {
    case .tcp:
      switch source {
      case .packet: (.tcp, streamClass)
      case .segment: (.tcp, nil)
      case .stream: (streamClass, nil)
      }
    case .udp: (.udp, nil)
    case .icmp, .icmpv6: (.icmp, nil)
    case .none, .sctp, .other: (.other, nil)
    }
  }

  private var streamClass: PacketClass { flow?.toServer ?? true ? .tcpToServer : .tcpToClient }
}
