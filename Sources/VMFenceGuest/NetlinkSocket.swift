internal import Glibc
import VMFenceCore

/// A socket to the packet filter of the network namespace in which it was opened (netlink(7), NETLINK_NETFILTER), without a library.
/// Used by one thread at a time.
struct NetlinkSocket: ~Copyable {
  // Numbers of linux/netlink.h.
  private static let optionLevel: Int32 = 270
  private static let options: [Int32] = [10, 11]
  /// The largest transaction of a policy has about 250 KiB; the kernel doubles this.
  private static let sendBuffer: Int32 = 1 << 20
  private static let receiveBuffer = 256 << 10

  private let endpoint: NetlinkEndpoint
  private var nextSequence: UInt32 = 1

  private init(_ endpoint: consuming NetlinkEndpoint) { self.endpoint = endpoint }

  static func open() throws(NetlinkError) -> NetlinkSocket {
    let endpoint = try NetlinkEndpoint.open(.netfilter, peer: "the packet filter")
    // Improvements, where they work: short errors, and errors in words.
    for option in options { endpoint.set(optionLevel, option, 1) }
    if !endpoint.set(SOL_SOCKET, SO_SNDBUFFORCE, sendBuffer) { endpoint.set(SOL_SOCKET, SO_SNDBUF, sendBuffer) }
    return NetlinkSocket(endpoint)
  }

  /// A transaction to be written, numbered behind all others of this socket.
  func writer() -> NetlinkWriter { NetlinkWriter(sequence: nextSequence) }

  // MARK: Transactions and questions

  /// Sends a transaction that was begun. It has taken effect as a whole when this returns, and not at all when it throws.
  mutating func commit(_ writer: consuming NetlinkWriter) throws(NetlinkError) {
    let last = writer.end()
    nextSequence = writer.sequence &+ 1
    try endpoint.send(writer.bytes)
    // The kernel has worked it off when it was sent: what it has to say waits already. The first error is the cause of all others.
    var failure: NetlinkError?
    var isAnswered = false
    var buffer = [UInt8](repeating: 0, count: Self.receiveBuffer)
    while !isAnswered, let count = try endpoint.receive(into: &buffer, waits: false) {
      try Self.forEachMessage(buffer, count) { (message, bytes) throws(NetlinkError) in
        guard message.type == NetlinkMessage.Kind.error else { return }
        if let error = try message.error(in: bytes) { failure = failure ?? error }
        if message.sequence == last { isAnswered = true }
      }
    }
    if let failure { throw failure }
    guard isAnswered else { throw .socket(EIO, "read the packet filter's answer") }
  }

  /// Asks, and calls `body` with each message of the answer.
  ///
  /// - `isList`: the answer is a list (NLM_F_DUMP), not one thing.
  mutating func ask(
    _ kind: NetlinkWriter.Message, isList: Bool, _ question: (inout NetlinkWriter) -> Void,
    _ body: (NetlinkMessage, RawSpan) throws(NetlinkError) -> Void
  ) throws(NetlinkError) {
    var writer = writer()
    writer.message(kind, flags: isList ? NetlinkWriter.Flag.dump : 0, question)
    nextSequence = writer.sequence &+ 1
    let sequence = writer.sequence
    try endpoint.send(writer.bytes)
    var isDone = false
    var failure: NetlinkError?
    var buffer = [UInt8](repeating: 0, count: Self.receiveBuffer)
    while !isDone, let count = try endpoint.receive(into: &buffer, waits: true) {
      try Self.forEachMessage(buffer, count) { (message, bytes) throws(NetlinkError) in
        guard message.sequence == sequence, !isDone else { return }
        if message.flags & NetlinkMessage.Flag.interrupted != 0 { failure = failure ?? .interrupted }
        if message.type == NetlinkMessage.Kind.error {
          if let error = try message.error(in: bytes) { failure = failure ?? error }
          isDone = true
        } else if message.type == NetlinkMessage.Kind.done {
          isDone = true
        } else {
          if failure == nil { try body(message, bytes) }
          isDone = message.flags & NetlinkMessage.Flag.multi == 0
        }
      }
    }
    if let failure { throw failure }
  }

  private static func forEachMessage(
    _ buffer: [UInt8], _ count: Int, _ body: (NetlinkMessage, RawSpan) throws(NetlinkError) -> Void
  ) throws(NetlinkError) {
    try buffer.withRawSpan { (whole) throws(NetlinkError) in
      let bytes = whole.extracting(0..<count)
      try NetlinkMessage.forEach(in: bytes) { (message) throws(NetlinkError) in try body(message, bytes) }
    }
  }
}
