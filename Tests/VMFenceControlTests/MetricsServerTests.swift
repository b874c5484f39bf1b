import Foundation
import Testing
import VMFenceControl
import VMFenceCore

@Suite("Metrics by HTTP")
struct MetricsServerTests {
  /// What a request gets, until the server hangs up.
  private func ask(_ port: UInt16, _ request: String) throws -> String {
    let descriptor = try NetworkSocket.connect(.tcp, host: "127.0.0.1", port: port, timeout: .seconds(60))
    defer { close(descriptor) }
    let bytes = Array(request.utf8)
    // SAFETY: the buffer is valid during the call.
    _ = unsafe bytes.withUnsafeBytes { unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
    var text: [UInt8] = []
    while true {
      var chunk = [UInt8](repeating: 0, count: 4096)
      // SAFETY: the buffer is valid for its count.
      let count = unsafe chunk.withUnsafeMutableBytes { unsafe recv(descriptor, $0.baseAddress, $0.count, 0) }
      guard count > 0 else { return String(decoding: text, as: UTF8.self) }
      text += chunk[..<count]
    }
  }

  @Test("a real client gets the text, whole")
  func scrape() throws {
    let server = try MetricsServer(address: "127.0.0.1", port: 0)
    server.start()
    defer { server.close() }
    server.publish("a 1\n")
    let curl = Process()
    curl.executableURL = URL(filePath: "/usr/bin/env")
    curl.arguments = ["curl", "-sf", "-m", "60", "http://127.0.0.1:\(server.port)/metrics"]
    let output = Pipe()
    curl.standardOutput = output
    try curl.run()
    curl.waitUntilExit()
    #expect(String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self) == "a 1\n")
  }

  @Test(
    "everything else is refused",
    arguments: [
      ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404"), ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405"),
      ("hello\r\n\r\n", "HTTP/1.1 400"), ("\0\0\0\r\n\r\n", "HTTP/1.1 400"),
      ("HEAD /metrics HTTP/1.0\r\n\r\n", "HTTP/1.1 200"),
    ])
  func others(request: String, answer: String) throws {
    let server = try MetricsServer(address: "127.0.0.1", port: 0)
    server.start()
    defer { server.close() }
    server.publish("secret 1\n")
    let got = try ask(server.port, request)
    #expect(got.hasPrefix(answer) && !got.contains("secret"), "\(got)")
  }

  @Test("a head without end is cut off, and so is one that does not come")
  func endless() throws {
    let server = try MetricsServer(address: "127.0.0.1", port: 0)
    server.start()
    defer { server.close() }
    let lines = (0..<2000).map { "x\($0): y\r\n" }.joined()
    #expect(try ask(server.port, "GET /metrics HTTP/1.1\r\n" + lines).isEmpty)
    #expect(try ask(server.port, "GET /metrics HTTP/1.1\r\n").isEmpty)
  }

  @Test("a port that is taken, and an address that is none, are errors with a remedy")
  func errors() throws {
    let server = try MetricsServer(address: "127.0.0.1", port: 0)
    #expect(throws: ControlFailure.self) { try MetricsServer(address: "127.0.0.1", port: server.port) }
    #expect(throws: ControlFailure.self) { try MetricsServer(address: "localhost", port: 0) }
    server.start()
    server.close()
  }

  @Test("the text is what Prometheus reads")
  func text() {
    var metrics = MetricsText()
    metrics.metric("vmfence_a_total", .counter, "Help \\ and\nmore.")
    metrics.sample(3, [("vm", "a\"b\\c\nd"), ("classtype", "\u{1B}é")])
    var histogram = LatencyHistogram()
    histogram.add(seconds: 0.0015)
    metrics.metric("vmfence_b_seconds", .histogram, "Help.")
    histogram.write(&metrics)
    #expect(
      metrics.text.hasPrefix(
        "# HELP vmfence_a_total Help \\\\ and\\nmore.\n# TYPE vmfence_a_total counter\n"
          + "vmfence_a_total{vm=\"a\\\"b\\\\c\\nd\",classtype=\"\u{1B}é\"} 3\n"))
    #expect(
      metrics.text.contains("vmfence_b_seconds_bucket{le=\"0.001\"} 0\nvmfence_b_seconds_bucket{le=\"0.002\"} 1\n"))
    #expect(
      metrics.text.hasSuffix(
        "vmfence_b_seconds_bucket{le=\"+Inf\"} 1\nvmfence_b_seconds_sum 0.0015\nvmfence_b_seconds_count 1\n"))
  }
}
