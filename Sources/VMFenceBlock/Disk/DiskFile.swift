internal import CLinux
internal import Glibc
public import VMFenceCore
public import VMFenceIntegrity

/// A raw disk image or a block device, open for a guest's requests. Safe to use from any thread.
///
/// It goes through the page cache of this host: what is written is durable after `flush`, as a guest expects of a disk
/// with a write-back cache.
public final class DiskFile: Sendable {
  public let path: String
  /// As it was when the file was opened.
  public let byteCount: UInt64
  public let isReadOnly: Bool
  public let isDevice: Bool
  let descriptor: CInt

  /// Opens the disk, and locks it against a second process that would serve it (flock(2); none for a disk that is only
  /// read).
  ///
  /// The corresponding C functions are `open(2)`, `fstat(2)`, `lseek(2)` and `flock(2)`.
  ///
  /// - Throws: `inputOutput`, `permissionDenied`, `inUse`.
  public init(path: String, isReadOnly: Bool = false) throws(BlockSourceError) {
    self.path = path
    self.isReadOnly = isReadOnly
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    let file = unsafe open(path, (isReadOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK)
    guard file >= 0 else { throw Self.failure("open the disk", path, errno) }
    do throws(BlockSourceError) {
      (byteCount, isDevice) = try Self.examine(file, path, isReadOnly: isReadOnly)
    } catch {
      close(file)
      throw error
    }
    descriptor = file
  }

  private static func examine(
    _ file: CInt, _ path: String, isReadOnly: Bool
  ) throws(BlockSourceError) -> (UInt64, Bool) {
    var status = stat()
    // SAFETY: `status` lives across the call, which fills it.
    guard unsafe fstat(file, &status) == 0 else { throw failure("examine the disk", path, errno) }
    let kind = status.st_mode & S_IFMT
    guard kind == S_IFREG || kind == S_IFBLK else {
      throw BlockSourceError(
        .inputOutput, "the disk is neither a regular file nor a block device", at: SourcePlace(file: path),
        remedy: "give a raw image or a block device")
    }
    if !isReadOnly, vmfence_lock_file(file) != 0 { throw failure("lock the disk", path, errno) }
    let end = lseek(file, 0, SEEK_END)
    guard end >= 0 else { throw failure("find the size of the disk", path, errno) }
    return (UInt64(end), kind == S_IFBLK)
  }

  static func failure(_ what: String, _ path: String, _ error: CInt) -> BlockSourceError {
    let place = SourcePlace(file: path)
    let message = "cannot \(what): \(describeError(error))"
    switch error {
    case EACCES, EPERM, EROFS:
      return BlockSourceError(
        .permissionDenied, message, at: place, remedy: "run as a user who may, or ask for a disk that is only read")
    case EWOULDBLOCK, EADDRINUSE, EBUSY:
      return BlockSourceError(
        .inUse, message, at: place, remedy: "another process serves it: stop that one first, two would destroy the disk"
      )
    default: return BlockSourceError(.inputOutput, message, at: place, remedy: "check the path")
    }
  }

  deinit { close(descriptor) }

  /// Writes to the disk as a guest would, for whoever mends it while the guest is not there. Durable when it returns.
  ///
  /// - Throws: `inputOutput`, also when the range does not lie on the disk.
  public func write(_ bytes: [UInt8], at offset: UInt64) throws(BlockSourceError) {
    guard offset <= byteCount, UInt64(bytes.count) <= byteCount - offset else {
      throw Self.failure("write beyond the end of the disk", path, EINVAL)
    }
    // SAFETY: the array's own bytes, as many as it has.
    var error = unsafe bytes.withUnsafeBytes { bytes in
      unsafe bytes.baseAddress.map { unsafe writeAll($0, bytes.count, at: offset) } ?? 0
    }
    if error == 0 { error = flush() }
    if error != 0 { throw Self.failure("write to the disk", path, error) }
  }
}

extension BlockSourceError.Code {
  public static let permissionDenied = Self("permission-denied")
  /// Somebody else has it.
  public static let inUse = Self("in-use")
}

extension DiskFile: DiskReader {
  public func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    try checkBounds(at: offset, count: buffer.count)
    let count = buffer.count
    // SAFETY: the buffer's own bytes, as many as it has.
    let error = unsafe buffer.withUnsafeMutableBytes { bytes in
      unsafe bytes.baseAddress.map { unsafe readAll($0, count, at: offset) } ?? 0
    }
    guard error == 0 else {
      throw IntegrityError(
        .inputOutput, "cannot read the disk at byte \(offset): \(describeError(error))", at: SourcePlace(file: path),
        remedy: "check the disk that it lies on")
    }
  }
}
