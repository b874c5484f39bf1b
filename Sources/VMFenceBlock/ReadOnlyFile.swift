internal import Glibc

/// An open file that is only read, at any place, from any thread.
final class ReadOnlyFile: Sendable {
  private let descriptor: CInt
  let byteCount: UInt64

  /// The corresponding C functions are `open(2)`, `fstat(2)` and, for block devices, `lseek(2)`.
  ///
  /// - Throws: what went wrong, as text.
  init(path: String) throws(SystemFailure) {
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard descriptor >= 0 else { throw SystemFailure("open", errno) }
    var status = stat()
    // SAFETY: `status` lives across the call, which fills it.
    guard unsafe fstat(descriptor, &status) == 0 else {
      let error = errno
      close(descriptor)
      throw SystemFailure("fstat", error)
    }
    let kind = status.st_mode & S_IFMT
    guard kind == S_IFREG || kind == S_IFBLK else {
      close(descriptor)
      throw SystemFailure(text: "it is neither a regular file nor a block device")
    }
    let end = kind == S_IFREG ? off_t(status.st_size) : lseek(descriptor, 0, SEEK_END)
    guard end >= 0 else {
      let error = errno
      close(descriptor)
      throw SystemFailure("lseek", error)
    }
    self.descriptor = descriptor
    byteCount = UInt64(end)
  }

  deinit { close(descriptor) }

  /// Reads up to `count` bytes into the beginning of `buffer`; fewer only where the file ends. The corresponding C
  /// function is `pread(2)`.
  ///
  /// - Precondition: `count` is at most the size of `buffer`.
  func read(at offset: UInt64, count: Int, into buffer: inout [UInt8]) throws(SystemFailure) -> Int {
    precondition(count <= buffer.count)
    guard offset <= UInt64(Int64.max) - UInt64(count) else { return 0 }
    var done = 0
    while done < count {
      // SAFETY: at most `count - done` bytes are written from `done` on, and the buffer has `count` bytes at least.
      let result = unsafe buffer.withUnsafeMutableBytes { bytes in
        unsafe pread(
          descriptor, bytes.baseAddress.map { unsafe $0 + done }, count - done, off_t(offset) + off_t(done))
      }
      if result == 0 { break }
      if result < 0 {
        if errno == EINTR { continue }
        throw SystemFailure("pread", errno)
      }
      done += result
    }
    return done
  }
}

/// A system call that failed.
struct SystemFailure: Error {
  let text: String
  init(text: String) { self.text = text }

  init(_ call: String, _ error: CInt) {
    // SAFETY: strerror gives a valid C string until the next call on this thread; it is copied at once.
    let reason = unsafe String(cString: strerror(error))
    text = "\(call): \(reason)"
  }
}
