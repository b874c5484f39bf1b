import Foundation
import Synchronization
import TestSupport
import Testing
import VMFenceCore
import VMFenceNotification

private func sink(
  _ delivery: any Delivery, _ filter: EventFilter = EventFilter(), lines: Int = 10_000,
  format: DeliverySink.Format? = nil
) -> DeliverySink {
  let directory = directory()
  let encoder = EVEEncoder(node: "dom0", directory: directory)
  return DeliverySink(
    name: "test", filter: filter, directory: directory,
    limits: .init(lines: lines, retryFirst: .milliseconds(20), retryMaximum: .milliseconds(100)), delivery: delivery,
    format: format ?? { [encoder.encode($0)] })
}

private func sid(_ line: String) -> Int? {
  struct Line: Decodable {
    struct Rule: Decodable {
      var signatureID: Int
      enum CodingKeys: String, CodingKey { case signatureID = "signature_id" }
    }
    var alert: Rule?
  }
  return (try? JSONDecoder().decode(Line.self, from: Data(line.utf8)))?.alert?.signatureID
}

@Suite("Events to unix sockets")
struct UnixSocketTests {
  @Test("a stream gets lines in order, and those that came while nobody listened")
  func stream() async throws {
    let peer = try Peer(.unixStream)
    let sink = sink(UnixSocketDelivery(path: peer.path, kind: .stream))
    for number in 1...50 { sink.receive(alert(UInt32(number))) }
    #expect(peer.lines(50).compactMap(sid) == Array(1...50))
    sink.close(patience: waitLimit)
    #expect(sink.counters.delivered == 50 && sink.counters.lost == 0 && sink.counters.waiting == 0)
  }

  @Test("a receiver that goes and comes again loses nothing that it had not been sent")
  func reconnects() async throws {
    let first = try Peer(.unixStream)
    let sink = sink(UnixSocketDelivery(path: first.path, kind: .stream))
    sink.receive(alert(1))
    #expect(first.lines(1).compactMap(sid) == [1])
    first.leave()
    sink.receive(alert(2))
    sink.receive(alert(3))
    try eventually("the failure is seen") { sink.problem != nil }
    #expect(sink.counters.waiting == 2)
    let path = first.path
    let listener = try LocalSocket.bind(at: path, .stream, mode: 0o600)
    defer {
      close(listener)
      remove(path)
    }
    try eventually("the rest is delivered") { sink.counters.waiting == 0 }
    #expect(sink.problem == nil && sink.counters.lost == 0)
    sink.close(patience: waitLimit)
  }

  @Test("a datagram holds one line")
  func datagram() async throws {
    let peer = try Peer(.unixDatagram)
    let sink = sink(UnixSocketDelivery(path: peer.path, kind: .datagram))
    for number in 1...5 { sink.receive(alert(UInt32(number))) }
    #expect(peer.receive { $0.count == 5 }.compactMap(sid) == Array(1...5))
    sink.close(patience: waitLimit)
  }

  @Test("nobody there: the queue is bounded, what does not fit is counted, and what is left at the end too")
  func bounded() async throws {
    let sink = sink(UnixSocketDelivery(path: "/nonexistent/socket", kind: .stream), lines: 10)
    for number in 1...25 { sink.receive(alert(UInt32(number))) }
    #expect(sink.counters.waiting == 10 && sink.counters.overflowed == 15)
    try eventually("it is told") { sink.problem?.contains("No such file or directory") == true }
    sink.close(patience: .milliseconds(100))
    #expect(sink.counters.lost == 25)
  }

  @Test("nobody there: a flood of one guest's alerts takes no room from another guest's, nor from what is decided")
  func shared() async throws {
    let sink = sink(UnixSocketDelivery(path: "/nonexistent/socket", kind: .stream), lines: 100)
    let other = Incarnation(uuid: DomainUUID(high: 8, low: 9), domainID: DomainID(9))
    for number in 1...1000 { sink.receive(alert(UInt32(number))) }
    #expect(sink.counters.waiting == 100 && sink.counters.overflowed == 900)
    for _ in 0..<50 {
      sink.receive(alert(7, on: other))
      sink.receive(.platform(PlatformAlert(time: .zero, incarnation: guest, kind: .probeGap, message: "m")))
    }
    #expect(sink.counters.waiting == 200 && sink.counters.overflowed == 900)
    sink.close(patience: .zero)
  }

  @Test("what may be as much as there are packets goes to places that name it")
  func packets() {
    let packet = DroppedPacket(
      time: .zero, incarnation: guest, packetID: 0, source: .anyV4, destination: .anyV4, sourcePort: 0,
      destinationPort: 0, ipProtocol: 6, reason: .rules, verdict: .pass)
    let anomaly = PacketAnomaly(kind: .decode, number: 0, flowID: 0, layer: 0)
    let events: [(Event, EventFilter.Kind)] = [
      (.packet(PacketNotice(.tagged, packet)), .packet),
      (.packet(PacketNotice(.anomaly(anomaly, event: "x"), packet)), .anomaly),
    ]
    for (event, kind) in events {
      #expect(!EventFilter().wants(event, directory()))
      for wanted in EventFilter.Kind.allCases {
        #expect(EventFilter(kinds: [wanted]).wants(event, directory()) == (wanted == kind))
      }
      #expect(EventFilter(kinds: [kind], tenant: TenantID("globex")).wants(event, directory()) == false)
    }
  }

  @Test("a tenant gets what concerns its guests, and nothing of the host")
  func tenants() async throws {
    let peer = try Peer(.unixStream)
    let sink = sink(
      UnixSocketDelivery(path: peer.path, kind: .stream), EventFilter(tenant: TenantID("globex")))
    sink.receive(alert(1, on: guest))
    sink.receive(notice())
    sink.receive(alert(2, on: other))
    sink.receive(alert(3, on: guest))
    sink.receive(alert(4, on: other))
    #expect(peer.lines(2).compactMap(sid) == [2, 4])
    sink.close(patience: waitLimit)
  }
}

@Suite("Events to syslog")
struct SyslogTests {
  private func format(_ facility: SyslogFormat.Facility = .auth) -> DeliverySink.Format {
    let syslog = SyslogFormat(facility: facility, host: "dom0 a", process: 42, directory: directory())
    return { [syslog.encode($0)] }
  }

  @Test(
    "the message is what RFC 5424 says, with the facility that was asked for", arguments: SyslogFormat.Facility.allCases
  )
  func message(facility: SyslogFormat.Facility) {
    let numbers: [SyslogFormat.Facility: Int] = [
      .kern: 0, .user: 1, .mail: 2, .daemon: 3, .auth: 4, .syslog: 5, .lpr: 6, .news: 7, .uucp: 8, .cron: 9,
      .authpriv: 10, .ftp: 11, .local0: 16, .local1: 17, .local2: 18, .local3: 19, .local4: 20, .local5: 21,
      .local6: 22, .local7: 23,
    ]
    let line = String(decoding: format(facility)(alert())[0], as: UTF8.self)
    #expect(
      line.hasPrefix("<\(numbers[facility]! * 8 + 3)>1 2023-11-14T22:13:20.123456Z dom0a vmfence 42 alert ["), "\(line)"
    )
    #expect(line.contains("name=\"we\\\"b\\]\" sid=\"1:7:"), "\(line)")
    #expect(line.contains("] \u{FEFF}11/14-22:13:20.123456 [**] [1:7:"), "\(line)")
  }

  @Test("the structured data has the enterprise number that was said", arguments: [1, 32_473, UInt32.max])
  func enterprise(number: UInt32) {
    let syslog = SyslogFormat(
      facility: .auth, enterpriseNumber: number, host: "h", process: 1, directory: directory())
    let line = String(decoding: syslog.encode(alert()), as: UTF8.self)
    #expect(line.contains(" alert [vmfence@\(number) vm=\""), "\(line)")
    #expect(String(decoding: format()(alert())[0], as: UTF8.self).contains(" [vmfence@32473 "))
  }

  @Test("text from outside cannot begin another message")
  func hostile() {
    let line = String(decoding: format()(alert(message: "a\n<0>1 - evil \u{1B}[2J"))[0], as: UTF8.self)
    #expect(!line.contains("\n") && !line.contains("\u{1B}"))
  }

  @Test("the local daemon gets datagrams")
  func local() async throws {
    let peer = try Peer(.unixDatagram)
    let sink = sink(SyslogDelivery(.local(path: peer.path)), format: format())
    sink.receive(alert())
    sink.receive(notice())
    let got = peer.receive { $0.count == 2 }
    #expect(
      got.count == 2 && got[0].hasPrefix("<35>1 ") && got[1].contains(" platform [vmfence@32473 kind=\"clock-jump\"]"))
    sink.close(patience: waitLimit)
  }

  @Test("UDP: one message a datagram, cut at 8 KiB")
  func udp() async throws {
    let peer = try Peer(.udp)
    let sink = sink(SyslogDelivery(.udp(host: "127.0.0.1", port: peer.port)), format: format())
    sink.receive(alert())
    sink.receive(alert(message: String(repeating: "x", count: 20_000)))
    let got = peer.receive { $0.count == 2 }
    #expect(got.map(\.utf8.count).last == 8_192 && got.first?.hasPrefix("<35>1 ") == true)
    sink.close(patience: waitLimit)
  }

  @Test("TCP: the length goes before each message")
  func tcp() async throws {
    let peer = try Peer(.tcp)
    let sink = sink(SyslogDelivery(.tcp(host: "localhost", port: peer.port)), format: format())
    for number in 1...3 { sink.receive(alert(UInt32(number))) }
    var rest = Substring(
      peer.receive { $0[0].components(separatedBy: "<35>1 ").count == 4 && $0[0].hasSuffix("80") }[0])
    var messages: [String] = []
    while let space = rest.firstIndex(of: " "), let length = Int(rest[..<space]) {
      let bytes = Array(rest[rest.index(after: space)...].utf8)
      messages.append(String(decoding: bytes.prefix(length), as: UTF8.self))
      rest = Substring(String(decoding: bytes.dropFirst(length), as: UTF8.self))
    }
    #expect(messages.count == 3 && rest.isEmpty && messages.allSatisfy { $0.hasPrefix("<35>1 ") })
    sink.close(patience: waitLimit)
  }
}

@Suite("Events to files")
struct FileDeliveryTests {
  private func one(of number: UInt64) -> Incarnation {
    Incarnation(uuid: DomainUUID(high: number, low: number), domainID: DomainID(1))
  }

  @Test("a file that was renamed away is begun anew; every line is in one of the two, whole")
  func rotation() async throws {
    let path = NSTemporaryDirectory() + "vmfence-\(UUID().uuidString).json"
    defer { for name in [path, path + ".1"] { remove(name) } }
    let sink = sink(FileDelivery(path: path))
    for number in 1...20 { sink.receive(alert(UInt32(number))) }
    try eventually("the first half") { sink.counters.delivered == 20 }
    try FileManager.default.moveItem(atPath: path, toPath: path + ".1")
    for number in 21...40 { sink.receive(alert(UInt32(number))) }
    try eventually("the second half") { sink.counters.delivered == 40 }
    func sids(_ name: String) throws -> [Int] {
      try String(contentsOfFile: name, encoding: .utf8).split(separator: "\n").map(String.init).compactMap(sid)
    }
    #expect(try sids(path + ".1") == Array(1...20))
    #expect(try sids(path) == Array(21...40))
    sink.close(patience: waitLimit)
  }

  @Test(
    "a file that has grown to its limit: a guest that fills it takes no room from others, nor from decisions; the next file has all of it again"
  )
  func limit() async throws {
    let path = NSTemporaryDirectory() + "vmfence-\(UUID().uuidString).json"
    defer { for name in [path, path + ".1"] { remove(name) } }
    let sink = sink(FileDelivery(path: path, limit: 1 << 17))
    let (noisy, other) = (one(of: 1), one(of: 2))
    for number in 1...2000 { sink.receive(alert(UInt32(number), on: noisy)) }
    try eventually("it is told") { sink.problem?.contains("no room for some events until it is rotated") == true }
    try eventually("all are over with") { sink.counters.waiting == 0 }
    let first = Int(sink.counters.delivered)
    #expect(first > 10 && first < 1000 && sink.counters.lost == UInt64(2000 - first) && sink.isRefusing)
    #expect(sink.overflowedByDomain == [noisy: UInt64(2000 - first)])
    sink.receive(alert(3001, on: other))
    sink.receive(
      .platform(PlatformAlert(time: .zero, incarnation: noisy, kind: .detectorDied, message: "of the noisy one's")))
    try eventually("others are written") { sink.counters.delivered == UInt64(first + 2) }
    #expect(try #require(FileManager.default.contents(atPath: path)).count <= 1 << 17)
    try FileManager.default.moveItem(atPath: path, toPath: path + ".1")
    sink.receive(alert(3002, on: noisy))
    try eventually("it is written in the next file") { sink.counters.delivered == UInt64(first + 3) }
    #expect(sink.problem == nil && !sink.isRefusing)
    let line = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n")[0]
    #expect(sid(String(line)) == 3002)
    sink.close(patience: waitLimit)
  }

  @Test("a file for alerts alone has all of its limit for them; a line of nobody's has room, too")
  func alertsAlone() async throws {
    let path = NSTemporaryDirectory() + "vmfence-\(UUID().uuidString).json"
    defer { remove(path) }
    let sink = sink(FileDelivery(path: path, limit: 1 << 16, isForAlerts: true), EventFilter(kinds: [.alert]))
    for number in 1...2000 { sink.receive(alert(UInt32(number), on: one(of: UInt64(number)))) }
    try eventually("all are over with") { sink.counters.waiting == 0 && sink.counters.delivered > 0 }
    #expect(try #require(FileManager.default.contents(atPath: path)).count > 60_000)
    sink.close(patience: waitLimit)
  }

  @Test("a folder that is not there is told, and the lines wait for it")
  func missing() async throws {
    let folder = NSTemporaryDirectory() + "vmfence-\(UUID().uuidString)"
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let sink = sink(FileDelivery(path: folder + "/eve.json"))
    sink.receive(alert())
    try eventually("it is told") { sink.problem != nil }
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    try eventually("it is written") { sink.counters.delivered == 1 }
    sink.close(patience: waitLimit)
  }
}

@Suite("Events to a web service")
struct WebhookTests {
  private func answer(_ peer: Peer, _ status: String) {
    peer.send("HTTP/1.1 \(status)\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    peer.hangUp()
  }

  /// To a service that is this test, which may have no time for a while.
  private func patient(_ url: String, headers: [String: String] = [:]) -> WebhookDelivery {
    WebhookDelivery(url: url, headers: headers, timeout: waitLimit, limit: waitLimit)
  }

  @Test("a POST of JSON lines; what fails for now is sent again, in order")
  func retries() async throws {
    let peer = try Peer(.tcp)
    let sink = sink(patient("http://127.0.0.1:\(peer.port)/hook", headers: ["Authorization": "Bearer x"]))
    sink.receive(alert(1))
    let request = peer.receive { $0[0].contains("\"signature_id\":1") && $0[0].hasSuffix("\n") }[0]
    #expect(request.hasPrefix("POST /hook HTTP/1.1\r\n") && request.contains("Authorization: Bearer x"))
    #expect(request.contains("application/x-ndjson"))
    answer(peer, "503 Service Unavailable")
    try eventually("the failure is seen") { sink.problem?.contains("answers 503") == true }
    sink.receive(alert(2))
    _ = peer.receive { $0[0].components(separatedBy: "POST /hook").count == 3 && $0[0].hasSuffix("\n") }
    answer(peer, "200 OK")
    try eventually("the first is taken") { sink.counters.delivered >= 1 }
    if sink.counters.delivered < 2 {
      _ = peer.receive { $0[0].components(separatedBy: "POST /hook").count == 4 && $0[0].hasSuffix("\n") }
      answer(peer, "204 No Content")
    }
    try eventually("both are taken") { sink.counters.delivered == 2 }
    #expect(sink.counters.lost == 0)
    sink.close(patience: waitLimit)
  }

  @Test("what the service refuses for good is counted as lost, and why is said until it takes something")
  func refused() async throws {
    let peer = try Peer(.tcp)
    let sink = sink(patient("http://127.0.0.1:\(peer.port)/"))
    sink.receive(alert(1))
    _ = peer.receive { $0[0].hasSuffix("\n") && $0[0].contains("\"signature_id\":1") }
    answer(peer, "400 Bad Request")
    try eventually("it is counted") { sink.counters.refused == 1 }
    #expect(sink.counters.delivered == 0 && sink.counters.waiting == 0)
    #expect(sink.problem?.contains("answers 400, and takes nothing") == true && sink.isRefusing)
    sink.receive(alert(2))
    _ = peer.receive { $0[0].hasSuffix("\n") && $0[0].contains("\"signature_id\":2") }
    answer(peer, "200 OK")
    try eventually("it takes the next") { sink.counters.delivered == 1 }
    #expect(sink.problem == nil && !sink.isRefusing)
    sink.close(patience: waitLimit)
  }

  /// What is sent to whoever takes it, as long as somebody does: a GiB at the most.
  private static func flood(_ client: WebServer.Client, _ sent: Shared) {
    let chunk = String(repeating: "A", count: 1 << 20)
    while sent.value < 1 << 30, client.send("100000\r\n\(chunk)\r\n") { sent.value += chunk.utf8.count }
    sent.isOver = true
  }

  @Test("an answer whose body never ends takes the events, and nothing of it is taken")
  func endlessBody() throws {
    let sent = Shared(0)
    let server = try WebServer { client in
      _ = client.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
      Self.flood(client, sent)
    }
    let sink = sink(WebhookDelivery(url: "http://127.0.0.1:\(server.port)/"))
    sink.receive(alert(1))
    try eventually("it is taken") { sink.counters.delivered == 1 }
    try eventually("the server has lost its client") { sent.isOver }
    // What lies in sockets, and what a transfer had read before it was given up.
    #expect(sent.value < 64 << 20, "\(sent.value)")
    sink.close(patience: waitLimit)
  }

  @Test("a redirect is not followed: the events wait, and what is wrong is told", arguments: [301, 302, 307, 308])
  func redirects(status: Int) throws {
    let inside = try WebServer { _ = $0.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") }
    let sent = Shared(0)
    let server = try WebServer { client in
      let isFirst = sent.value == 0
      let head = "HTTP/1.1 \(status) Elsewhere\r\nLocation: http://127.0.0.1:\(inside.port)/\r\n"
      // The body of the first ends, that of others does not.
      _ = client.send(head + (isFirst ? "Content-Length: 0\r\n\r\n" : "Transfer-Encoding: chunked\r\n\r\n"))
      if isFirst { sent.value = 1 } else { Self.flood(client, sent) }
    }
    let sink = sink(WebhookDelivery(url: "http://127.0.0.1:\(server.port)/"))
    sink.receive(alert(1))
    try eventually("it is told") { sink.problem?.contains("answers \(status), and redirects are not followed") == true }
    try eventually("it is tried again, and given up again") { server.requests.count >= 3 && sent.isOver }
    #expect(inside.requests.isEmpty && sink.counters.delivered == 0 && sink.counters.waiting == 1)
    #expect(sink.counters.lost == 0 && sent.value < 256 << 20, "\(sent.value)")
    sink.close(patience: .milliseconds(100))
  }

  @Test(
    "an answer whose head does not end is given up",
    arguments: [
      ("HTTP/1.1 200 OK\r\n", "a: b\r\n", Duration.milliseconds(1000), "Operation timed out"),
      ("", "HTTP/1.1 100 Continue\r\n\r\n", .milliseconds(1000), "timed out"),
      // Given up for its size, however long that takes to come.
      (
        "HTTP/1.1 200 OK\r\n", "a: \(String(repeating: "b", count: 50_000))\r\n", waitLimit,
        "the head of its answer does not end"
      ),
    ])
  func endlessHead(begin: String, line: String, limit: Duration, problem: String) throws {
    let server = try WebServer { client in
      guard client.send(begin) else { return }
      while client.send(line) { usleep(10_000) }
    }
    let sink = sink(WebhookDelivery(url: "http://127.0.0.1:\(server.port)/", limit: limit))
    sink.receive(alert(1))
    try eventually("it is told") { sink.problem?.contains("does not answer: ") == true }
    #expect(sink.problem?.contains(problem) == true, "\(sink.problem ?? "")")
    #expect(sink.counters.delivered == 0 && sink.counters.waiting == 1)
    sink.close(patience: .milliseconds(100))
  }

  @Test("a URL of another kind, and a server that hangs up, are problems that are told")
  func problems() throws {
    let server = try WebServer { _ in }
    for url in ["file:///etc/passwd", "http://127.0.0.1:\(server.port)/", "no url"] {
      let sink = sink(WebhookDelivery(url: url))
      sink.receive(alert(1))
      try eventually("it is told") { sink.problem?.contains("does not answer: ") == true }
      #expect(sink.counters.delivered == 0 && sink.counters.waiting == 1)
      sink.close(patience: .milliseconds(100))
    }
  }

  @Test("headers that the operator names are sent, and none that they did not name")
  func headers() throws {
    let server = try WebServer { _ = $0.send("HTTP/1.1 204 No Content\r\n\r\n") }
    let headers = ["user-agent": "mine", "X-Key": "a\r\nX-Other: b"]
    let sink = sink(WebhookDelivery(url: "http://127.0.0.1:\(server.port)/", headers: headers))
    sink.receive(alert(1))
    try eventually("it is taken") { sink.counters.delivered == 1 }
    let request = try #require(server.requests.first)
    #expect(request.contains("\r\nuser-agent: mine\r\n") && !request.contains("vmfence/"))
    #expect(request.contains("\r\nX-Key: a X-Other: b\r\n"), "\(request)")
    sink.close(patience: waitLimit)
  }

  @Test("what comes before the answer is none")
  func interim() throws {
    let server = try WebServer { client in
      _ = client.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
      _ = client.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    }
    let sink = sink(patient("http://127.0.0.1:\(server.port)/"))
    sink.receive(alert(1))
    try eventually("it is taken") { sink.counters.delivered == 1 }
    #expect(sink.counters.refused == 0 && server.requests.count == 1)
    sink.close(patience: waitLimit)
  }
}

/// A number that threads share, and whether it is final.
private final class Shared: Sendable {
  private let state: Mutex<(value: Int, isOver: Bool)>
  init(_ value: Int) { state = Mutex((value, false)) }
  var value: Int {
    get { state.withLock { $0.value } }
    set { state.withLock { $0.value = newValue } }
  }
  var isOver: Bool {
    get { state.withLock { $0.isOver } }
    set { state.withLock { $0.isOver = newValue } }
  }
}
