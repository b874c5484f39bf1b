internal import CNftables
internal import Glibc
import VMFenceCore

/// A socket to nf_tables (netlink(7), family NETLINK_NETFILTER). It stays in the network namespace in which it was opened. Used by one
/// thread at a time.
struct NetlinkSocket: ~Copyable, Sendable {
  /// Room for answers: a whole table's errors, and changes of others that wait to be read.
  static let receiveBuffer: Int32 = 8 << 20
  /// The kernel fills at most this much in one read of a dump.
  private static let readSize = 256 << 10

  let descriptor: Int32
  /// The socket's name as the author of changes.
  let port: UInt32
  private var sequence: UInt32 = 1
  private var sendBuffer = 0

  private init(descriptor: Int32, port: UInt32) {
    self.descriptor = descriptor
    self.port = port
  }

  deinit { _ = close(descriptor) }

  /// - `listens`: subscribes to the changes of the ruleset.
  static func open(listens: Bool = false) throws(NetlinkError) -> NetlinkSocket {
    let descriptor = vmfence_nft_socket(listens ? 1 : 0, receiveBuffer)
    guard descriptor >= 0 else { throw .socket(errno, "open a netlink socket") }
    return NetlinkSocket(descriptor: descriptor, port: vmfence_nft_port(descriptor))
  }

  /// Makes the kernel leave out the changes that `author` made.
  func ignore(author: UInt32) throws(NetlinkError) {
    guard vmfence_nft_ignore(descriptor, author) == 0 else {
      throw .socket(errno, "attach a filter to a netlink socket")
    }
  }

  /// Joins or leaves those who are told of changes. A failure shows when changes are missed: who reads back then sees them.
  func listens(_ listens: Bool) { _ = vmfence_nft_listen(descriptor, listens ? 1 : 0) }

  /// The number of an interface in this socket's network namespace; 0 when there is none.
  func interfaceNumber(of name: String) -> UInt32 {
    // SAFETY: the name is read up to its NUL.
    UInt32(bitPattern: unsafe vmfence_nft_interface_index(descriptor, name))
  }

  mutating func takeSequence(_ count: UInt32) -> UInt32 {
    // 0 is left out: it is what messages have that nobody asked for.
    if sequence > UInt32.max - count { sequence = 1 }
    defer { sequence += count }
    return sequence
  }

  // MARK: Transactions

  /// Sends a transaction and waits for the kernel's word. It has taken effect as a whole when this returns, and not at all when
  /// it throws.
  ///
  /// - `commits`: false lets the kernel check everything and change nothing.
  mutating func send(_ batch: borrowing Batch, commits: Bool = true) throws(NetlinkError) {
    let size = batch.byteCount
    if size > sendBuffer {
      sendBuffer = size * 2
      _ = vmfence_nft_send_buffer(descriptor, sendBuffer)
    }
    guard let last = batch.send(to: descriptor, commits: commits) else { throw .socket(errno, "send a transaction") }
    try awaitAnswer(to: last)
  }

  /// Reads until the acknowledgement of message `last`, and throws the first error that came before it.
  private mutating func awaitAnswer(to last: UInt32) throws(NetlinkError) {
    var failure: NetlinkError?
    var isAnswered = false
    var buffer = [UInt8](repeating: 0, count: 16 << 10)
    while !isAnswered {
      // The kernel has worked the transaction off when `send` returns: what it has to say waits already.
      let received: Int?
      do throws(NetlinkError) {
        received = try receive(into: &buffer, waits: false)
      } catch .socket(ENOBUFS, _) {
        // Acknowledgements are few; only errors can be more than fit.
        failure = failure ?? .refused(ENOBUFS, "more errors than can be read")
        continue
      }
      guard let count = received else { break }
      try buffer.withRawSpan { (whole) throws(NetlinkError) in
        let bytes = whole.extracting(0..<count)
        try NetlinkMessage.forEach(in: bytes) { (message) throws(NetlinkError) in
          guard message.type == NetlinkMessage.Kind.error else { return }
          if let error = try message.error(in: bytes), failure == nil { failure = error }
          if message.sequence == last { isAnswered = true }
        }
      }
    }
    if let failure { throw failure }
    guard isAnswered else { throw .socket(EIO, "read the kernel's answer to a transaction") }
  }

  // MARK: Questions

  /// Asks for what the table has, and calls `body` with each message of the answer.
  mutating func ask(
    _ question: Question, family: TableFamily, table: String, set: String? = nil,
    _ body: (NetlinkMessage, RawSpan) throws(NetlinkError) -> Void
  ) throws(NetlinkError) {
    let sequence = takeSequence(1)
    guard question.send(to: descriptor, family: family, table: table, set: set, sequence: sequence) else {
      throw .socket(errno, "ask nf_tables")
    }
    var buffer = [UInt8](repeating: 0, count: question == .generation ? 4 << 10 : Self.readSize)
    var isDone = false
    var failure: NetlinkError?
    while !isDone {
      guard let count = try receive(into: &buffer, waits: true) else { throw .socket(EIO, "read nf_tables' answer") }
      try buffer.withRawSpan { (whole) throws(NetlinkError) in
        let bytes = whole.extracting(0..<count)
        try NetlinkMessage.forEach(in: bytes) { (message) throws(NetlinkError) in
          guard message.sequence == sequence, !isDone else { return }
          if message.flags & NetlinkMessage.Flag.interrupted != 0 { failure = failure ?? .interrupted }
          switch message.type {
          case NetlinkMessage.Kind.error:
            if let error = try message.error(in: bytes) { failure = failure ?? error }
            isDone = true
          case NetlinkMessage.Kind.done: isDone = true
          default:
            if failure == nil { try body(message, bytes) }
            if message.flags & NetlinkMessage.Flag.multi == 0 { isDone = true }
          }
        }
      }
    }
    if let failure { throw failure }
  }

  /// The number of the ruleset's last change, of whatever table and by whomever (NFT_MSG_GETGEN). Each transaction raises it by one.
  mutating func rulesetGeneration() throws(NetlinkError) -> UInt32 {
    var generation: UInt32?
    try ask(.generation, family: .bridge, table: "") { (message, bytes) throws(NetlinkError) in
      try NetlinkAttribute.forEach(in: bytes, try message.attributes(of: bytes).range) { (part) throws(NetlinkError) in
        if part.type == 1 { generation = try part.u32(bytes) }
      }
    }
    guard let generation else { throw .malformed("no generation") }
    return generation
  }

  /// - Returns: how many bytes came; nil when none wait and `waits` is false.
  func receive(into buffer: inout [UInt8], waits: Bool) throws(NetlinkError) -> Int? {
    let room = buffer.count
    while true {
      // SAFETY: recv(2) writes at most `room` bytes, which the array has.
      let count = unsafe buffer.withUnsafeMutableBytes { bytes in
        unsafe recv(descriptor, bytes.baseAddress, room, waits ? 0 : Int32(MSG_DONTWAIT))
      }
      if count >= 0 { return count }
      let number = errno
      if number == EINTR { continue }
      if number == EAGAIN, !waits { return nil }
      throw .socket(number, "read from nf_tables")
    }
  }
}

enum Question: UInt32 {
  case table = 0
  case chains, rules, sets, elements, limits, generation

  fileprivate func send(to descriptor: Int32, family: TableFamily, table: String, set: String?, sequence: UInt32)
    -> Bool
  {
    let question = vmfence_nft_question(rawValue)
    // SAFETY: the texts live during the call, which reads them up to their zeros.
    guard let set else {
      return unsafe vmfence_nft_ask(descriptor, family.rawValue, table, question, nil, sequence) == 0
    }
    return unsafe vmfence_nft_ask(descriptor, family.rawValue, table, question, set, sequence) == 0
  }
}
