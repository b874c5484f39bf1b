#if Daemon
internal import CLinux
import Foundation
import VMFenceControl
import VMFenceCore

/// The control socket of a disk's process, served between the guest's requests by the thread that serves those: the system call
/// filter forbids others. Everything that a client sends, or does not read, is bounded.
final class ControlDesk {
  static let clientLimit = 4
  /// In bytes.
  static let requestLimit = 64 << 10
  /// What may wait for a client that does not read, in bytes; an answer is shorter.
  private static let waitingBytes = 256 << 10
  /// Of events, so that there is room for an answer; and how long one may be.
  private static let waitingEventBytes = 128 << 10
  /// How long a client may say nothing.
  static let patience = Duration.seconds(30)

  private struct Client {
    var descriptor: Int32
    var input: [UInt8] = []
    /// What its socket has no room for yet.
    var output: [UInt8] = []
    var lastHeard: Timestamp
    /// It is told of what changes, and need not say anything.
    var isFollowing = false
    /// It is told of changes to files, too: the number of the one that comes next, and up to which it has acknowledged them.
    var events: (next: UInt64, acknowledged: UInt64)?
    /// It takes nothing any more; what it has said is still to be read.
    var isDeaf = false

    init(_ descriptor: Int32, at time: Timestamp) {
      self.descriptor = descriptor
      lastHeard = time
    }

    /// - Returns: false when so much waits for it already that there is no room.
    mutating func put(_ line: [UInt8]) -> Bool {
      guard output.count + line.count <= ControlDesk.waitingBytes else { return false }
      output += line
      return true
    }

    /// Sends what waits, as much as its socket takes.
    mutating func flush() {
      guard !output.isEmpty else { return }
      // SAFETY: the array's bytes are read.
      let count = unsafe output.withUnsafeBytes { unsafe vmfence_send(descriptor, $0.baseAddress, $0.count, 0) }
      if count >= 0 {
        output.removeFirst(count)
      } else if errno != EAGAIN, errno != EINTR {
        isDeaf = true
        output.removeAll()
      }
    }

    /// Hands on events, as many as there is room for.
    mutating func take(from backlog: DiskEventBacklog) {
      while !isDeaf, let (next, acknowledged) = events, next < backlog.end,
        output.count < ControlDesk.waitingEventBytes
      {
        let line = backlog[next].flatMap { $0.count <= ControlDesk.waitingEventBytes ? $0 : nil }
        let after = line == nil ? max(next + 1, backlog.first) : next + 1
        guard put(line ?? ControlDesk.encode(DiskEventLine(number: after - 1, lost: after - next))) else { return }
        events = (after, acknowledged)
        flush()
      }
    }
  }

  private let listener: Int32
  private var acceptPause = AcceptPause()
  private var clients: [Client] = []
  private var backlog = DiskEventBacklog()

  /// Begins to listen; mode 0600. A socket that nobody listens at any more is replaced.
  init(path: String) throws(SystemFailure) { listener = try LocalSocket.bind(at: path, .stream, mode: 0o600) }

  deinit {
    close(listener)
    for client in clients { close(client.descriptor) }
  }

  /// Answers what has come, without waiting.
  func serve(at time: Timestamp, _ handler: (DiskControlRequest) -> Result<DiskControlStatus, ControlFailure>) {
    accept(at: time)
    forEach { client in
      guard serve(&client, at: time, handler) else { return false }
      client.take(from: backlog)
      client.flush()
      return true
    }
    // What one of several has not acknowledged yet, its successor is told.
    if let acknowledged = clients.compactMap(\.events?.acknowledged).min() { backlog.remove(through: acknowledged) }
  }

  private func accept(at time: Timestamp) {
    guard acceptPause.rest() == nil else { return }
    let descriptor = vmfence_unix_accept(listener, 1000, 1000, 64 << 10)
    guard descriptor >= 0 else {
      _ = acceptPause.begins(after: errno)
      return
    }
    guard clients.count >= Self.clientLimit else {
      clients.append(Client(descriptor, at: time))
      return
    }
    var client = Client(descriptor, at: time)
    _ = client.put(ControlAnswer.encode(.failure(ControlFailure("\(Self.clientLimit) clients are served already"))))
    client.flush()
    close(descriptor)
  }

  /// Hangs up on those clients of which `body` says false.
  private func forEach(_ body: (inout Client) -> Bool) {
    for index in clients.indices.reversed() where !body(&clients[index]) {
      close(clients[index].descriptor)
      clients.remove(at: index)
    }
  }

  /// - Returns: false when it has left, or is to.
  private func serve(
    _ client: inout Client, at time: Timestamp,
    _ handler: (DiskControlRequest) -> Result<DiskControlStatus, ControlFailure>
  ) -> Bool {
    var chunk = [UInt8](repeating: 0, count: 4096)
    // SAFETY: as many bytes as the chunk has.
    let count = unsafe chunk.withUnsafeMutableBytes {
      unsafe vmfence_receive(client.descriptor, $0.baseAddress, $0.count, 0)
    }
    guard count > 0 else {
      guard count < 0, errno == EAGAIN || errno == EINTR, !client.isDeaf else { return false }
      return client.isFollowing || time - client.lastHeard < Self.patience
    }
    client.lastHeard = time
    client.input += chunk[..<count]
    while let end = client.input.firstIndex(of: 0x0A) {
      let line = Array(client.input[..<end])
      client.input.removeFirst(end + 1)
      let request = try? JSONDecoder().decode(DiskControlRequest.self, from: Data(line))
      if request?.verb == .acknowledge {
        if let (next, acknowledged) = client.events, let number = request?.number {
          client.events = (next, max(acknowledged, min(number, next - 1)))
        }
        continue
      }
      if request?.verb == .follow {
        client.isFollowing = true
        client.events = request?.events == true ? (backlog.first, backlog.first - 1) : nil
      }
      guard client.put(ControlAnswer.encode(answer(request, handler))) else { return false }
    }
    guard client.input.count <= Self.requestLimit else {
      let failure = ControlFailure("a request has at most \(Self.requestLimit) bytes")
      if client.put(ControlAnswer.encode(.failure(failure))) { client.flush() }
      return false
    }
    return true
  }

  /// Tells those who follow; whoever does not take it is hung up on.
  func tell(_ status: DiskControlStatus) {
    let line = ControlAnswer.encode(Self.encode(status))
    forEach { client in
      guard client.isFollowing else { return true }
      guard client.put(line) else { return false }
      client.flush()
      return true
    }
  }

  /// Hands events on to those who follow, and keeps them until that is acknowledged: who comes later, because the daemon was away, is told
  /// them, too. What there is no room to keep is counted, and told.
  ///
  /// - `offset`: how far the system's clock is ahead of the events'.
  func tell(_ events: [FileEvent], shiftedBy offset: Duration) {
    guard !events.isEmpty else { return }
    for event in events {
      backlog.append(Self.encode(DiskEventLine(event: DiskFileEvent(event, shiftedBy: offset), number: backlog.end)))
    }
    for index in clients.indices { clients[index].take(from: backlog) }
  }

  private static func encode(_ line: DiskEventLine) -> [UInt8] {
    let bytes = (try? JSONEncoder().encode(line)).map { [UInt8]($0) } ?? []
    return bytes + [0x0A]
  }

  private func answer(
    _ request: DiskControlRequest?, _ handler: (DiskControlRequest) -> Result<DiskControlStatus, ControlFailure>
  ) -> Result<[UInt8], ControlFailure> {
    guard let request else {
      let verbs = DiskControlRequest.Verb.allCases.map(\.rawValue).joined(separator: ", ")
      return .failure(ControlFailure("this is no request", remedy: "one JSON object with `verb`: one of \(verbs)"))
    }
    return handler(request).flatMap(Self.encode)
  }

  private static func encode(_ status: DiskControlStatus) -> Result<[UInt8], ControlFailure> {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    guard let bytes = try? encoder.encode(status) else { return .failure(ControlFailure("there is no answer")) }
    return .success(Array(bytes))
  }
}
#endif
