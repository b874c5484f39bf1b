/// Is shown every request to one virtual disk, in one defined order, before it is submitted to the disk, and answers
/// whether it may pass. Used by one thread at a time; synchronous, because a guest waits.
public protocol BlockObserver: ~Copyable {
  /// Judges one request. `data` is what a write carries, exactly `request.length` bytes, and empty for every other
  /// operation; it is valid only for the duration of the call.
  mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict

  /// Requests were lost or skipped before the next one: what the observer knows may be out of date.
  mutating func observeGap(at time: Timestamp, reason: String)
}

/// Delivers the requests of one virtual disk to an observer: a live block path, or a recording of one.
public protocol BlockSource: ~Copyable {
  /// Delivers up to `limit` requests whose time is not after `deadline` (nil: all). Ends early at one that the observer holds.
  ///
  /// - Throws: when the source is damaged. Requests delivered before stay delivered.
  mutating func deliver<Observer: BlockObserver & ~Copyable>(
    limit: Int, until deadline: Timestamp?, to observer: inout Observer
  ) throws(BlockSourceError) -> BlockOutcome
}

public struct BlockRequest: Hashable, Sendable, BitwiseCopyable {
  public enum Operation: UInt8, Hashable, Sendable, BitwiseCopyable, CaseIterable {
    case read
    case write
    case flush
    case discard
    case writeZeroes
  }

  /// Rises by one with each request of one disk; it is the order that counts.
  public var sequence: UInt64
  public var timestamp: Timestamp
  public var operation: Operation
  /// In bytes from the start of the disk.
  public var offset: UInt64
  /// In bytes.
  public var length: UInt64
  /// Force unit access: durable before it is answered.
  public var isForcedUnitAccess: Bool

  public init(
    sequence: UInt64, timestamp: Timestamp, operation: Operation, offset: UInt64 = 0, length: UInt64 = 0,
    isForcedUnitAccess: Bool = false
  ) {
    self.sequence = sequence
    self.timestamp = timestamp
    self.operation = operation
    self.offset = offset
    self.length = length
    self.isForcedUnitAccess = isForcedUnitAccess
  }
}

/// In the order of their strictness.
public enum BlockVerdict: UInt8, Hashable, Sendable, BitwiseCopyable, Comparable {
  case allow
  /// Somebody must decide. The request, and with it all that come after it, is neither submitted nor answered: whoever delivers
  /// it ends its call (`BlockOutcome.isHeld`) and shows the same request again when it is asked next, until the verdict is
  /// another one.
  case hold
  /// The request fails with an input/output error and does not reach the disk.
  case deny

  public static func < (a: BlockVerdict, b: BlockVerdict) -> Bool { a.rawValue < b.rawValue }
}

public struct BlockOutcome: Hashable, Sendable {
  public var requests: Int
  public var denied: Int
  public var isAtEnd: Bool
  /// A request waits for a decision (`BlockVerdict.hold`); it is not counted in `requests`.
  public var isHeld: Bool
  public init(requests: Int, denied: Int, isAtEnd: Bool, isHeld: Bool = false) {
    self.requests = requests
    self.denied = denied
    self.isAtEnd = isAtEnd
    self.isHeld = isHeld
  }
}

public struct BlockSourceError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    public static let notATrace = Code("not-a-trace")
    public static let truncated = Code("truncated")
    public static let corrupt = Code("corrupt")
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
