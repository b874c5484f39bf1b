import Foundation
import Synchronization
import TestSupport
import Testing
import VMFenceControl
import VMFenceCore

/// A server with an answer to everything, and a path of its own.
private func withServer(
  _ limits: ControlServer.Limits = .init(), _ body: (ControlServer, String) throws -> Void
) throws {
  let path = NSTemporaryDirectory() + "vmfence-\(UUID().uuidString.prefix(8)).sock"
  let server = try ControlServer(path: path, limits: limits) { request throws(ControlFailure) in
    if request.domain == "nobody" { throw ControlFailure("there is no domain `nobody`", remedy: "list them") }
    return Array("\"\(request.verb.rawValue)\"".utf8)
  }
  server.start()
  defer { server.close() }
  try body(server, path)
}

/// A client that speaks bytes.
private final class RawClient {
  let descriptor: Int32
  init(_ path: String) throws { descriptor = try LocalSocket.connect(to: path, .stream) }
  deinit { close(descriptor) }

  func send(_ text: String) {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      // SAFETY: the buffer is valid during the call.
      let sent = unsafe bytes.withUnsafeBytes {
        unsafe Foundation.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      if sent > 0 { bytes = bytes.dropFirst(sent) } else if errno == EAGAIN { usleep(1000) } else { return }
    }
  }

  private var text: [UInt8] = []

  /// Whole lines, until the server hangs up or `count` are there; as long as tests wait at the most.
  func lines(_ count: Int) -> [String] {
    let deadline = ContinuousClock.now + waitLimit
    while ContinuousClock.now < deadline {
      var buffer = [UInt8](repeating: 0, count: 1 << 16)
      // SAFETY: the buffer is valid for its count.
      let got = unsafe buffer.withUnsafeMutableBytes { unsafe recv(descriptor, $0.baseAddress, $0.count, 0) }
      if got > 0 { text += buffer[..<got] }
      if got == 0 || text.count(where: { $0 == 10 }) >= count { break }
      if got < 0 { usleep(1000) }
    }
    guard let end = text.lastIndex(of: 10) else { return [] }
    defer { text.removeFirst(end + 1) }
    return String(decoding: text[...end], as: UTF8.self).split(separator: "\n").map(String.init)
  }
}

@Suite("The control socket", .serialized)
struct ControlServerTests {
  @Test("who comes while as many wait to be accepted as can is not sent away, as long as its patience lasts")
  func fullBacklog() throws {
    let path = NSTemporaryDirectory() + "vmfence-\(UUID().uuidString.prefix(8)).sock"
    let listening = try LocalSocket.bind(at: path, .stream, mode: 0o600, backlog: 1)
    defer {
      close(listening)
      try? FileManager.default.removeItem(atPath: path)
    }
    var waiting: [RawClient] = []
    while let client = try? RawClient(path) { waiting.append(client) }
    try #require(!waiting.isEmpty)
    let begin = ContinuousClock.now
    let failure = #expect(throws: ControlFailure.self) {
      _ = try ControlClient(path: path, admission: .milliseconds(200))
    }
    #expect(failure?.cause == .unreachable && .now - begin >= .milliseconds(200), "\(failure as Any)")
    Thread.detachNewThread {
      usleep(100_000)
      close(accept(listening, nil, nil))
    }
    _ = try ControlClient(path: path, admission: waitLimit)
  }

  @Test("answers requests in order, errors with a remedy, for its owner only")
  func answers() throws {
    try withServer { _, path in
      let client = try ControlClient(path: path)
      #expect(try client.ask(ControlRequest(.status), String.self) == "status")
      let failure = #expect(throws: ControlFailure.self) {
        try client.ask(ControlRequest(.why, domain: "nobody"), String.self)
      }
      #expect(failure?.remedy == "list them")
      #expect(try client.ask(ControlRequest(.bans), String.self) == "bans")
      let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
      #expect(mode == 0o600)
    }
  }

  @Test("a request that is longer than it may be is refused, also when its end comes along with what is too much")
  func tooLong() throws {
    var limits = ControlServer.Limits()
    limits.request = 100
    try withServer(limits) { _, path in
      let request = #"{"verb":"bans","domain":""# + String(repeating: "x", count: 100) + "\"}\n"
      let client = try RawClient(path)
      client.send(request + "{\"verb\":\"bans\"}\n")
      let lines = client.lines(2)
      #expect(lines.count == 1 && lines.first?.contains("at most 100 bytes") == true, "\(lines)")
    }
  }

  @Test("says what is no request, and goes on")
  func garbage() throws {
    try withServer { _, path in
      let client = try RawClient(path)
      client.send("hello\n{\"verb\":\"launch\"}\n[]\n\u{0}\n{\"verb\":\"bans\"}\n")
      let lines = client.lines(5)
      #expect(lines.count == 5)
      #expect(lines.prefix(4).allSatisfy { $0.contains("\"ok\":false") && $0.contains("this is no request") })
      #expect(lines.last == "{\"ok\":true,\"result\":\"bans\"}")
    }
  }

  @Test("a request without end is cut off")
  func endless() throws {
    try withServer { _, path in
      let client = try RawClient(path)
      client.send(String(repeating: "x", count: 200_000))
      let lines = client.lines(2)
      #expect(lines.count == 1 && lines[0].contains("a request has at most 65536 bytes"))
    }
  }

  @Test("clients beyond the limit are told and counted, and a silent one loses its place")
  func crowd() throws {
    var limits = ControlServer.Limits()
    limits.clients = 2
    // Both are silent for less until the third has come, also on a busy machine.
    limits.patience = .seconds(20)
    try withServer(limits) { server, path in
      let first = try RawClient(path)
      let second = try RawClient(path)
      first.send("{\"verb\":\"bans\"}\n")
      second.send("{\"verb\":\"bans\"}\n")
      #expect(first.lines(1).count == 1 && second.lines(1).count == 1)
      let third = try RawClient(path)
      #expect(third.lines(1).first?.contains("2 clients are served already") == true)
      #expect(server.refused == 1)
      // Both fall silent.
      #expect(first.lines(1).isEmpty && second.lines(1).isEmpty)
      // Their places are free a moment after they were hung up on.
      try eventually("a place is free") {
        (try? ControlClient(path: path).ask(ControlRequest(.status), String.self)) == "status"
      }
    }
  }

  @Test("as many as may wait at the barrier, as many as may follow, and still one that asks")
  func waiting() throws {
    let path = NSTemporaryDirectory() + "vmfence-\(UUID().uuidString.prefix(8)).sock"
    let isOpen = Atomic(false)
    let server = try ControlServer(path: path) { request throws(ControlFailure) in
      while request.verb == .barrier, !isOpen.load(ordering: .relaxed) { try? await Task.sleep(for: .milliseconds(5)) }
      return Array("\"\(request.verb.rawValue)\"".utf8)
    }
    server.start()
    defer { server.close() }
    let waiting = try (0..<64).map { _ in try RawClient(path) }
    for client in waiting { client.send("{\"verb\":\"barrier\"}\n") }
    let followers = try (0..<ControlServer.Limits().followers).map { _ in try RawClient(path) }
    for client in followers {
      client.send("{\"verb\":\"follow\"}\n")
      #expect(client.lines(1) == ["{\"ok\":true}"])
    }
    // One more is told, and may ask something else.
    let more = try RawClient(path)
    more.send("{\"verb\":\"follow\"}\n{\"verb\":\"status\"}\n")
    let lines = more.lines(2)
    #expect(lines.first?.contains("16 clients follow already") == true && lines.first?.contains("\"busy\"") == true)
    #expect(lines.last == "{\"ok\":true,\"result\":\"status\"}")
    let failure = #expect(throws: ControlFailure.self) {
      try ControlClient(path: path).follow(all: false) { _ in true }
    }
    #expect(failure?.cause == .busy)
    isOpen.store(true, ordering: .relaxed)
    for client in waiting { #expect(client.lines(1) == ["{\"ok\":true,\"result\":\"barrier\"}"]) }
    #expect(server.refused == 0)
  }

  @Test("a follower gets what it asked for; one that does not read loses lines and is told how many")
  func follow() throws {
    var limits = ControlServer.Limits()
    limits.backlog = 100
    try withServer(limits) { server, path in
      let alerts = try RawClient(path)
      let all = try RawClient(path)
      alerts.send("{\"verb\":\"follow\"}\n")
      all.send("{\"verb\":\"follow\",\"all\":true}\n")
      #expect(alerts.lines(1) == ["{\"ok\":true}"] && all.lines(1) == ["{\"ok\":true}"])
      server.publish(Array("{\"a\":1}".utf8), isAlert: true)
      server.publish(Array("{\"d\":2}".utf8), isAlert: false)
      server.publish(Array("{\"a\":3}".utf8), isAlert: true)
      #expect(alerts.lines(2) == ["{\"a\":1}", "{\"a\":3}"])
      #expect(all.lines(3) == ["{\"a\":1}", "{\"d\":2}", "{\"a\":3}"])

      // More than the socket's buffer and the backlog hold.
      let line = Array("\"\(String(repeating: "x", count: 8000))\"".utf8)
      for _ in 0..<1000 { server.publish(line, isAlert: true) }
      var (got, lost) = (0, 0)
      while got + lost < 1000 {
        let lines = alerts.lines(1)
        try #require(!lines.isEmpty)
        for text in lines {
          if text.hasPrefix("{\"lost\":") { lost += Int(text.dropFirst(8).dropLast()) ?? 0 } else { got += 1 }
        }
      }
      #expect(got + lost == 1000 && lost > 0)
    }
  }

  @Test("a flood of one guest's alerts costs a follower no alert of another and no decision")
  func followFlood() throws {
    var limits = ControlServer.Limits()
    limits.backlog = 100
    let noisy = Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1))
    let quiet = Incarnation(uuid: DomainUUID(high: 0, low: 2), domainID: DomainID(2))
    try withServer(limits) { server, path in
      let all = try RawClient(path)
      all.send("{\"verb\":\"follow\",\"all\":true}\n")
      #expect(all.lines(1) == ["{\"ok\":true}"])
      let line = Array("\"\(String(repeating: "x", count: 8000))\"".utf8)
      for _ in 0..<1000 { server.publish(line, isAlert: true, of: noisy) }
      for number in 1...20 {
        server.publish(Array("{\"quiet\":\(number)}".utf8), isAlert: true, of: quiet)
        server.publish(Array("{\"decision\":\(number)}".utf8), isAlert: false, of: noisy)
      }
      var (quietLines, decisions, lost) = (0, 0, 0)
      while quietLines + decisions < 40 || lost == 0 {
        let lines = all.lines(1)
        try #require(!lines.isEmpty)
        quietLines += lines.count { $0.hasPrefix("{\"quiet\"") }
        decisions += lines.count { $0.hasPrefix("{\"decision\"") }
        lost += lines.count { $0.hasPrefix("{\"lost\"") }
      }
      #expect(quietLines == 20 && decisions == 20)
    }
  }

  @Test("that the daemon ends is said to who follows, as it is to who asks nobody")
  func ends() throws {
    try withServer { server, path in
      let client = try ControlClient(path: path)
      Thread.detachNewThread {
        _ = comesTrue { server.hasFollowers }
        server.close()
      }
      let failure = #expect(throws: ControlFailure.self) { try client.follow(all: false) { _ in true } }
      #expect(failure?.cause == .unreachable && failure?.remedy.isEmpty == false)
    }
    let failure = #expect(throws: ControlFailure.self) { try ControlClient(path: "/nonexistent/socket") }
    #expect(failure?.cause == .unreachable && failure?.remedy.contains("start the daemon") == true)
  }

  @Test("a second daemon does not take the socket of the first, and one that was left behind is replaced")
  func stale() throws {
    try withServer { _, path in
      #expect(throws: ControlFailure.self) { try ControlServer(path: path) { _ in [] } }
    }
    let path = NSTemporaryDirectory() + "vmfence-\(UUID().uuidString.prefix(8)).sock"
    // A socket that nobody listens at, as a kill leaves it.
    close(try LocalSocket.bind(at: path, .stream, mode: 0o600))
    let server = try ControlServer(path: path) { _ in [] }
    server.close()
    try "text".write(toFile: path, atomically: true, encoding: .utf8)
    defer { try? FileManager.default.removeItem(atPath: path) }
    #expect(throws: ControlFailure.self) { try ControlServer(path: path) { _ in [] } }
    #expect(try String(contentsOfFile: path, encoding: .utf8) == "text")
  }
}
