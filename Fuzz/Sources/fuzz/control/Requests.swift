import Foundation
import Synchronization

@testable import VMFenceControl

/// Requests by HTTP to the metrics' port.
enum MetricsRequests {
  private static let text = "vmfence_up 1\n"
  private static let server: MetricsServer = {
    do throws(ControlFailure) {
      let server = try MetricsServer(address: "127.0.0.1", port: 0)
      server.publish(text)
      return server
    } catch { fatalError(error.description) }
  }()

  static func answer(_ said: [UInt8], in piece: Int) {
    let ends = Ends()
    ends.send(said, in: piece)
    server.serve(ControlConnection(descriptor: ends.other))
    let answer = String(decoding: ends.received(), as: UTF8.self)
    let lines = said.lines.whole.map { $0.last == 0x0D ? Array($0.dropLast()) : $0 }
    let isWhole = lines.dropFirst().contains([])
    precondition(isWhole || answer.isEmpty, "an answer to half a head")
    // What is longer than 8 KiB is hung up on.
    precondition(!isWhole || said.count > 4096 || !answer.isEmpty, "no answer")
    guard !answer.isEmpty else { return }
    let parts = answer.components(separatedBy: "\r\n\r\n")
    precondition(parts.count == 2, "no head, or more than one")
    let head = parts[0].components(separatedBy: "\r\n")
    for line in head { checkShown(line) }
    let first = String(decoding: lines[0], as: UTF8.self)
    let status = head[0].dropFirst("HTTP/1.1 ".count)
    precondition(head[0].hasPrefix("HTTP/1.1 ") && ["200", "400", "404", "405"].contains(status.prefix(3)))
    let isHead = first.split(separator: " ").first == "HEAD"
    guard let length = head.first(where: { $0.hasPrefix("Content-Length: ") }).flatMap({ Int($0.dropFirst(16)) })
    else { preconditionFailure("an answer without a length") }
    precondition(parts[1].utf8.count == (isHead ? 0 : length), "another length than is said")
    let isAsked = first.contains("/metrics") && (isHead || first.split(separator: " ").first == "GET")
    precondition(status.hasPrefix("200") ? isAsked : parts[1] != text, "the text for whoever did not ask for it")
  }
}

/// Requests to the control socket.
enum ControlRequests {
  /// Smaller than the daemon's, so that it is reached.
  private static let limit = 1024
  /// More answers would not find room in the socket, and the server would wait for somebody to read them.
  private static let lineLimit = 64

  private struct Answer: Decodable {
    var ok: Bool
    var result: ControlRequest?
    var error: ControlFailure?
  }

  private static let seen = Mutex<[ControlRequest]>([])

  private static let server: ControlServer = {
    var limits = ControlServer.Limits()
    limits.request = limit
    let path = NSTemporaryDirectory() + "vmfence-fuzz-control.\(ProcessInfo.processInfo.processIdentifier)"
    do throws(ControlFailure) {
      let server = try ControlServer(path: path, limits: limits) { request throws(ControlFailure) in
        seen.withLock { $0.append(request) }
        if request.limit == 1 { throw failure(request) }
        guard let bytes = try? JSONEncoder().encode(request) else { preconditionFailure("it cannot be written") }
        return Array(bytes)
      }
      try? FileManager.default.removeItem(atPath: path)
      return server
    } catch { fatalError(error.description) }
  }()

  /// Whatever text a failure repeats.
  private static func failure(_ request: ControlRequest) -> ControlFailure {
    ControlFailure(request.domain ?? "", remedy: request.address ?? "", diagnostics: request.files, cause: .busy)
  }

  static func answer(_ said: [UInt8], in piece: Int) {
    let (whole, rest) = said.lines
    guard whole.count <= lineLimit else { return }
    seen.withLock { $0 = [] }
    let ends = Ends()
    ends.send(said, in: piece)
    server.serve(ControlConnection(descriptor: ends.other))
    let bytes = ends.received()
    precondition(bytes.allSatisfy { $0 >= 0x20 || $0 == 0x0A }, "an answer that is more than a line")
    var answers = bytes.lines.whole.map { line -> Answer in
      guard let answer = try? JSONDecoder().decode(Answer.self, from: Data(line)) else {
        preconditionFailure("an answer that is not understood")
      }
      precondition(answer.ok == (answer.error == nil), "an answer that contradicts itself")
      return answer
    }[...]
    var requests = seen.withLock { $0 }[...]
    var isOver = false
    for line in whole where !isOver {
      guard let answer = answers.popFirst() else { preconditionFailure("a line without an answer") }
      let request = try? JSONDecoder().decode(ControlRequest.self, from: Data(line))
      isOver = line.count > limit || request?.verb == .follow
      guard line.count <= limit, let request else {
        precondition(answer.error != nil, "nonsense is answered")
        continue
      }
      if request.verb == .follow { continue }
      precondition(requests.popFirst() == request, "another request, or none")
      if request.limit == 1 {
        precondition(answer.error == failure(request), "another failure")
      } else {
        precondition(answer.result == request, "a request is not written as it was read")
      }
    }
    if !isOver, rest > limit { precondition(answers.popFirst()?.error != nil, "a line without end is kept") }
    precondition(answers.isEmpty && requests.isEmpty, "more than was asked")
  }
}
