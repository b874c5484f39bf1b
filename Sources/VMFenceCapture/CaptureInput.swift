internal import Glibc
import VMFenceCore

/// Where the bytes of a capture file come from: an open file, or memory. Read once, from the beginning to the end, so a
/// pipe serves as well as a file on disk.
struct CaptureInput: ~Copyable, Sendable {
  /// -1 when the bytes come from memory.
  private let descriptor: Int32
  private let memory: [UInt8]
  private var offset = 0

  private init(descriptor: Int32, memory: [UInt8]) {
    self.descriptor = descriptor
    self.memory = memory
  }

  deinit {
    if descriptor >= 0 { _ = close(descriptor) }
  }

  init(bytes: [UInt8]) { self.init(descriptor: -1, memory: bytes) }

  /// The corresponding C function is `open(2)`.
  static func open(path: String) throws(PacketSourceError) -> CaptureInput {
    // SAFETY: `open` reads the path up to its NUL, which Swift's bridging to a C string adds.
    let descriptor = unsafe Glibc.open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else {
      let number = errno
      let place = SourcePlace(file: path)
      switch number {
      case ENOENT:
        throw PacketSourceError(.inputOutput, "there is no such file", at: place, remedy: "check the path")
      case EACCES, EPERM:
        throw PacketSourceError(
          .permissionDenied, "the file may not be read", at: place, remedy: "give this user read permission")
      default:
        throw PacketSourceError(
          .inputOutput, "cannot open the file: \(systemErrorText(number))", at: place, remedy: "check the path")
      }
    }
    return CaptureInput(descriptor: descriptor, memory: [])
  }

  /// A descriptor of its own for standard input, which stays open. The corresponding C function is `fcntl(2)` with `F_DUPFD_CLOEXEC`.
  static func standardInput() throws(PacketSourceError) -> CaptureInput {
    let descriptor = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)
    guard descriptor >= 0 else {
      throw PacketSourceError(
        .inputOutput, "there is no standard input: \(systemErrorText(errno))", remedy: "redirect a capture into it")
    }
    return CaptureInput(descriptor: descriptor, memory: [])
  }

  /// Reads into `buffer` from index `start` on, as much as there is and fits.
  ///
  /// - Returns: how many bytes were read; 0 at the end, or the negative `errno`. The corresponding C function is `read(2)`.
  mutating func read(into buffer: inout [UInt8], from start: Int) -> Int {
    if descriptor < 0 {
      let count = min(memory.count - offset, buffer.count - start)
      for index in 0..<count { buffer[start + index] = memory[offset + index] }
      offset += count
      return count
    }
    let descriptor = descriptor
    // SAFETY: `read` writes at most the given count at the given place, and the slice says both.
    return unsafe buffer.withUnsafeMutableBytes { bytes in
      let room = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[start...])
      while true {
        let count = unsafe Glibc.read(descriptor, room.baseAddress, room.count)
        if count >= 0 { return count }
        if errno != EINTR { return -Int(errno) }
      }
    }
  }
}

/// The system's text for an `errno`. The corresponding C function is `strerror(3)`.
func systemErrorText(_ number: Int32) -> String {
  // SAFETY: glibc returns a NUL-terminated text that is constant, or private to the calling thread (since 2.32).
  unsafe String(cString: strerror(number))
}
