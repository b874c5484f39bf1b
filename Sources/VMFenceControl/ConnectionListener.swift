internal import Foundation
internal import Glibc
internal import Synchronization
internal import VMFenceCore

/// Takes connections at a socket and serves each in a thread of its own: so many at once, and whoever comes beyond is sent away and counted. Owns the socket.
final class ConnectionListener: Sendable {
  private struct State {
    var clients = 0
    var isClosed = false
    var refused: UInt64 = 0
  }

  private let descriptor: Int32
  private let limit: Int
  private let name: String
  private let state = Mutex(State())

  /// - `descriptor`: a socket that listens and does not block.
  /// - `limit`: how many are served at once.
  /// - `name`: of its threads, for whoever looks at them.
  init(_ descriptor: Int32, limit: Int, name: String) {
    self.descriptor = descriptor
    self.limit = limit
    self.name = name
  }

  /// Begins to take connections. Both bodies are called on other threads; the connection ends when `serve` returns.
  func start(
    sendAway: @escaping @Sendable (ControlConnection) -> Void = { _ in },
    serve: @escaping @Sendable (ControlConnection) -> Void
  ) {
    let thread = Thread { [self] in
      var pause = AcceptPause()
      while !isClosed {
        guard let connection = next(&pause) else { continue }
        guard enter() else {
          sendAway(connection)
          continue
        }
        let client = Thread { [self] in
          serve(connection)
          state.withLock { $0.clients -= 1 }
        }
        client.name = name + "-client"
        client.start()
      }
      Glibc.close(descriptor)
    }
    thread.name = name
    thread.start()
  }

  /// Ends the socket within half a second. Whoever serves looks at `isClosed`.
  ///
  /// - Returns: false when it was closed already.
  @discardableResult
  func close() -> Bool {
    state.withLock { state in
      defer { state.isClosed = true }
      return !state.isClosed
    }
  }

  var isClosed: Bool { state.withLock { $0.isClosed } }

  /// Clients that were sent away.
  var refused: UInt64 { state.withLock { $0.refused } }

  private func next(_ pause: inout AcceptPause) -> ControlConnection? {
    if let rest = pause.rest() { usleep(useconds_t(rest.wholeNanoseconds / 1000 + 1)) }
    var waited = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure, as is said.
    guard unsafe poll(&waited, 1, 500) > 0 else { return nil }
    let client = accept(descriptor, nil, nil)
    guard client >= 0 else {
      _ = pause.begins(after: errno)
      return nil
    }
    _ = fcntl(client, F_SETFD, FD_CLOEXEC)
    _ = fcntl(client, F_SETFL, O_NONBLOCK)
    return ControlConnection(descriptor: client)
  }

  private func enter() -> Bool {
    state.withLock { state in
      guard state.clients < limit else {
        state.refused += 1
        return false
      }
      state.clients += 1
      return true
    }
  }
}
