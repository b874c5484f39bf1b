public import VMFenceCore

/// What can go wrong when a disk is read or a file system on it is taken apart. Nothing a guest wrote makes this module
/// trap: it throws this, or counts and reports damage.
public struct IntegrityError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// No ext2, ext3 or ext4 superblock where one must be.
    public static let notAFileSystem = Code("not-a-file-system")
    /// A feature that this reader does not know; the message names it.
    public static let unsupported = Code("unsupported")
    /// The file system contradicts itself or the disk it lies on.
    public static let damaged = Code("damaged")
    /// The disk ends before what was to be read.
    public static let truncated = Code("truncated")
    /// A limit of ours was reached: the message says which.
    public static let tooLarge = Code("too-large")
    public static let inputOutput = Code("input-output")
    /// A protected path or pattern that cannot be used.
    public static let badPattern = Code("bad-pattern")
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
