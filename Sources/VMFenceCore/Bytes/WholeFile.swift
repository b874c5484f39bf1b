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
    let (descriptor, size) = try open(path)
    defer { _ = close(descriptor) }
    // What is known to be too large is not read at all.
    guard size <= limit else { throw tooLarge(limit) }
    let bytes = try beginning(of: descriptor, size, limit + 1)
    guard bytes.count <= limit else { throw tooLarge(limit) }
    return bytes
  }

  /// A text, without the byte order mark that some editors begin a file with and that would be a part of its first word.
  package static func readText(_ path: String, atMost limit: Int) throws(UnreadableFile) -> [UInt8] {
    let bytes = try read(path, atMost: limit)
    return bytes.starts(with: [0xEF, 0xBB, 0xBF]) ? Array(bytes.dropFirst(3)) : bytes
  }

  /// - Returns: what it begins with, `limit` bytes at the most, whatever lies behind.
  package static func readBeginning(_ path: String, atMost limit: Int) throws(UnreadableFile) -> [UInt8] {
    let (descriptor, size) = try open(path)
    defer { _ = close(descriptor) }
    return try beginning(of: descriptor, size, limit)
  }

  private static func beginning(of descriptor: Int32, _ size: Int, _ limit: Int) throws(UnreadableFile) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(min(size, limit))
    var block = [UInt8](repeating: 0, count: min(blockBytes, limit))
    while bytes.count < limit {
      // SAFETY: read(2) writes at most as many bytes as the block has.
      let count = unsafe block.withUnsafeMutableBytes { room in
        unsafe Glibc.read(descriptor, room.baseAddress, min(room.count, limit - bytes.count))
      }
      if count < 0, errno == EINTR { continue }
      guard count >= 0 else { throw UnreadableFile(reason: describeError(errno)) }
      guard count > 0 else { break }
      bytes += block[..<count]
    }
    return bytes
  }

  private static func tooLarge(_ limit: Int) -> UnreadableFile {
    let isRound = limit > 0 && limit % (1 << 20) == 0
    return UnreadableFile(reason: "it has more than \(isRound ? "\(limit >> 20) MiB" : "\(limit) bytes")")
  }

  /// Whether it can be opened now; nil when it can.
  package static func problem(_ path: String) -> UnreadableFile? {
    do throws(UnreadableFile) { _ = close(try open(path).descriptor) } catch { return error }
    return nil
  }

  /// - Returns: besides, its size, which of what the kernel makes up is 0.
  private static func open(_ path: String) throws(UnreadableFile) -> (descriptor: Int32, size: Int) {
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
    return (descriptor, Int(status.st_size))
  }
}
