internal import Glibc
internal import Synchronization
import VMFenceCore

/// Somebody else changed our table, or may have: what is in force has to be read back.
public struct ForeignChange: Hashable, Sendable, CustomStringConvertible {
  public enum Kind: String, Hashable, Sendable {
    case tableDeleted = "deleted the table"
    case changed = "changed the table"
    /// The kernel had more to tell than could be read: there may have been a change.
    case unknown = "may have changed the table"
  }

  public var kind: Kind
  /// The name of the process that did it, escaped for display; empty when it is not known.
  public var process: String
  public var processID: UInt32

  /// One sentence for the log.
  public var description: String {
    let who = process.isEmpty ? "another process" : "\(process) (process \(processID))"
    return kind == .unknown
      ? "changes of the packet filter were lost: somebody \(kind.rawValue)" : "\(who) \(kind.rawValue)"
  }
}

/// Reads what the kernel tells of changes, and finds those of others to our table.
struct ForeignChangeReader {
  /// NFT_MSG numbers.
  private enum Message {
    static let deleteTable: UInt16 = 2
    static let newGeneration: UInt16 = 15
  }

  let family: TableFamily
  let table: String
  /// The author of our own changes.
  let own: UInt32
  /// What the transaction that is being read did to our table.
  private var found: ForeignChange.Kind?

  init(family: TableFamily, table: String, own: UInt32) {
    self.family = family
    self.table = table
    self.own = own
  }

  /// Calls `report` for each transaction that touched the table. A transaction's messages end with its generation, which names the process.
  mutating func read(_ bytes: RawSpan, _ report: (ForeignChange) -> Void) throws(NetlinkError) {
    try NetlinkMessage.forEach(in: bytes) { (message) throws(NetlinkError) in
      guard let number = message.tablesMessage, message.author != own else { return }
      let (family, range) = try message.attributes(of: bytes)
      if number == Message.newGeneration {
        guard let kind = found else { return }
        found = nil
        var change = ForeignChange(kind: kind, process: "", processID: 0)
        try NetlinkAttribute.forEach(in: bytes, range) { (part) throws(NetlinkError) in
          if part.type == 2 { change.processID = try part.u32(bytes) }
          if part.type == 3 { change.process = part.text(bytes).escapedForDisplay }
        }
        return report(change)
      }
      // Of the chains at ports the kernel itself deletes those whose interfaces are gone.
      let isAtPorts = family == TableFamily.netdev.rawValue && number == Message.deleteTable
      guard family == self.family.rawValue || isAtPorts else { return }
      try NetlinkAttribute.forEach(in: bytes, range) { part in
        // The table's name is attribute 1 in every kind of message.
        guard part.type == 1, part.text(bytes) == table else { return }
        if number == Message.deleteTable { found = .tableDeleted } else { found = found ?? .changed }
      }
    }
  }
}

/// Who wants to hear of something. Who reads too slowly gets the newest ones.
final class NewsStreams<News: Sendable>: Sendable {
  private struct Contents {
    var streams: [UInt64: AsyncStream<News>.Continuation] = [:]
    var next: UInt64 = 0
    var isFinished = false
  }

  private let contents = Mutex(Contents())

  func add() -> AsyncStream<News> {
    let (stream, continuation) = AsyncStream.makeStream(of: News.self, bufferingPolicy: .bufferingNewest(16))
    let number = contents.withLock { contents -> UInt64? in
      if contents.isFinished { return nil }
      contents.next += 1
      contents.streams[contents.next] = continuation
      return contents.next
    }
    guard let number else {
      continuation.finish()
      return stream
    }
    continuation.onTermination = { [weak self] _ in
      self?.contents.withLock { $0.streams[number] = nil }
    }
    return stream
  }

  @Sendable func report(_ news: News) {
    let streams = contents.withLock { Array($0.streams.values) }
    for stream in streams { stream.yield(news) }
  }

  func finish() {
    let streams = contents.withLock { contents in
      contents.isFinished = true
      defer { contents.streams = [:] }
      return Array(contents.streams.values)
    }
    for stream in streams { stream.finish() }
  }
}

/// A thread that waits for changes by others, until it is closed.
final class ChangeListener: Sendable {
  private let socket: NetlinkSocket
  private let reader: ForeignChangeReader
  /// Two ends of one connection: shut down when the thread is to end.
  private let bell: (far: Int32, near: Int32)
  private let report: @Sendable (ForeignChange) -> Void

  private init(
    _ socket: consuming NetlinkSocket, _ reader: ForeignChangeReader, bell: (far: Int32, near: Int32),
    _ report: @escaping @Sendable (ForeignChange) -> Void
  ) {
    self.socket = socket
    self.reader = reader
    self.bell = bell
    self.report = report
  }

  deinit {
    _ = Glibc.close(bell.far)
    _ = Glibc.close(bell.near)
  }

  /// - `report`: called on the listener's thread.
  static func start(
    family: TableFamily, table: String, own: UInt32, _ report: @escaping @Sendable (ForeignChange) -> Void
  ) throws(NetlinkError) -> ChangeListener {
    let socket = try NetlinkSocket.open(listens: true)
    try socket.ignore(author: own)
    var ends: [Int32] = [0, 0]
    // SAFETY: socketpair(2) writes two numbers.
    let made = unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends)
    guard made == 0 else { throw .socket(errno, "make a pair of sockets") }
    let listener = ChangeListener(
      socket, ForeignChangeReader(family: family, table: table, own: own), bell: (ends[0], ends[1]), report)
    let error = DetachedThread.start { listener.run() }
    guard error == 0 else { throw .socket(error, "start a thread") }
    return listener
  }

  /// Stops hearing of changes, or begins again.
  func listens(_ listens: Bool) { socket.listens(listens) }

  /// There may have been a change that was not heard of.
  func reportUnknownChange() { report(ForeignChange(kind: .unknown, process: "", processID: 0)) }

  /// Ends the thread soon.
  func close() {
    _ = shutdown(bell.far, Int32(SHUT_RDWR))
  }

  private func run() {
    var reader = reader
    var buffer = [UInt8](repeating: 0, count: 64 << 10)
    while waits() {
      do throws(NetlinkError) {
        guard let count = try socket.receive(into: &buffer, waits: false) else { continue }
        try buffer.withRawSpan { (bytes) throws(NetlinkError) in
          try reader.read(bytes.extracting(0..<count), report)
        }
      } catch .socket(ENOBUFS, _) {
        reportUnknownChange()
      } catch .socket {
        return
      } catch {
        reportUnknownChange()
      }
    }
  }

  /// - Returns: whether there is something to read; false when the thread is to end.
  private func waits() -> Bool {
    var descriptors = [
      pollfd(fd: socket.descriptor, events: Int16(POLLIN), revents: 0),
      pollfd(fd: bell.near, events: Int16(POLLIN), revents: 0),
    ]
    while true {
      // SAFETY: two structures, as said.
      let count = unsafe poll(&descriptors, 2, -1)
      if count < 0, errno == EINTR { continue }
      return count > 0 && descriptors[1].revents == 0
    }
  }
}
