extension NBDEngine {
  /// How long a client that comes while there is no time for requests waits for each answer of its handshake, in nanoseconds.
  private static let greetingInterval: UInt64 = 20_000_000

  /// Takes clients and answers their handshakes, and takes no request: a client can tell a server that is busy from one that hangs, or is
  /// gone. For whoever works long on the thread of `next`, who calls it as often as it likes. `judged` and `payload` stay as they are.
  func attend() {
    let now = Self.monotonic()
    guard now >= nextGreeting, !isStopping, !hasStopped else { return }
    nextGreeting = now &+ Self.greetingInterval
    for connection in connections.values where connection !== current {
      if connection.session == nil {
        greet(connection, at: now)
      } else if connection.hasGone {
        // Whoever comes again and again meanwhile would find no place.
        remove(connection)
      }
    }
    if acceptPause.rest() == nil { accept() }
  }

  private func greet(_ connection: NBDConnection, at now: UInt64) {
    guard connection.handshakeDeadline > now else {
      statistics.refusedClients += 1
      return remove(connection)
    }
    switch connection.receive() {
    case .nothing: return
    case .end: return remove(connection)
    case .some: shakeHands(connection)
    }
    // Requests may have come with the end of the handshake: the socket would not say so again.
    if connection.session != nil { ready.append(connection) }
  }
}
