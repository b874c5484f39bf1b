internal import Glibc

/// Why a file cannot be read, in the words of whoever has to mend it.
package struct UnreadableFile: Error, Hashable {
  package var reason: String
  /// Whether it is not there at all.
  package var isMissing = false
}

/// Files that people or other programs wrote, read as a whole and no further than a limit. Links are followed. Directories, pipes, sockets and devices are refused:
/// they are named by mistake, and may have no end.
package enum WholeFile {
  private static let blockBytes = 64 << 10

  /// - `limit`: how many bytes it may have.
  package static func read(_ path: String, atMost limit: Int) throws(UnreadableFile) -> [UInt8] {
    let descriptor = try open(path)
    defer { _ = close(descriptor) }
    var bytes: [UInt8] = []
    var block = [UInt8](repeating: 0, count: min(blockBytes, limit + 1))
    while true {
      // SAFETY: read(2) writes at most as many bytes as the block has.
      let count = unsafe block.withUnsafeMutableBytes { room in
        unsafe Glibc.read(descriptor, room.baseAddress, room.count)
      }
      if count < 0, errno == EINTR { continue }
      guard count >= 0 else { throw UnreadableFile(reason: describeError(errno)) }
      guard count > 0 else { return bytes }
      guard bytes.count + count <= limit else { throw UnreadableFile(reason: "it has more than \(limit) bytes") }
      bytes += block[..<count]
    }
  }

  /// Whether it can be opened now; nil when it can.
  package static func problem(_ path: String) -> UnreadableFile? {
    do throws(UnreadableFile) { _ = close(try open(path)) } catch { return error }
    return nil
  }

  private static func open(_ path: String) throws(UnreadableFile) -> Int32 {
    // One that is a pipe is not waited for.
    // SAFETY: open(2) reads the path up to its NUL.
    let descriptor = unsafe Glibc.open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
    guard descriptor >= 0 else {
      let number = errno
      throw UnreadableFile(reason: describeError(number), isMissing: number == ENOENT)
    }
    var status = stat()
    // SAFETY: fstat(2) writes one structure, which lives during the call.
    let isKnown = unsafe fstat(descriptor, &status) == 0
    guard isKnown, status.st_mode & S_IFMT == S_IFREG else {
      _ = close(descriptor)
      let isFolder = isKnown && status.st_mode & S_IFMT == S_IFDIR
      throw UnreadableFile(reason: isFolder ? describeError(EISDIR) : "it is no regular file")
    }
    return descriptor
  }
}
