internal import Glibc

/// Whole reads and writes at a place of an open file, by pread(2) and pwrite(2), which may do less than they are asked for.
package enum FileBytes {
  /// - Throws: with EIO when the file ends before.
  package static func read(_ descriptor: Int32, count: Int, at offset: Int = 0) throws(SystemFailure) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      // SAFETY: the buffer is valid for its count during the call, and pread(2) writes no more than that.
      let result = unsafe bytes[done...].withUnsafeMutableBytes { buffer in
        unsafe pread(descriptor, buffer.baseAddress, buffer.count, off_t(offset + done))
      }
      if result < 0, errno == EINTR { continue }
      guard result > 0 else { throw SystemFailure(call: "read", number: result < 0 ? errno : EIO) }
      done += result
    }
    return bytes
  }

  /// - Throws: with ENOSPC when the file takes nothing.
  package static func write(_ bytes: [UInt8], _ descriptor: Int32, at offset: Int) throws(SystemFailure) {
    var done = 0
    while done < bytes.count {
      // SAFETY: the buffer is valid for its count during the call, and pwrite(2) only reads it.
      let result = unsafe bytes[done...].withUnsafeBytes { buffer in
        unsafe pwrite(descriptor, buffer.baseAddress, buffer.count, off_t(offset + done))
      }
      if result < 0, errno == EINTR { continue }
      guard result > 0 else { throw SystemFailure(call: "write", number: result < 0 ? errno : ENOSPC) }
      done += result
    }
  }
}
