internal import Foundation
internal import Glibc
internal import Synchronization
internal import VMFenceCore

/// Follows the processes of many disks over their control sockets, in one thread: says at once what one holds, what changed in protected
/// files, and when one comes or goes.
/// A process that is not there, or has gone, is looked for every second.
///
/// What a process writes is not trusted: its lines are bounded, and one that writes nonsense is hung up on and looked for anew. An event that whoever is told has
/// no room for is not acknowledged, and nothing more of that process is read until there is room: then it is said again. So the process keeps what it tells.
public final class DiskFollower: Sendable {
  public enum News: Sendable {
    case status(DiskControlStatus)
    case event(DiskFileEvent)
    /// So many events were not handed over, because they were not taken in time.
    case lost(UInt64)
    /// Nobody is there.
    case absent
  }

  /// Which of the paths, and what is new of its process.
  ///
  /// - Returns: whether it was taken. An event that was not is said again after `resume`.
  public typealias Handler = @Sendable (_ index: Int, News) -> Bool

  /// In bytes; an answer is shorter.
  private static let lineLimit = 256 << 10
  private static let interval: Duration = .seconds(1)

  private let wakeUp: WakeUp
  private let isClosed = Atomic<Bool>(false)

  /// Begins to follow.
  ///
  /// - `paths`: the control sockets.
  /// - `handler`: called in the follower's thread: at the start for each that is not there, and then for each change.
  /// - Throws: when there are no descriptors left.
  public init(_ paths: [String], _ handler: @escaping Handler) throws(ControlFailure) {
    do throws(SystemFailure) { wakeUp = try WakeUp() } catch {
      throw ControlFailure("disks cannot be followed: \(error.description)", remedy: "raise the limit of open files")
    }
    let thread = Thread { [self] in follow(paths, handler) }
    thread.name = "vmfence-disks"
    thread.start()
  }

  /// There is room for events again.
  public func resume() { wakeUp.ring() }

  /// Ends it; nothing is said any more once its thread has noticed.
  public func close() {
    isClosed.store(true, ordering: .releasing)
    wakeUp.ring()
  }

  private func follow(_ paths: [String], _ handler: Handler) {
    var connections = [DiskConnection?](repeating: nil, count: paths.count)
    var isKnownAbsent = [Bool](repeating: false, count: paths.count)
    func noteAbsence(_ index: Int) {
      guard !isKnownAbsent[index] else { return }
      isKnownAbsent[index] = true
      _ = handler(index, .absent)
    }
    var nextLook = ContinuousClock.now
    while !isClosed.load(ordering: .acquiring) {
      if ContinuousClock.now >= nextLook {
        nextLook = ContinuousClock.now + Self.interval
        for index in paths.indices where connections[index] == nil {
          connections[index] = DiskConnection(paths[index])
          if connections[index] == nil { noteAbsence(index) }
        }
      }
      var waited = [pollfd(fd: wakeUp.descriptor, events: Int16(POLLIN), revents: 0)]
      let open = connections.indices.filter { connections[$0]?.isWaiting == false }
      waited += open.map { pollfd(fd: connections[$0]?.descriptor ?? -1, events: Int16(POLLIN), revents: 0) }
      let rest = max(.zero, ContinuousClock.now.duration(to: nextLook))
      // SAFETY: as many structures as the array has.
      _ = unsafe poll(&waited, nfds_t(waited.count), Int32(clamping: rest.wholeNanoseconds / 1_000_000 + 1))
      let isRung = waited[0].revents != 0
      if isRung { wakeUp.drain() }
      var ready = open.enumerated().filter { waited[$0.offset + 1].revents != 0 }.map(\.element)
      if isRung { ready += connections.indices.filter { connections[$0]?.isWaiting == true } }
      for index in ready {
        guard let connection = connections[index] else { continue }
        let isThere = connection.read(limit: Self.lineLimit) { news in
          isKnownAbsent[index] = false
          return handler(index, news)
        }
        if isThere { continue }
        connections[index] = nil
        noteAbsence(index)
      }
    }
  }
}

/// A connection to the process of a disk that says how it stands, and what changes. Used by one thread at a time.
final class DiskConnection {
  let descriptor: Int32
  /// What was read and not taken.
  private var buffer: [UInt8] = []
  /// The first of it was said, and found no room.
  private(set) var isWaiting = false

  private struct Line: Decodable {
    var result: DiskControlStatus?
    var event: DiskFileEvent?
    var number: UInt64?
    var lost: UInt64?

    /// An event first: of what can be refused there is one, and nothing of its line is said before it is taken.
    var news: [DiskFollower.News] {
      (event.map { [.event($0)] } ?? []) + (lost.map { [.lost($0)] } ?? []) + (result.map { [.status($0)] } ?? [])
    }
  }

  /// Nil when nobody is there.
  convenience init?(_ path: String) {
    guard let descriptor = try? LocalSocket.connect(to: path, .stream) else { return nil }
    self.init(descriptor: descriptor)
  }

  /// Takes over a socket that is connected and does not block, and asks for what is to be said there. Nil when nobody is at its other end.
  init?(descriptor: Int32) {
    self.descriptor = descriptor
    // A fresh socket has room for it.
    guard ask(DiskControlRequest(.follow, events: true)) else { return nil }
  }

  /// - Returns: false when nobody is there, or takes anything.
  private func ask(_ request: DiskControlRequest) -> Bool {
    let line = ((try? JSONEncoder().encode(request)).map { [UInt8]($0) } ?? []) + [0x0A]
    // SAFETY: the array's bytes are read.
    let sent = unsafe line.withUnsafeBytes {
      unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
    }
    return sent == line.count
  }

  deinit { close(descriptor) }

  /// Reads what has come, unless something is waiting that came before, and acknowledges events that were taken.
  ///
  /// - Returns: false when it hung up, or what it says is not understood.
  func read(limit: Int, _ body: (DiskFollower.News) -> Bool) -> Bool {
    if !isWaiting {
      var chunk = [UInt8](repeating: 0, count: 64 << 10)
      // SAFETY: as many bytes as the array has.
      let count = unsafe chunk.withUnsafeMutableBytes { unsafe recv(descriptor, $0.baseAddress, $0.count, 0) }
      guard count > 0 else { return count < 0 && (errno == EAGAIN || errno == EINTR) }
      buffer += chunk[..<count]
    }
    var taken: UInt64?
    let isUnderstood = takeLines(&taken, body)
    // One that has died has said more, perhaps, and that is read first.
    if let taken { _ = ask(DiskControlRequest(.acknowledge, number: taken)) }
    return isUnderstood && (isWaiting || buffer.count <= limit)
  }

  /// - `taken`: the number of the last event among them.
  private func takeLines(_ taken: inout UInt64?, _ body: (DiskFollower.News) -> Bool) -> Bool {
    isWaiting = false
    var start = 0
    while let end = buffer[start...].firstIndex(of: 0x0A) {
      let line = try? JSONDecoder().decode(Line.self, from: Data(buffer[start..<end]))
      guard let news = line?.news, !news.isEmpty else { return false }
      guard body(news[0]) else {
        isWaiting = true
        break
      }
      for item in news.dropFirst() { _ = body(item) }
      start = end + 1
      taken = line?.number ?? taken
    }
    buffer.removeFirst(start)
    return true
  }
}
