internal import Glibc
public import VMFenceCore

/// The key of baselines: 32 random bytes in a file that only its owner may read, and beside it the count of what was
/// signed with it.
///
/// Whoever can read the key can forge a baseline. Keep it away from the store: on a medium that is mounted for `init`,
/// `check` and `update` only, or at least on another file system with another owner.
public struct IntegrityKey: Sendable {
  public static let size = 32
  public let path: String
  let bytes: [UInt8]

  /// - Throws: `noKey`, `weakKey` when others may read it, `inputOutput`.
  public init(path: String) throws(BaselineError) {
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    let file = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
    guard file >= 0 else {
      throw BaselineError(
        errno == ENOENT ? .noKey : .inputOutput, "cannot open the key: \(describeError(errno))",
        at: SourcePlace(file: path), remedy: "`integrity init` makes one; afterwards give the same with --key")
    }
    defer { close(file) }
    var status = stat()
    // SAFETY: `status` lives across the call, which fills it.
    guard unsafe fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
      throw BaselineError(.inputOutput, "the key is no regular file", at: SourcePlace(file: path))
    }
    guard status.st_mode & 0o077 == 0 else {
      throw BaselineError(
        .weakKey, "others than its owner may read or write the key", at: SourcePlace(file: path),
        remedy: "chmod 600 it, make a new one if anybody may have read it, and take baselines anew")
    }
    var buffer = [UInt8](repeating: 0, count: Self.size + 1)
    // SAFETY: as many bytes as the buffer has.
    let count = unsafe buffer.withUnsafeMutableBytes { unsafe read(file, $0.baseAddress, $0.count) }
    guard count == Self.size else {
      throw BaselineError(
        .noKey, "the key has \(max(0, count)) bytes or more, and not \(Self.size)", at: SourcePlace(file: path),
        remedy: "restore it, or remove it and take baselines anew")
    }
    self.path = path
    bytes = Array(buffer[..<Self.size])
  }

  /// Makes a key, mode 0600. One that is there is never replaced.
  ///
  /// - Throws: `inputOutput`.
  public static func make(path: String) throws(BaselineError) -> IntegrityKey {
    var generator = SystemRandomNumberGenerator()
    let bytes = (0..<size).map { _ in UInt8.random(in: 0...255, using: &generator) }
    try DurableFile.create(path, bytes)
    return try IntegrityKey(path: path)
  }
}

/// Files that are there whole or not at all, whatever happens meanwhile.
enum DurableFile {
  /// - Throws: also when the file is there.
  static func create(_ path: String, _ bytes: [UInt8]) throws(BaselineError) {
    try write(path, bytes, flags: O_EXCL)
  }

  /// Writes a new file beside, and renames it over the old one.
  static func replace(_ path: String, _ bytes: [UInt8]) throws(BaselineError) {
    let fresh = path + ".new"
    try write(fresh, bytes, flags: O_TRUNC)
    // SAFETY: both are C strings during the call.
    guard unsafe rename(fresh, path) == 0 else { throw failure(path, errno) }
  }

  private static func write(_ path: String, _ bytes: [UInt8], flags: CInt) throws(BaselineError) {
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    let file = unsafe open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | flags, 0o600)
    guard file >= 0 else { throw failure(path, errno) }
    // SAFETY: the array's bytes are read.
    let count = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(file, $0.baseAddress, $0.count) }
    let error = count < 0 ? errno : count == bytes.count ? (fsync(file) == 0 ? 0 : errno) : ENOSPC
    close(file)
    guard error == 0 else {
      // SAFETY: a C string during the call.
      unsafe _ = unlink(path)
      throw failure(path, error)
    }
  }

  private static func failure(_ path: String, _ error: CInt) -> BaselineError {
    BaselineError(
      error == ENOSPC || error == EDQUOT ? .full : .inputOutput, "cannot write: \(describeError(error))",
      at: SourcePlace(file: path), remedy: "make the directory writable, or free space; nothing was replaced")
  }
}

/// What is wrong with a baseline, or stands in the way of one.
public struct BaselineError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    public static let noKey = Code("no-key")
    public static let weakKey = Code("weak-key")
    /// There is none for this disk, and as far as is known there never was.
    public static let noBaseline = Code("no-baseline")
    /// It is not what was signed.
    public static let edited = Code("edited")
    /// It is an earlier one that was put back, or was removed.
    public static let old = Code("old")
    public static let full = Code("full")
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

  init(_ error: StateStoreError) {
    self.init(error.code == .full ? .full : .inputOutput, error.message, at: error.place, remedy: error.remedy)
  }
}
