import VMFenceCore
import VMFencePackets

/// What an operator can set about flows, fragments and streams: `InspectorConfiguration.settings`, read and checked. Names are those of
/// the field (Suricata's configuration), with dots between their parts.
public struct EngineSettings: Sendable, Equatable {
  // MARK: Checksums and modes

  /// `stream.checksum-validation`. Unset: as `InspectorConfiguration.verifiesChecksums` says.
  public var verifiesChecksums = true
  /// `stream.inline`: `yes`, `no`, or `auto` for what `InspectorConfiguration.isInline` says. Inline streams are inspected as data arrives, and
  /// what was let through first stays.
  public var isStreamInline = false
  /// Verdicts act on packets. Not a setting of its own: `InspectorConfiguration.isInline`.
  public var isInline = false

  // MARK: Decoding

  /// `decoder.vxlan.ports`, `decoder.geneve.ports`, `decoder.teredo.ports` and `decoder.gtp.ports`: at most four each, with commas between; and
  /// `decoder.NAME.enabled`.
  public var decoding = DecodeSettings()

  // MARK: Rules

  /// `profiling.rules.enabled`: whether what each rule costs is measured (`SnortInspector.ruleCosts`).
  public var profilesRules = false

  // MARK: Streams

  /// `stream.midstream`: whether connections are taken up whose handshake was not seen.
  public var picksUpMidstream = false
  /// `stream.async-oneside`: whether streams are followed of which one direction is never seen.
  public var picksUpOneSide = false
  /// `stream.drop-invalid`: inline, whether segments go that cannot be a part of their connection.
  public var dropsInvalid = true
  /// `stream.min-ttl`: segments with less do not come as far as their receiver, so they are in no stream; 0 takes all.
  public var streamTTLMinimum: UInt8 = 0
  /// `stream.ttl-limit`: so are those with that much less than the first packet of their end; 0 takes all.
  public var streamTTLDrop = 0
  /// `stream.max-window`: a receiver's window above so many bytes, scaled, is told of; 0: none is. This and the next three are Snort's limits.
  public var windowMaximum = 0
  /// `stream.overlap-limit`: so many segments of one end may lie over bytes that wait to be inspected; each beyond is told of. 0: any number may.
  public var overlapLimit = 0
  /// `stream.small-segments.count`: so many segments of one end behind each other with at most `stream.small-segments.maximum-size` bytes
  /// of payload are told of; 0: none are.
  public var smallSegmentCount = 0
  public var smallSegmentSize = 0
  /// `stream.memcap`: bytes for buffered segments, all flows together. `stream.reassembly.memcap` is the same.
  public var streamMemory = 64 << 20
  /// `stream.reassembly.depth`: bytes of each direction that are reassembled; 0 is without limit.
  public var streamDepth = 1 << 20
  /// `stream.reassembly.toserver-chunk-size` and `…toclient-chunk-size`: how much is collected before it is inspected, at the latest.
  public var chunkToServer = 2560
  public var chunkToClient = 2560
  /// `stream.reassembly.urgent.policy`.
  public var urgentPolicy = UrgentPolicy.outOfBand
  /// `host-os-policy.NAME`: networks whose hosts resolve overlaps as that system does; the longest prefix counts.
  public var hostPolicies: [HostPolicy] = []
  /// `host-os-policy.default`.
  public var defaultPolicy = OverlapPolicy.bsd

  // MARK: Fragments

  /// `defrag.memcap`: bytes of fragments that wait.
  public var fragmentMemory = 16 << 20
  /// `defrag.trackers`: datagrams that wait.
  public var datagramCapacity = 4096
  /// `defrag.max-frags`: fragments of one datagram.
  public var fragmentLimit = 1024
  /// `defrag.min-ttl`: fragments with less are not put together; 0 takes all.
  public var fragmentTTLMinimum: UInt8 = 0
  /// `defrag.timeout`, in seconds.
  public var fragmentTimeout = 60

  // MARK: Exceptions

  /// `exception-policy`: for every policy that is not given. `auto` is `drop-flow` inline and `ignore` otherwise.
  public var exceptionPolicy = ExceptionPolicy.ignore
  /// `stream.midstream-policy`: for connections in midstream; where those are taken up, only the policies that pass count.
  public var midstreamPolicy = ExceptionPolicy.ignore
  /// `stream.memcap-policy`, `stream.reassembly.memcap-policy`: when there is no room for a segment.
  public var streamMemoryPolicy = ExceptionPolicy.ignore
  /// `flow.memcap-policy`: when a new flow had to evict an established one.
  public var flowMemoryPolicy = ExceptionPolicy.ignore
  /// `defrag.memcap-policy`: when there is no room for a fragment.
  public var fragmentMemoryPolicy = ExceptionPolicy.ignore

  // MARK: Flows and alerts

  /// `flow.rate-tracking.bytes` and `flow.rate-tracking.interval` (in seconds): what one side of a flow has to send in so short a time to
  /// make it an elephant for the rest of its life (`flow.elephant`). 0 bytes: none is.
  public var elephantBytes = 0
  public var elephantInterval = 10

  /// `flow-timeouts.tcp.new`, `.established` and `.closed`; `flow-timeouts.udp.…`, `.icmp.…` and `.default.…` with `.new` and `.established`.
  /// In seconds.
  public var timeouts = FlowTimeouts()
  /// `packet-alert-max`: alerts of one packet; 0 for as many as there is room for.
  public var alertLimit = InspectionOutput.capacity

  public init() {}
}

/// What happens when the engine cannot do what it should. Passive, those that drop are `ignore`.
public enum ExceptionPolicy: String, Sendable, CaseIterable {
  case ignore
  /// The packet, and the rest of its flow.
  case dropFlow = "drop-flow"
  case dropPacket = "drop-packet"
  /// No rules are compared with the flow from here on.
  case passFlow = "pass-flow"
  /// No rules are compared with the packet.
  case passPacket = "pass-packet"
  /// As `pass-flow`, and the flow's stream is not followed.
  case bypass
  /// As `drop-flow`, and both ends are told.
  case reject
}

/// What becomes of the bytes that a TCP urgent pointer marks.
public enum UrgentPolicy: String, Sendable, CaseIterable {
  /// The byte before the pointer is no part of the stream (RFC 793's reading, as most systems do it).
  case outOfBand = "oob"
  /// All bytes are part of the stream.
  case inline
  /// Segments with urgent data go (inline) or are left out.
  case drop
  /// The byte is missing from the stream.
  case gap
}

/// Which of two bytes an operating system keeps that arrived for the same place.
public enum OverlapPolicy: UInt8, Sendable, CaseIterable, BitwiseCopyable {
  case bsd, first, last, bsdRight, linux, oldLinux, solaris, windows, vista

  static let names: [(String, OverlapPolicy)] = [
    ("bsd", .bsd), ("first", .first), ("last", .last), ("bsd-right", .bsdRight), ("linux", .linux),
    ("old-linux", .oldLinux), ("solaris", .solaris), ("old-solaris", .solaris), ("hpux11", .solaris),
    ("hpux10", .bsd), ("irix", .bsd), ("macos", .bsd), ("windows", .windows), ("windows2k3", .windows),
    ("vista", .vista),
  ]
}

/// A network whose hosts resolve overlaps in one way.
public struct HostPolicy: Sendable, Equatable {
  public var network: IPNetwork
  public var policy: OverlapPolicy
}

/// How long flows are kept after their last packet, in nanoseconds of packet time.
public struct FlowTimeouts: Sendable, Equatable, BitwiseCopyable {
  static let second: Int64 = 1_000_000_000
  public var tcpNew = 60 * second
  public var tcpEstablished = 3600 * second
  public var tcpClosed = 30 * second
  public var udpNew = 30 * second
  public var udpEstablished = 300 * second
  public var icmpNew = 30 * second
  public var icmpEstablished = 300 * second
  public var otherNew = 30 * second
  public var otherEstablished = 300 * second
}

extension EngineSettings {
  /// The overlap policy of the host that receives.
  func policy(of receiver: IPAddress) -> OverlapPolicy {
    // Sorted by descending prefix length.
    for host in hostPolicies where host.network.contains(receiver) { return host.policy }
    return defaultPolicy
  }
}
