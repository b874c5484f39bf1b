internal import Glibc

/// A file of the decision log: the few calls that are needed, with their errors.
final class LogFile: Sendable {
  private let descriptor: CInt
  private let path: String
  /// What errors call it.
  private let name: String

  private init(descriptor: CInt, path: String, name: String) {
    self.descriptor = descriptor
    self.path = path
    self.name = name
  }

  deinit { close(descriptor) }

  /// - `name`: the path that it is about to have.
  static func open(_ path: String, flags: CInt, as name: String? = nil) throws(DecisionLogError) -> LogFile {
    // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
    let descriptor = unsafe Glibc.open(path, flags | O_CLOEXEC | O_NOCTTY, 0o600)
    guard descriptor >= 0 else { throw error("open", path, errno) }
    return LogFile(descriptor: descriptor, path: path, name: name ?? path)
  }

  /// flock(2), for as long as this file or a duplicate of it is open. A child that is about to become another program holds a duplicate for
  /// an instant, which is long on a busy machine: so a lock that is taken is tried again for two seconds.
  func lock() throws(DecisionLogError) {
    for _ in 0..<1000 {
      if flock(descriptor, LOCK_EX | LOCK_NB) == 0 { return }
      let number = errno
      guard number == EWOULDBLOCK else { throw Self.error("lock", path, number) }
      usleep(2_000)
    }
    throw DecisionLogError(
      .inUse, "another process writes the decision log \(path.escapedForDisplay)", at: SourcePlace(file: path),
      remedy: "stop it, or choose another path")
  }

  func duplicate() throws(DecisionLogError) -> LogFile {
    let copy = fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
    guard copy >= 0 else { throw Self.error("duplicate", name, errno) }
    return LogFile(descriptor: copy, path: path, name: name)
  }

  /// All of it; an error when it has more than `limit` bytes.
  func read(limit: Int) throws(DecisionLogError) -> [UInt8] {
    let size = Int(lseek(descriptor, 0, SEEK_END))
    guard size >= 0 else { throw Self.error("read", name, errno) }
    guard size <= limit else {
      throw DecisionLogError(
        .full, "the decision log \(name.escapedForDisplay) has \(size) bytes, and \(limit) are allowed",
        at: SourcePlace(file: path), remedy: "raise the limit, or move the log away")
    }
    do throws(SystemFailure) { return try FileBytes.read(descriptor, count: size) } catch {
      throw Self.error("read", name, error.number)
    }
  }

  func write(_ bytes: [UInt8], at offset: Int) throws(DecisionLogError) {
    do throws(SystemFailure) { try FileBytes.write(bytes, descriptor, at: offset) } catch {
      throw Self.error("write", name, error.number)
    }
  }

  /// posix_fallocate(3), so that appending cannot run out of space half-way through a record.
  func allocate(from start: Int, to end: Int) throws(DecisionLogError) {
    let number = posix_fallocate(descriptor, off_t(start), off_t(end - start))
    if number != 0 { throw Self.error("allocate space for", name, number) }
  }

  func truncate(to size: Int) throws(DecisionLogError) {
    if ftruncate(descriptor, off_t(size)) != 0 { throw Self.error("truncate", name, errno) }
  }

  func sync() throws(DecisionLogError) {
    if fdatasync(descriptor) != 0 { throw Self.error("sync", name, errno) }
  }

  func rename(to other: String) throws(DecisionLogError) {
    // SAFETY: both paths are handed over as strings that end in zero and live during the call.
    if unsafe Glibc.rename(path, other) != 0 { throw Self.error("rename", path, errno) }
  }

  /// Makes the file's name survive a power cut.
  func syncDirectory() throws(DecisionLogError) {
    let slash = path.lastIndex(of: "/")
    let directory = slash.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
    let opened = try LogFile.open(directory, flags: O_RDONLY | O_DIRECTORY)
    if fsync(opened.descriptor) != 0 { throw Self.error("sync", directory, errno) }
  }

  private static func error(_ verb: String, _ path: String, _ number: CInt) -> DecisionLogError {
    let code: DecisionLogError.Code =
      switch number {
      case EACCES, EPERM, EROFS: .permissionDenied
      case ENOSPC, EDQUOT, EFBIG: .full
      default: .inputOutput
      }
    return DecisionLogError(
      code, "cannot \(verb) the decision log \(path.escapedForDisplay): \(describeError(number))",
      at: SourcePlace(file: path),
      remedy: code == .full ? "free space on its disk" : "check its directory and who may write there")
  }
}
