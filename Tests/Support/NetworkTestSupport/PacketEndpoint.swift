import Foundation
import Glibc

/// A packet socket on one interface of a namespace: sends frames as they are, and sees what arrives.
public final class PacketEndpoint: Sendable {
  private let descriptor: Int32

  public init(_ namespace: NetworkNamespace, _ interface: String = "eth0") throws {
    let index = try namespace.run("cat /sys/class/net/\(interface)/ifindex")
    descriptor = try namespace.inside {
      socket(AF_PACKET, Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), Int32(UInt16(3).bigEndian))
    }
    // struct sockaddr_ll: family, protocol (ETH_P_ALL in network order), index.
    var address = [UInt8](repeating: 0, count: 20)
    let number = UInt32(index.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
    address.replaceSubrange(0..<2, with: [UInt8(AF_PACKET), 0])
    address.replaceSubrange(2..<4, with: [0, 3])
    for byte in 0..<4 { address[4 + byte] = UInt8(truncatingIfNeeded: number >> UInt32(8 * byte)) }
    // SAFETY: `bind` reads as many bytes as said, which the array has.
    let result = unsafe address.withUnsafeBytes { bytes in
      unsafe bind(descriptor, bytes.baseAddress!.assumingMemoryBound(to: sockaddr.self), 20)
    }
    guard result == 0 else {
      throw NetworkNamespace.CommandFailed(script: "bind to \(interface)", status: errno, output: "")
    }
  }

  deinit { close(descriptor) }

  public func send(_ frame: [UInt8]) throws {
    // SAFETY: `send` reads as many bytes as the array has.
    let count = unsafe frame.withUnsafeBytes { unsafe Glibc.send(descriptor, $0.baseAddress, $0.count, 0) }
    guard count == frame.count else {
      throw NetworkNamespace.CommandFailed(script: "send a frame", status: errno, output: "")
    }
  }

  /// Waits until a frame for which `condition` holds arrives, at most for `milliseconds`.
  public func receives(within milliseconds: Int, _ condition: ([UInt8]) -> Bool) -> Bool {
    let deadline = ContinuousClock.now + .milliseconds(milliseconds)
    while ContinuousClock.now < deadline {
      var descriptors = [pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)]
      // SAFETY: one structure, as said.
      guard unsafe poll(&descriptors, 1, 10) > 0 else { continue }
      var buffer = [UInt8](repeating: 0, count: 70_000)
      let room = buffer.count
      // SAFETY: `recv` writes at most as many bytes as the array has.
      let count = unsafe buffer.withUnsafeMutableBytes {
        unsafe recv(descriptor, $0.baseAddress, room, Int32(MSG_DONTWAIT))
      }
      if count > 0, condition(Array(buffer[..<count])) { return true }
    }
    return false
  }
}
