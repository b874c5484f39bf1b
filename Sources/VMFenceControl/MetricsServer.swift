internal import Foundation
internal import Glibc
internal import Synchronization
internal import VMFenceCore

/// Serves one text to whoever asks for `/metrics` by HTTP: Prometheus's text format, version 0.0.4. One request a connection, a few connections at once, everything bounded;
/// whoever can connect may read.
public final class MetricsServer: Sendable {
  private static let clientLimit = 8
  private static let requestLimit = 8 << 10
  private static let patience = Duration.seconds(5)

  /// The port that it listens at: the one it was told, or with 0 one that was free.
  public let port: UInt16
  private let listener: ConnectionListener
  private let text = Mutex<[UInt8]>([])

  /// - `address`: an IPv4 or IPv6 address of this host.
  public init(address: String, port: UInt16) throws(ControlFailure) {
    do throws(SystemFailure) {
      let (descriptor, port) = try NetworkSocket.listen(address: address, port: port)
      self.port = port
      listener = ConnectionListener(descriptor, limit: Self.clientLimit, name: "vmfence-metrics")
    } catch {
      throw ControlFailure(
        "metrics cannot be served: \(error.description)", remedy: "choose an address of this host and a free port")
    }
  }

  /// Begins to serve.
  public func start() { listener.start(serve: serve) }

  public func close() { listener.close() }

  /// What is served from now on.
  public func publish(_ text: String) { self.text.withLock { $0 = Array(text.utf8) } }

  private var isClosed: Bool { listener.isClosed }

  /// Answers one request.
  func serve(_ connection: ControlConnection) {
    guard let request = head(of: connection) else { return }
    let words = request.split(separator: " ")
    let (status, text): (String, [UInt8]) =
      if words.count != 3 || !words[2].hasPrefix("HTTP/1.") {
        ("400 Bad Request", Array("this is no HTTP request\n".utf8))
      } else if words[0] != "GET" && words[0] != "HEAD" {
        ("405 Method Not Allowed", Array("GET and HEAD only\n".utf8))
      } else if words[1] != "/metrics" && !words[1].hasPrefix("/metrics?") {
        ("404 Not Found", Array("there is only /metrics\n".utf8))
      } else {
        ("200 OK", self.text.withLock { $0 })
      }
    let head =
      "HTTP/1.1 \(status)\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
      + "Content-Length: \(text.count)\r\nConnection: close\r\n\r\n"
    _ = connection.write(
      Array(head.utf8) + (words.first == "HEAD" ? [] : text), patience: Self.patience, while: { !isClosed })
  }

  /// The request's first line, when its head is whole; nil when it is too long or does not come.
  private func head(of connection: ControlConnection) -> String? {
    var first: String?
    var total = 0
    let deadline = ContinuousClock.now + Self.patience
    while ContinuousClock.now < deadline {
      guard
        case .line(var line)? = connection.readLine(
          limit: Self.requestLimit, patience: Self.patience, while: { !isClosed })
      else { return nil }
      if line.last == 0x0D { line.removeLast() }
      total += line.count + 2
      if total > Self.requestLimit { return nil }
      if line.isEmpty, first != nil { return first }
      if first == nil { first = String(decoding: line, as: UTF8.self) }
    }
    return nil
  }
}
