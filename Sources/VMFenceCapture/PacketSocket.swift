internal import Glibc
import VMFenceCore

/// A packet socket (packet(7)) that receives the frames of one interface.
struct PacketSocket: ~Copyable, Sendable {
  /// Of linux/if_packet.h, which cannot be imported next to netinet/in.h.
  enum Status {
    static let checksumNotReady: UInt32 = 1 << 3
    static let vlanValid: UInt32 = 1 << 4
    static let checksumValid: UInt32 = 1 << 7
  }
  static let outgoing: UInt8 = 4
  private enum Option {
    static let level: Int32 = 263
    static let addMembership: Int32 = 1
    static let receiveRing: Int32 = 5
    static let statistics: Int32 = 6
    static let version: Int32 = 10
  }
  /// Of linux/if_arp.h.
  enum Hardware {
    static let ethernet: UInt16 = 1
    static let rawIP: UInt16 = 519
    static let loopback: UInt16 = 772
    static let none: UInt16 = 0xFFFE
  }

  let descriptor: Int32

  private init(descriptor: Int32) { self.descriptor = descriptor }

  deinit { _ = close(descriptor) }

  /// Opens a socket that receives nothing yet. The corresponding C function is `socket(2)`.
  static func open() throws(SystemFailure) -> PacketSocket {
    let descriptor = socket(AF_PACKET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw SystemFailure(call: "socket", number: errno) }
    return PacketSocket(descriptor: descriptor)
  }

  /// Takes over a socket that another process has opened; nil, and it is closed, when it is not one that receives nothing yet.
  ///
  /// What else may have been set on it is not to be seen; a ring that it has already makes `makeRing` fail.
  static func adopt(_ descriptor: Int32) -> PacketSocket? {
    let socket = PacketSocket(descriptor: descriptor)
    let (index, _, packetProtocol) = socket.boundAddress()
    guard socket.option(SO_DOMAIN) == AF_PACKET, socket.option(SO_TYPE) == Int32(SOCK_RAW.rawValue), index == 0,
      packetProtocol == 0
    else { return nil }
    return socket
  }

  /// The descriptor, which is the caller's to close from here on.
  consuming func release() -> Int32 {
    let descriptor = descriptor
    discard self
    return descriptor
  }

  /// What it means for a capture that there is no socket.
  static func openingFailure(_ number: Int32, _ interface: String) -> PacketSourceError {
    guard number == EPERM || number == EACCES else { return failure("open a packet socket", interface, number) }
    return PacketSourceError(
      .permissionDenied, "cannot capture on \(interface.escapedForDisplay): there is no CAP_NET_RAW",
      remedy: "run as root, or give it to the program that opens packet sockets: setcap cap_net_raw+ep PROGRAM")
  }

  /// Gives the socket its ring and maps it.
  func makeRing(_ configuration: LiveCapture.Configuration, _ interface: String) throws(PacketSourceError) -> PacketRing
  {
    try set(Option.version, [2], "choose TPACKET_V3", interface)
    let blocks = max(2, configuration.bufferSize / PacketRing.blockSize)
    let frameSize = 2_048
    let milliseconds = UInt32(clamping: max(1, configuration.latency.wholeNanoseconds / 1_000_000))
    // struct tpacket_req3: block size, blocks, frame size, frames, time after which a block is handed over, private, features.
    let request = [
      UInt32(PacketRing.blockSize), UInt32(clamping: blocks), UInt32(frameSize),
      UInt32(clamping: blocks * (PacketRing.blockSize / frameSize)), milliseconds, 0, 0,
    ]
    try set(Option.receiveRing, request, "allocate a buffer of \(blocks * PacketRing.blockSize) bytes", interface)
    guard let ring = PacketRing.map(descriptor: descriptor, blockCount: blocks) else {
      throw Self.failure("map the buffer", interface, errno)
    }
    return ring
  }

  /// From here on the interface's frames arrive.
  ///
  /// - Returns: the hardware type (`ARPHRD_*`).
  func bind(index: UInt32, _ interface: String) throws(PacketSourceError) -> UInt16 {
    // struct sockaddr_ll: family, protocol (ETH_P_ALL in network order), index, hardware type, packet type, address.
    var address = [UInt8](repeating: 0, count: 20)
    store(UInt16(AF_PACKET), in: &address, at: 0)
    store(UInt16(3).bigEndian, in: &address, at: 2)
    store(index, in: &address, at: 4)
    let count = socklen_t(address.count)
    // SAFETY: `bind` reads `count` bytes, which the array has.
    let result = unsafe address.withUnsafeBytes { bytes in
      unsafe Glibc.bind(descriptor, bytes.baseAddress!.assumingMemoryBound(to: sockaddr.self), count)
    }
    guard result == 0 else { throw Self.failure("receive from the interface", interface, errno) }
    return boundAddress().hardwareType
  }

  /// What the kernel says the socket is bound to; the index is -1 once the interface is gone. Of the socket's own network
  /// namespace, wherever the calling thread is. The corresponding C function is `getsockname(2)`.
  func boundAddress() -> (index: Int32, hardwareType: UInt16, protocol: UInt16) {
    var address = [UInt8](repeating: 0, count: 20)
    var count = socklen_t(address.count)
    // SAFETY: `getsockname` writes at most `count` bytes, which the array has.
    _ = unsafe address.withUnsafeMutableBytes { bytes in
      unsafe getsockname(descriptor, bytes.baseAddress!.assumingMemoryBound(to: sockaddr.self), &count)
    }
    return address.withRawSpan { (Int32(bitPattern: $0.u32le(4)), $0.u16le(8), $0.u16(2)) }
  }

  /// Makes the interface hand over frames that are meant for others, as long as the socket is open.
  func makePromiscuous(index: UInt32, _ interface: String) throws(PacketSourceError) {
    // struct packet_mreq: index, type (PACKET_MR_PROMISC) and address length, address.
    try set(Option.addMembership, [index, 1, 0, 0], "make the interface promiscuous", interface)
  }

  /// The frames that did not fit into the ring since the last call.
  func takeDrops() -> UInt64 {
    // struct tpacket_stats_v3: packets, drops, times the ring was full.
    var statistics = [UInt32](repeating: 0, count: 3)
    var count = socklen_t(12)
    // SAFETY: the kernel writes at most `count` bytes, which the array has.
    let result = unsafe statistics.withUnsafeMutableBytes { bytes in
      unsafe getsockopt(descriptor, Option.level, Option.statistics, bytes.baseAddress, &count)
    }
    return result == 0 ? UInt64(statistics[1]) : 0
  }

  /// Takes the pending error off the socket; 0 when there is none.
  func takeError() -> Int32 { option(SO_ERROR) ?? 0 }

  /// An option of any socket; nil when it is none.
  private func option(_ name: Int32) -> Int32? {
    var value: Int32 = 0
    var count = socklen_t(4)
    // SAFETY: the kernel writes an int.
    return unsafe getsockopt(descriptor, SOL_SOCKET, name, &value, &count) == 0 ? value : nil
  }

  enum Wait { case ready, nothing, error }

  /// Waits until a block is handed over, for at most `patience`.
  func wait(_ patience: Duration) -> Wait {
    let milliseconds = Int32(clamping: (max(0, patience.wholeNanoseconds) &+ 999_999) / 1_000_000)
    var request = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure, as the count says.
    let count = unsafe poll(&request, 1, milliseconds)
    guard count > 0 else { return .nothing }
    return request.revents & Int16(POLLERR) != 0 ? .error : .ready
  }

  // MARK: Options

  private func set(
    _ option: Int32, _ value: [UInt32], _ purpose: String, _ interface: String
  ) throws(PacketSourceError) {
    // SAFETY: the kernel reads the array's bytes, as the length says.
    let result = unsafe value.withUnsafeBytes { bytes in
      unsafe setsockopt(descriptor, Option.level, option, bytes.baseAddress, socklen_t(bytes.count))
    }
    guard result == 0 else { throw Self.failure(purpose, interface, errno) }
  }

  static func failure(_ purpose: String, _ interface: String, _ number: Int32) -> PacketSourceError {
    PacketSourceError(
      .inputOutput, "cannot \(purpose) to capture on \(interface.escapedForDisplay): \(systemErrorText(number))",
      remedy: number == ENOMEM ? "choose a smaller buffer" : "check the interface with: ip link show")
  }
}

/// Stores a number in the host's byte order.
func store<Number: FixedWidthInteger>(_ number: Number, in bytes: inout [UInt8], at offset: Int) {
  for index in 0..<MemoryLayout<Number>.size {
    bytes[offset + index] = UInt8(truncatingIfNeeded: number.littleEndian >> Number(8 * index))
  }
}
