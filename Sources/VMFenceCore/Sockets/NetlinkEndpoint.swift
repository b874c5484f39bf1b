internal import Glibc

/// A socket to the kernel (netlink(7)), without a library, in the network namespace of the thread that opened it. Used by one thread at a time.
package struct NetlinkEndpoint: ~Copyable, Sendable {
  /// What can be asked and heard there (linux/netlink.h).
  package enum Family: Int32, Sendable {
    /// Interfaces, addresses and routes.
    case route = 0
    /// The packet filter.
    case netfilter = 12
  }

  private let descriptor: Int32
  /// What is at the other end, for errors.
  private let peer: String

  private init(descriptor: Int32, peer: String) {
    self.descriptor = descriptor
    self.peer = peer
  }
  deinit { close(descriptor) }

  /// - `groups`: whose news it gets: a bit for each.
  /// - `peer`: what is at the other end, for errors.
  package static func open(_ family: Family, groups: UInt32 = 0, peer: String) throws(NetlinkError) -> NetlinkEndpoint {
    let descriptor = socket(AF_NETLINK, Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), family.rawValue)
    guard descriptor >= 0 else { throw .socket(errno, "open a netlink socket") }
    let result = NetlinkEndpoint(descriptor: descriptor, peer: peer)
    guard groups != 0 else { return result }
    let address = address(groups: groups)
    // SAFETY: bind(2) reads as many bytes as are said, which the array has.
    let outcome = unsafe address.withUnsafeBytes { bytes in
      unsafe bind(descriptor, bytes.baseAddress!.assumingMemoryBound(to: sockaddr.self), socklen_t(bytes.count))
    }
    guard outcome == 0 else { throw .socket(errno, "listen to \(peer)") }
    return result
  }

  /// struct sockaddr_nl: family (16), padding (16), port (32; 0: the kernel), groups (32).
  private static func address(groups: UInt32) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(host: UInt16(AF_NETLINK))
    bytes.append(host: UInt16(0))
    bytes.append(host: UInt32(0))
    bytes.append(host: groups)
    return bytes
  }

  /// setsockopt(2) with a number.
  @discardableResult
  package func set(_ level: Int32, _ option: Int32, _ value: Int32) -> Bool {
    var value = value
    // SAFETY: one number of the size that is said, which is only read.
    return unsafe setsockopt(descriptor, level, option, &value, 4) == 0
  }

  /// Sends messages to the kernel, whole or not at all.
  package func send(_ bytes: [UInt8]) throws(NetlinkError) {
    let address = Self.address(groups: 0)
    while true {
      // SAFETY: sendto(2) reads as many bytes of both arrays as they have.
      let sent = unsafe bytes.withUnsafeBytes { data in
        unsafe address.withUnsafeBytes { place in
          unsafe sendto(
            descriptor, data.baseAddress, data.count, 0, place.baseAddress!.assumingMemoryBound(to: sockaddr.self),
            socklen_t(place.count))
        }
      }
      if sent == bytes.count { return }
      if sent < 0, errno == EINTR { continue }
      throw .socket(sent < 0 ? errno : EMSGSIZE, "send to \(peer)")
    }
  }

  /// Reads once. What others than the kernel have sent is not taken: whoever may is as strong as root, and no peer.
  ///
  /// - Returns: how many bytes came; nil when nothing waits, and `waits` is false.
  /// - Throws: `socket` with ENOBUFS when messages were lost.
  package func receive(into buffer: inout [UInt8], waits: Bool) throws(NetlinkError) -> Int? {
    var address = Self.address(groups: 0)
    while true {
      var length = socklen_t(address.count)
      // SAFETY: recvfrom(2) writes at most as many bytes to both arrays as they have.
      let count = unsafe buffer.withUnsafeMutableBytes { data in
        unsafe address.withUnsafeMutableBytes { place in
          unsafe recvfrom(
            descriptor, data.baseAddress, data.count, waits ? 0 : Int32(MSG_DONTWAIT),
            place.baseAddress!.assumingMemoryBound(to: sockaddr.self), &length)
        }
      }
      if count > 0 {
        if address.withRawSpan({ $0.hostU32(4) }) == 0 { return count }
        continue
      }
      if count < 0, errno == EINTR { continue }
      if count < 0, errno == EAGAIN, !waits { return nil }
      throw .socket(count < 0 ? errno : EIO, "read from \(peer)")
    }
  }
}
