internal import Glibc

/// An error of the system by its number, with what was tried.
package struct SystemFailure: Error {
  package var call: String
  package var number: Int32

  package init(call: String, number: Int32) {
    self.call = call
    self.number = number
  }

  package var description: String { "\(call): \(describeError(number))" }
  package var isPermission: Bool { number == EACCES || number == EPERM || number == EROFS }
}

/// Sockets of this machine (unix(7)). A path that begins with `@` is in the abstract namespace. All are close-on-exec.
package enum LocalSocket {
  package enum Kind: String, Sendable, CaseIterable {
    case stream, datagram

    var type: Int32 { Int32(self == .stream ? SOCK_STREAM.rawValue : SOCK_DGRAM.rawValue) }
  }

  /// The longest path, in bytes: `sun_path` without its end.
  package static let pathLimit = 107

  /// A socket that is connected to the one at `path`, not blocking.
  package static func connect(to path: String, _ kind: Kind) throws(SystemFailure) -> Int32 {
    let descriptor = try make(kind)
    // SAFETY: the address is valid during the call.
    let result = unsafe withAddress(path) { unsafe Glibc.connect(descriptor, $0, $1) }
    guard result == 0 else {
      let number = result == nil ? ENAMETOOLONG : errno
      close(descriptor)
      throw SystemFailure(call: "connect to \(path.escapedForDisplay)", number: number)
    }
    return descriptor
  }

  /// A socket that listens (stream) or receives (datagram) at `path`, made anew with `mode`, not blocking. A socket that nobody listens at any
  /// more is replaced.
  ///
  /// - Throws: EADDRINUSE when somebody does, or when there is something else at that path.
  package static func bind(at path: String, _ kind: Kind, mode: UInt32, backlog: Int32 = 16) throws(SystemFailure)
    -> Int32
  {
    func failure(_ call: String, _ number: Int32) -> SystemFailure {
      SystemFailure(call: "\(call) \(path.escapedForDisplay)", number: number)
    }
    try removeStale(path, kind)
    let descriptor = try make(kind)
    // Nobody can connect before it listens, so the mode is set in time.
    // SAFETY: the address is valid during the call; the path is a string that ends in zero and lives during the call.
    let result = unsafe withAddress(path) { unsafe Glibc.bind(descriptor, $0, $1) }
    guard result == 0 else {
      let number = result == nil ? ENAMETOOLONG : errno
      close(descriptor)
      throw failure("bind", number)
    }
    if !path.hasPrefix("@"), unsafe chmod(path, mode) != 0 {
      let number = errno
      close(descriptor)
      throw failure("chmod", number)
    }
    if kind == .stream, listen(descriptor, backlog) != 0 {
      let number = errno
      close(descriptor)
      throw failure("listen at", number)
    }
    return descriptor
  }

  /// Sends one datagram without waiting.
  ///
  /// - Returns: whether it was sent.
  @discardableResult
  package static func send(_ bytes: [UInt8], toDatagramSocketAt path: String) -> Bool {
    guard let descriptor = try? make(.datagram) else { return false }
    defer { close(descriptor) }
    // SAFETY: both buffers are valid during the call, which only reads them.
    let sent = unsafe withAddress(path) { address, length in
      unsafe bytes.withUnsafeBytes {
        unsafe sendto(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL), address, length)
      }
    }
    return sent == bytes.count
  }

  private static func make(_ kind: Kind) throws(SystemFailure) -> Int32 {
    let flags = Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    let descriptor = socket(AF_UNIX, kind.type | flags, 0)
    guard descriptor >= 0 else { throw SystemFailure(call: "make a socket", number: errno) }
    return descriptor
  }

  private static func removeStale(_ path: String, _ kind: Kind) throws(SystemFailure) {
    if path.hasPrefix("@") { return }
    var status = stat()
    // SAFETY: the path is a string that ends in zero and lives during the calls; lstat(2) writes one structure.
    guard unsafe lstat(path, &status) == 0 else { return }
    guard status.st_mode & S_IFMT == S_IFSOCK else {
      throw SystemFailure(call: "bind \(path.escapedForDisplay)", number: EADDRINUSE)
    }
    do throws(SystemFailure) {
      close(try connect(to: path, kind))
    } catch {
      // Nobody is at the other end.
      // SAFETY: the path is a string that ends in zero and lives during the call.
      if error.number == ECONNREFUSED { _ = unsafe unlink(path) }
      return
    }
    throw SystemFailure(call: "bind \(path.escapedForDisplay)", number: EADDRINUSE)
  }

  /// nil when the path is too long or empty.
  private static func withAddress<Result>(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
  ) -> Result? {
    let bytes = Array(path.utf8)
    guard (1...pathLimit).contains(bytes.count) else { return nil }
    let isAbstract = bytes[0] == UInt8(ascii: "@")
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let offset = 2
    // SAFETY: the path is shorter than the field, which begins at byte 2 (unix(7)), and a sockaddr_un may be handed over as a sockaddr.
    return unsafe withUnsafeMutableBytes(of: &address) { buffer in
      for (index, byte) in bytes.enumerated() { unsafe buffer[offset + index] = byte }
      if isAbstract { unsafe buffer[offset] = 0 }
      let length = offset + bytes.count + (isAbstract ? 0 : 1)
      guard let base = buffer.baseAddress else { return nil }
      return unsafe body(UnsafePointer(base.assumingMemoryBound(to: sockaddr.self)), socklen_t(length))
    }
  }
}
