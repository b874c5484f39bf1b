internal import CNftables
internal import Glibc
internal import Synchronization
public import VMFenceCore

/// Sends resets into a bridge as if they came from the other end, by a packet socket (packet(7)). They enter the bridge from the host's side, so the flow's
/// own cut does not stop them. Safe to use from any thread.
public final class ResetSender: Sendable {
  private let descriptor: Int32

  private init(descriptor: Int32) { self.descriptor = descriptor }

  deinit { _ = close(descriptor) }

  /// Opens a socket in the network namespace that the calling thread is in.
  ///
  /// - Throws: `permissionDenied` without CAP_NET_RAW.
  public static func open() throws(FirewallError) -> ResetSender {
    let descriptor = socket(AF_PACKET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else {
      let number = errno
      guard number == EPERM || number == EACCES else {
        throw FirewallError(.failed, "cannot open a packet socket for resets: \(describeError(number))")
      }
      throw FirewallError(
        .permissionDenied, "cannot open a packet socket for resets: this process lacks CAP_NET_RAW",
        remedy: "run as root or with the capability, or reject nothing")
    }
    return ResetSender(descriptor: descriptor)
  }

  /// Sends both frames into the bridge.
  ///
  /// - Throws: `failed` when there is no such bridge, or it takes no frames.
  public func send(_ reset: TCPReset, bridge: String) throws(FirewallError) {
    // SAFETY: the name is read during the call.
    let index = unsafe vmfence_nft_interface_index(descriptor, bridge)
    guard index > 0 else {
      throw FirewallError(.failed, "cannot send resets: there is no bridge \(bridge.escapedForDisplay)")
    }
    for frame in [reset.toDestination, reset.toSource] where !send(frame, index: UInt32(index)) {
      throw FirewallError(
        .failed, "cannot send a reset into \(bridge.escapedForDisplay): \(describeError(errno))")
    }
  }

  private func send(_ frame: [UInt8], index: UInt32) -> Bool {
    // struct sockaddr_ll: family and protocol (as in the frame), index, hardware type, packet type, address length, address.
    let family = UInt16(AF_PACKET).hostBytes
    var address = family + [frame[12], frame[13]] + index.hostBytes
    address += [UInt8](repeating: 0, count: 20 - address.count)
    address[11] = 6
    let count = socklen_t(address.count)
    // SAFETY: sendto(2) reads as many bytes as the arrays have.
    return unsafe address.withUnsafeBytes { target in
      unsafe frame.withUnsafeBytes { bytes in
        unsafe sendto(
          descriptor, bytes.baseAddress, bytes.count, 0, target.baseAddress!.assumingMemoryBound(to: sockaddr.self),
          count)
          == bytes.count
      }
    }
  }
}

extension FixedWidthInteger {
  /// The bytes in the machine's own order.
  fileprivate var hostBytes: [UInt8] {
    let bytes = (0..<Self.bitWidth / 8).map { UInt8(truncatingIfNeeded: self >> (8 * $0)) }
    return UInt16(littleEndian: 1) == 1 ? bytes : bytes.reversed()
  }
}
