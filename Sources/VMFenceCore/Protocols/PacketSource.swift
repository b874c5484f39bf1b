/// Delivers frames in the order in which they were captured, in batches, without copying them.
///
/// Synchronous and used by one thread at a time. The loop over a batch is generic over the source, so the compiler
/// specialises it; a source marks its own loop `@inlinable`.
public protocol PacketSource: ~Copyable {
  /// Calls `body` for at most `limit` frames that are there or become available before `patience` has passed. The bytes are
  /// valid only for the duration of the call. Allocates nothing per frame.
  ///
  /// - Returns: how many frames were handed over, and whether the source has ended.
  /// - Throws: when the source is damaged or gone. Frames delivered before stay delivered.
  mutating func nextBatch(
    limit: Int, patience: Duration, _ body: (FrameMetadata, RawSpan) -> Void
  ) throws(PacketSourceError) -> BatchOutcome

  /// What has been received and lost so far, by cause.
  var counters: CaptureCounters { get }
}

public struct BatchOutcome: Hashable, Sendable {
  public var frames: Int
  /// Nothing more will come (the end of a file, a stopped capture).
  public var isAtEnd: Bool
  public init(frames: Int, isAtEnd: Bool) {
    self.frames = frames
    self.isAtEnd = isAtEnd
  }
}

public struct CaptureCounters: Hashable, Sendable {
  /// Frames handed over.
  public var received: UInt64 = 0
  public var receivedBytes: UInt64 = 0
  /// Frames that the kernel dropped because its buffer was full.
  public var droppedByKernel: UInt64 = 0
  /// Frames that the interface dropped.
  public var droppedByInterface: UInt64 = 0
  /// Frames cut off by the snapshot length.
  public var truncated: UInt64 = 0
  /// Records of a file that are not frames or could not be used, and were passed over.
  public var skipped: UInt64 = 0
  public init() {}
}

/// What is known of a frame besides its bytes. A plain value without references.
public struct FrameMetadata: Hashable, Sendable, BitwiseCopyable {
  /// When it was captured.
  public var timestamp: Timestamp
  /// Where it was captured.
  public var port: PortID
  /// Which way it went, as seen from the guest whose port this is.
  public var direction: FrameDirection
  public var checksums: ChecksumState
  public var linkType: LinkType
  /// The VLAN tag (TCI) that the kernel took out of the frame before handing it over; 0 when none was.
  public var strippedVLAN: UInt16
  /// The length on the wire, in bytes; at least the number of bytes captured.
  public var originalLength: UInt32

  @inlinable
  public init(
    timestamp: Timestamp, port: PortID, direction: FrameDirection = .unknown, checksums: ChecksumState = .unknown,
    linkType: LinkType = .ethernet, strippedVLAN: UInt16 = 0, originalLength: UInt32
  ) {
    self.timestamp = timestamp
    self.port = port
    self.direction = direction
    self.checksums = checksums
    self.linkType = linkType
    self.strippedVLAN = strippedVLAN
    self.originalLength = originalLength
  }
}

public enum FrameDirection: UInt8, Hashable, Sendable, BitwiseCopyable {
  case unknown = 0
  case fromGuest = 1
  case toGuest = 2

  package var opposite: FrameDirection {
    switch self {
    case .unknown: .unknown
    case .fromGuest: .toGuest
    case .toGuest: .fromGuest
    }
  }
}

/// What is known of a frame's transport and IP checksums. Frames between guests of one host often carry checksums
/// that nobody has computed, because no wire is crossed.
public enum ChecksumState: UInt8, Hashable, Sendable, BitwiseCopyable {
  /// Nothing is known: verify where it matters.
  case unknown = 0
  /// Checked already, by the interface.
  case valid = 1
  /// Left for hardware to fill in; the field is not to be looked at.
  case notYetComputed = 2
}

/// The kind of header that a frame begins with: a LINKTYPE_ value of <https://www.tcpdump.org/linktypes.html>.
public struct LinkType: RawRepresentable, Hashable, Sendable, BitwiseCopyable {
  public var rawValue: UInt16
  @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }
  /// BSD loopback, address family in host byte order.
  @inlinable public static var null: LinkType { LinkType(rawValue: 0) }
  @inlinable public static var ethernet: LinkType { LinkType(rawValue: 1) }
  /// PPP, with or without the HDLC address and control bytes (RFC 1662).
  @inlinable public static var ppp: LinkType { LinkType(rawValue: 9) }
  /// Raw IP under the numbers that some platforms write.
  @inlinable public static var rawBSD: LinkType { LinkType(rawValue: 12) }
  @inlinable public static var rawOpenBSD: LinkType { LinkType(rawValue: 14) }
  /// Raw IPv4 or IPv6.
  @inlinable public static var raw: LinkType { LinkType(rawValue: 101) }
  /// Cisco HDLC.
  @inlinable public static var ciscoHDLC: LinkType { LinkType(rawValue: 104) }
  /// OpenBSD loopback, address family in network byte order.
  @inlinable public static var loop: LinkType { LinkType(rawValue: 108) }
  /// Linux cooked capture, version 1 and 2.
  @inlinable public static var linuxSLL: LinkType { LinkType(rawValue: 113) }
  @inlinable public static var ipv4: LinkType { LinkType(rawValue: 228) }
  @inlinable public static var ipv6: LinkType { LinkType(rawValue: 229) }
  @inlinable public static var linuxSLL2: LinkType { LinkType(rawValue: 276) }
}

public struct PacketSourceError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// The file is not a capture, or of a version or link type that is not read.
    public static let notACapture = Code("not-a-capture")
    public static let unsupported = Code("unsupported")
    /// The file ends inside a record.
    public static let truncated = Code("truncated")
    /// A record contradicts itself or exceeds a bound.
    public static let corrupt = Code("corrupt")
    public static let permissionDenied = Code("permission-denied")
    /// A process that the source needs does not live, or does not answer.
    public static let unavailable = Code("unavailable")
    public static let noSuchInterface = Code("no-such-interface")
    /// The interface went away during the capture.
    public static let interfaceGone = Code("interface-gone")
    public static let inputOutput = Code("input-output")
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace?
  public var remedy: String

  public init(_ code: Code, _ message: String, at place: SourcePlace? = nil, remedy: String = "") {
    self.code = code
    self.message = message
    self.place = place
    self.remedy = remedy
  }
}
