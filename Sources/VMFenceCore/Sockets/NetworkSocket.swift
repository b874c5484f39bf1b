internal import Glibc

/// TCP and UDP to other machines.
package enum NetworkSocket {
  package enum Kind: String, Sendable { case tcp, udp }

  /// A socket that is connected to `host` (a name, or an address without brackets), blocking, with time-outs for sending and receiving. Tries all addresses of
  /// a name in turn. Waits for names and connections: not for a thread that is in a hurry.
  package static func connect(
    _ kind: Kind, host: String, port: UInt16, timeout: Duration
  ) throws(SystemFailure) -> Int32 {
    let type = Int32(kind == .tcp ? SOCK_STREAM.rawValue : SOCK_DGRAM.rawValue)
    // SAFETY: a structure of numbers, and of pointers that stay nil.
    var hints = unsafe addrinfo()
    unsafe hints.ai_family = AF_UNSPEC
    unsafe hints.ai_socktype = type
    unsafe hints.ai_flags = AI_NUMERICSERV
    var list: UnsafeMutablePointer<addrinfo>?
    // SAFETY: both texts end in zero and live during the call; the list is ours until it is freed.
    let result = unsafe getaddrinfo(host, String(port), &hints, &list)
    guard result == 0 else {
      // SAFETY: gai_strerror(3) returns a constant text.
      let reason = unsafe String(cString: gai_strerror(result))
      throw SystemFailure(call: "look up \(host.escapedForDisplay) (\(reason))", number: ENOENT)
    }
    defer { unsafe freeaddrinfo(list) }
    var failure = SystemFailure(call: "connect to \(host.escapedForDisplay) port \(port)", number: EHOSTUNREACH)
    var next = unsafe list
    // SAFETY: the entries of the list are valid until it is freed; each has an address of the length that it says.
    while let entry = unsafe next {
      unsafe next = entry.pointee.ai_next
      let descriptor = unsafe socket(
        entry.pointee.ai_family, type | Int32(SOCK_CLOEXEC.rawValue), entry.pointee.ai_protocol)
      guard descriptor >= 0 else { continue }
      setTimeout(descriptor, timeout)
      // With a time-out for sending, connect(2) keeps to it.
      if unsafe Glibc.connect(descriptor, entry.pointee.ai_addr, entry.pointee.ai_addrlen) == 0 { return descriptor }
      failure.number = errno == EINPROGRESS ? ETIMEDOUT : errno
      close(descriptor)
    }
    throw failure
  }

  /// A TCP socket that listens at an address of this host, not blocking, and the port that it got.
  package static func listen(
    address: String, port: UInt16, backlog: Int32 = 16
  ) throws(SystemFailure) -> (descriptor: Int32, port: UInt16) {
    guard let parsed = IPAddress(address) else {
      throw SystemFailure(call: "`\(address.escapedForDisplay)` is no address", number: EINVAL)
    }
    let family = parsed.family == .v4 ? AF_INET : AF_INET6
    let flags = Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    let descriptor = socket(family, Int32(SOCK_STREAM.rawValue) | flags, 0)
    guard descriptor >= 0 else { throw SystemFailure(call: "make a socket", number: errno) }
    var yes: Int32 = 1
    // SAFETY: one number of the size that is said, which is only read.
    _ = unsafe setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, 4)
    // A sockaddr_in (ip(7)) or sockaddr_in6 (ipv6(7)) by hand: family, port, then the address at byte 4 or 8.
    var bytes = [UInt8](repeating: 0, count: parsed.family == .v4 ? 16 : 28)
    let start = parsed.family == .v4 ? 4 : 8
    let width = parsed.family.bitWidth / 8
    for index in 0..<width {
      let word = width == 16 && index < 8 ? parsed.high : parsed.low
      bytes[start + index] = UInt8(truncatingIfNeeded: word >> UInt64(8 * ((width - 1 - index) % 8)))
    }
    (bytes[2], bytes[3]) = (UInt8(port >> 8), UInt8(port & 0xFF))
    // SAFETY: an address of its family's size, valid during the calls; getsockname(2) writes no more than the length says.
    let result = unsafe bytes.withUnsafeMutableBytes { buffer -> Int32 in
      unsafe buffer.storeBytes(of: sa_family_t(family), as: sa_family_t.self)
      guard let base = buffer.baseAddress else { return -1 }
      let pointer = unsafe base.assumingMemoryBound(to: sockaddr.self)
      guard unsafe bind(descriptor, pointer, socklen_t(buffer.count)) == 0 else { return -1 }
      guard Glibc.listen(descriptor, backlog) == 0 else { return -1 }
      var length = socklen_t(buffer.count)
      return unsafe getsockname(descriptor, pointer, &length)
    }
    guard result == 0 else {
      let number = errno
      close(descriptor)
      throw SystemFailure(call: "listen at \(address) port \(port)", number: number)
    }
    return (descriptor, UInt16(bytes[2]) << 8 | UInt16(bytes[3]))
  }

  private static func setTimeout(_ descriptor: Int32, _ timeout: Duration) {
    let microseconds = max(1, timeout.wholeNanoseconds / 1000)
    var time = timeval(tv_sec: Int(microseconds / 1_000_000), tv_usec: Int(microseconds % 1_000_000))
    for option in [SO_SNDTIMEO, SO_RCVTIMEO] {
      // SAFETY: one structure of the size that is said, which is only read.
      _ = unsafe setsockopt(descriptor, SOL_SOCKET, option, &time, socklen_t(MemoryLayout<timeval>.size))
    }
  }
}
