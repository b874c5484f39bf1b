internal import Foundation
internal import Glibc
internal import Synchronization
public import VMFenceCore

/// Answers requests on a unix socket (mode 0600: who may open it may do everything). A thread for each client, a bounded number of them; everything that a
/// client sends or does not read is bounded.
public final class ControlServer: Sendable {
  public struct Limits: Sendable {
    /// Clients at once: room for as many questions as the daemon has waiting (the barrier's, 64), for those that follow, and for those that are
    /// answered soon.
    public var clients = 96
    /// So many of them may follow; whoever comes beyond is told, and may ask something else.
    public var followers = 16
    /// A request's length in bytes.
    public var request = 64 << 10
    /// Lines that wait for a follower, of one domain's alerts and of what else there is of it, so many of each; of all domains together twice as many. More
    /// are lost, and it is told how many.
    public var backlog = 4096
    /// How long a client may say nothing, or not take an answer.
    public var patience = Duration.seconds(30)

    public init() {}
  }

  /// Answers a request with an encoded JSON value.
  public typealias Handler = @Sendable (ControlRequest) async throws(ControlFailure) -> [UInt8]

  public let path: String
  private let limits: Limits
  private let handler: Handler
  private let listener: ConnectionListener
  private let followers = Mutex<[ObjectIdentifier: Follower]>([:])

  /// - Throws: `ControlFailure` when the socket cannot be made.
  public init(path: String, limits: Limits = Limits(), handler: @escaping Handler) throws(ControlFailure) {
    self.path = path
    self.limits = limits
    self.handler = handler
    do throws(SystemFailure) {
      listener = ConnectionListener(
        try LocalSocket.bind(at: path, .stream, mode: 0o600, backlog: Int32(clamping: limits.clients)),
        limit: limits.clients, name: "vmfence-control")
    } catch {
      throw ControlFailure(
        "the control socket cannot be made: \(error.description)",
        remedy: error.number == EADDRINUSE
          ? "another daemon runs, or something else is at that path" : "make its folder, or choose another path")
    }
  }

  /// Begins to answer.
  public func start() {
    let refusal = ControlAnswer.encode(
      .failure(
        ControlFailure(
          "\(limits.clients) clients are served already", remedy: "try again, or end one that follows alerts",
          cause: .busy)))
    listener.start(sendAway: { _ = $0.write(refusal, patience: Duration.zero) { true } }, serve: serve)
  }

  /// Ends the socket and all clients, within a second.
  public func close() {
    // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
    if listener.close() { _ = unsafe unlink(path) }
  }

  /// Clients that were sent away because there were too many.
  public var refused: UInt64 { listener.refused }

  public var hasFollowers: Bool { followers.withLock { !$0.isEmpty } }

  /// Hands a line to whoever follows: alerts, and to those who asked for all, everything.
  ///
  /// - `domain`: whose it is; nil for what concerns the host.
  public func publish(_ line: [UInt8], isAlert: Bool, of domain: Incarnation? = nil) {
    followers.withLock { followers in
      for follower in followers.values where isAlert || follower.wantsAll {
        follower.add(line, isAlert ? .traffic : .others, domain)
      }
    }
  }

  private var isClosed: Bool { listener.isClosed }

  // MARK: Clients

  /// Answers one client, until it hangs up or does not keep the limits.
  func serve(_ connection: ControlConnection) {
    while let line = connection.readLine(limit: limits.request, patience: limits.patience, while: { !isClosed }) {
      switch line {
      case .tooLong:
        let failure = ControlFailure("a request has at most \(limits.request) bytes")
        _ = connection.write(ControlAnswer.encode(.failure(failure)), patience: limits.patience) { !isClosed }
        return
      case .line(let bytes):
        let request: ControlRequest
        do { request = try JSONDecoder().decode(ControlRequest.self, from: Data(bytes)) } catch {
          let verbs = ControlRequest.Verb.allCases.map(\.rawValue).joined(separator: ", ")
          let failure = ControlFailure("this is no request", remedy: "one JSON object with `verb`: one of \(verbs)")
          guard
            connection.write(ControlAnswer.encode(.failure(failure)), patience: limits.patience, while: { !isClosed })
          else {
            return
          }
          continue
        }
        if request.verb == .follow, let follower = addFollower(wantsAll: request.all == true) {
          defer { followers.withLock { $0[ObjectIdentifier(follower)] = nil } }
          follow(connection, follower)
          return
        }
        let answer = request.verb == .follow ? tooManyFollow : answer(request)
        guard connection.write(answer, patience: limits.patience, while: { !isClosed }) else { return }
      }
    }
  }

  /// Waits for the answer in this client's own thread.
  private func answer(_ request: ControlRequest) -> [UInt8] {
    let result = Mutex<Result<[UInt8], ControlFailure>?>(nil)
    let box = Box(result: result)
    let done = DispatchSemaphore(value: 0)
    let handler = handler
    Task {
      do throws(ControlFailure) {
        let bytes = try await handler(request)
        box.set(.success(bytes))
      } catch { box.set(.failure(error)) }
      done.signal()
    }
    done.wait()
    return ControlAnswer.encode(box.take())
  }

  private final class Box: Sendable {
    private let result: Mutex<Result<[UInt8], ControlFailure>?>
    init(result: consuming sending Mutex<Result<[UInt8], ControlFailure>?>) { self.result = result }
    func set(_ value: Result<[UInt8], ControlFailure>) { result.withLock { $0 = value } }
    func take() -> Result<[UInt8], ControlFailure> {
      result.withLock { $0 } ?? .failure(ControlFailure("there is no answer"))
    }
  }

  // MARK: Followers

  private var tooManyFollow: [UInt8] {
    ControlAnswer.encode(
      .failure(
        ControlFailure(
          "\(limits.followers) clients follow already, or no descriptor is left", remedy: "try again, or end one",
          cause: .busy)))
  }

  /// nil: there are enough, or no descriptor is left.
  private func addFollower(wantsAll: Bool) -> Follower? {
    guard let follower = try? Follower(capacity: limits.backlog, wantsAll: wantsAll) else { return nil }
    return followers.withLock { followers in
      guard followers.count < limits.followers else { return nil }
      followers[ObjectIdentifier(follower)] = follower
      return follower
    }
  }

  private func follow(_ connection: ControlConnection, _ follower: Follower) {
    guard connection.write(Array("{\"ok\":true}\n".utf8), patience: limits.patience, while: { !isClosed }) else {
      return
    }
    while !isClosed {
      let (lines, lost) = follower.take()
      for line in lines {
        guard connection.write(line + [0x0A], patience: limits.patience, while: { !isClosed }) else { return }
      }
      if lost > 0 {
        let note = Array("{\"lost\":\(lost)}\n".utf8)
        guard connection.write(note, patience: limits.patience, while: { !isClosed }) else { return }
      }
      if lines.isEmpty, !connection.waitForNews(follower.descriptor, milliseconds: 500) { return }
    }
  }

  private final class Follower: Sendable {
    private struct Waiting {
      var queue: [[UInt8]] = []
      var room: EventRoom
    }

    private let waiting: Mutex<Waiting>
    private let capacity: Int
    let wantsAll: Bool
    private let wakeUp: WakeUp

    init(capacity: Int, wantsAll: Bool) throws(SystemFailure) {
      self.capacity = capacity
      self.wantsAll = wantsAll
      waiting = Mutex(Waiting(room: Self.room(capacity)))
      wakeUp = try WakeUp()
    }

    private static func room(_ capacity: Int) -> EventRoom {
      EventRoom(traffic: 2 * capacity, files: 0, others: 2 * capacity)
    }

    /// Readable when there are lines.
    var descriptor: Int32 { wakeUp.descriptor }

    func add(_ line: [UInt8], _ kind: EventRoom.Kind, _ domain: Incarnation?) {
      waiting.withLock { waiting in
        if waiting.room.enter(kind, of: domain) { waiting.queue.append(line) }
      }
      wakeUp.ring()
    }

    func take() -> (lines: [[UInt8]], lost: UInt64) {
      wakeUp.drain()
      return waiting.withLock { waiting in
        defer { waiting = Waiting(room: Self.room(capacity)) }
        return (waiting.queue, waiting.room.lostInAll)
      }
    }
  }
}
