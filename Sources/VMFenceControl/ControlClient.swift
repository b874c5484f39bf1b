internal import Foundation
internal import Glibc
internal import VMFenceCore

/// Asks a daemon over its control socket. Blocking; used by one thread at a time.
public final class ControlClient {
  /// A line of an answer is not longer.
  static let answerLimit = 256 << 20

  private let connection: ControlConnection
  private let patience: Duration

  /// - `patience`: for each answer.
  /// - `admission`: how long to wait for a place among those whom the daemon has yet to accept; nil: as for an answer.
  /// - Throws: when nobody answers at `path`.
  public init(
    path: String, patience: Duration = .seconds(60), admission: Duration? = nil
  ) throws(ControlFailure) {
    self.patience = patience
    do throws(SystemFailure) {
      connection = ControlConnection(descriptor: try Self.connect(to: path, within: admission ?? patience))
    } catch {
      throw ControlFailure(
        "the daemon cannot be reached: \(error.description)",
        remedy: error.isPermission
          ? "the socket is for its owner only: use the daemon's user, or root"
          : "start the daemon, and name its control socket",
        cause: error.isPermission ? .permission : .unreachable)
    }
  }

  /// Where as many wait to be accepted as the daemon allows, the kernel sends away whoever does not block: until there is room, it is asked again.
  private static func connect(to path: String, within patience: Duration) throws(SystemFailure) -> Int32 {
    let end = ContinuousClock.now + patience
    while true {
      do throws(SystemFailure) { return try LocalSocket.connect(to: path, .stream) } catch {
        guard error.number == EAGAIN, ContinuousClock.now < end else { throw error }
        usleep(10_000)
      }
    }
  }

  /// The answer's result, as JSON.
  public func ask(_ request: some Encodable) throws(ControlFailure) -> [UInt8] {
    try send(request)
    guard let line = try nextLine() else {
      throw ControlFailure(
        "the daemon did not answer", remedy: "see its log, and whether it still runs", cause: .unreachable)
    }
    return line
  }

  /// The answer's result.
  public func ask<Result: Decodable>(
    _ request: some Encodable, _ type: Result.Type
  ) throws(ControlFailure) -> Result {
    let answer: Answer<Result>
    let bytes = try ask(request)
    do { answer = try JSONDecoder().decode(Answer<Result>.self, from: Data(bytes)) } catch {
      throw ControlFailure("the daemon's answer is not understood", remedy: "use the same version of both")
    }
    if let failure = answer.error { throw failure }
    guard let result = answer.result else { throw ControlFailure("the daemon's answer is empty") }
    return result
  }

  /// Lines as they come, until `body` says false.
  ///
  /// - Throws: `unreachable` when the daemon ends, or hangs up; `busy` when enough follow already.
  public func follow(all: Bool, _ body: ([UInt8]) -> Bool) throws(ControlFailure) {
    try send(ControlRequest(.follow, all: all))
    guard let answer = try nextLine() else { throw Self.hungUp }
    if let failure = (try? JSONDecoder().decode(Answer<String>.self, from: Data(answer)))?.error { throw failure }
    repeat {
      guard
        case .line(let line)? = connection.readLine(
          limit: Self.answerLimit, patience: .seconds(1 << 30), while: { true })
      else { throw Self.hungUp }
      guard body(line) else { return }
    } while true
  }

  private static let hungUp = ControlFailure(
    "the daemon hung up", remedy: "it ended, or lines were not read for too long: see its log", cause: .unreachable)

  private struct Answer<Result: Decodable>: Decodable {
    var ok: Bool
    var result: Result?
    var error: ControlFailure?
  }

  private func send(_ request: some Encodable) throws(ControlFailure) {
    guard let bytes = try? JSONEncoder().encode(request),
      connection.write(Array(bytes) + [0x0A], patience: patience, while: { true })
    else { throw Self.hungUp }
  }

  private func nextLine() throws(ControlFailure) -> [UInt8]? {
    switch connection.readLine(limit: Self.answerLimit, patience: patience, while: { true }) {
    case .line(let line): return line
    case .tooLong: throw ControlFailure("the daemon's answer has no end")
    case nil: return nil
    }
  }
}
