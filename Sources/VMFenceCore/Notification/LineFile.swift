internal import Glibc

/// A file that lines are appended to, each with one write(2) in append mode, so that none is torn by a rotation or by another writer. It is opened at the first
/// look, and is bounded: a guest can make as many lines as it likes. Whoever rotates it renames it, removes it or cuts it, and needs to tell nobody. For one
/// thread at a time.
package struct LineFile: ~Copyable, Sendable {
  package let path: String
  /// How large a regular file may become, in bytes.
  package let limit: UInt64
  /// How large it was when it was looked at, and what was appended since, in bytes.
  package private(set) var size: UInt64 = 0
  private var descriptor: CInt = -1
  private var isRegular = false
  /// The last write was cut short: the next line begins with a line feed, so that only one line is lost.
  private var isInsideLine = false

  package init(path: String, limit: UInt64) {
    self.path = path
    self.limit = limit
  }

  deinit { if descriptor >= 0 { _ = Glibc.close(descriptor) } }

  package var isOpen: Bool { descriptor >= 0 }

  /// Opens the file (mode 0640 when it is made) if it is not open, and anew if the path is another file by now, or none.
  ///
  /// - Returns: whether it is another file than at the last look, or was cut since.
  /// - Throws: the error of open(2); what was open stays open.
  package mutating func look() throws(SystemFailure) -> Bool {
    if let now = sizeInPlace {
      defer { size = now }
      guard isRegular, now < size else { return false }
      isInsideLine = false
      return true
    }
    // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
    let new = unsafe Glibc.open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0o640)
    guard new >= 0 else { throw SystemFailure(call: "open \(path.escapedForDisplay)", number: errno) }
    close()
    descriptor = new
    var status = stat()
    // SAFETY: fstat(2) writes one structure.
    isRegular = unsafe fstat(new, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
    size = isRegular ? UInt64(max(0, status.st_size)) : 0
    return true
  }

  /// The next look opens it anew.
  package mutating func close() {
    if descriptor >= 0 { _ = Glibc.close(descriptor) }
    descriptor = -1
    isInsideLine = false
  }

  /// Appends a line and its end. Whoever calls has looked.
  ///
  /// - Returns: 0; EFBIG when there is no room for it; or the error of write(2), and then a part of it may be there.
  package mutating func append(_ line: [UInt8]) -> CInt {
    let bytes = (isInsideLine ? [UInt8(ascii: "\n")] : []) + line + [UInt8(ascii: "\n")]
    guard !isRegular || size + UInt64(bytes.count) <= limit else { return EFBIG }
    var written = 0
    while written < bytes.count {
      // SAFETY: the buffer is valid for its count during the call, and write(2) only reads it.
      let count = unsafe bytes[written...].withUnsafeBytes { unsafe write(descriptor, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else {
        let number = count < 0 ? errno : ENOSPC
        if written > 0 { isInsideLine = !(isInsideLine && written == 1) }
        size += UInt64(written)
        return number
      }
      written += count
    }
    isInsideLine = false
    size += UInt64(written)
    return 0
  }

  /// How large what is open is, in bytes, as long as it is what the path names.
  private var sizeInPlace: UInt64? {
    var (there, open) = (stat(), stat())
    // SAFETY: both calls write one structure; the path is a string that ends in zero and lives during the call.
    guard descriptor >= 0, unsafe stat(path, &there) == 0, unsafe fstat(descriptor, &open) == 0,
      there.st_ino == open.st_ino, there.st_dev == open.st_dev
    else { return nil }
    return UInt64(max(0, open.st_size))
  }
}
