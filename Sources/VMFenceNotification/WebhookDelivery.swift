internal import Foundation
internal import Synchronization
internal import VMFenceCore

#if canImport(FoundationNetworking)
internal import FoundationNetworking
#endif

/// Events to a web service: a POST with one JSON object a line (application/x-ndjson). An answer of 2xx takes them; 429, 5xx and no answer are tried again; every other
/// answer refuses them for good.
public final class WebhookDelivery: Delivery, @unchecked Sendable {
  public private(set) var refused: UInt64 = 0
  private let url: String
  private let headers: [String: String]
  private let timeout: Duration

  /// - `url`: http or https.
  public init(url: String, headers: [String: String] = [:], timeout: Duration = .seconds(10)) {
    self.url = url
    self.headers = headers
    self.timeout = timeout
  }

  public func deliver(_ lines: [[UInt8]]) throws(DeliveryFailure) -> Int {
    guard let target = URL(string: url) else { throw DeliveryFailure("\(url.escapedForDisplay) is no URL") }
    var request = URLRequest(url: target, timeoutInterval: Double(timeout.wholeNanoseconds) / 1e9)
    request.httpMethod = "POST"
    request.setValue("application/x-ndjson", forHTTPHeaderField: "Content-Type")
    request.setValue("vmfence/\(VMFenceVersion.text)", forHTTPHeaderField: "User-Agent")
    for (name, value) in headers { request.setValue(value, forHTTPHeaderField: name) }
    request.httpBody = Data(lines.flatMap { $0 + [0x0A] })
    let answer = Answer()
    let session = URLSession(configuration: .ephemeral)
    defer { session.finishTasksAndInvalidate() }
    let task = session.dataTask(with: request) { _, response, error in
      answer.give((response as? HTTPURLResponse)?.statusCode, error?.localizedDescription)
    }
    task.resume()
    let (status, problem) = answer.wait()
    guard let status else {
      throw DeliveryFailure("\(url.escapedForDisplay) does not answer: \((problem ?? "").escapedForDisplay)")
    }
    switch status {
    case 200..<300: return lines.count
    case 408, 429, 500...: throw DeliveryFailure("\(url.escapedForDisplay) answers \(status)")
    default:
      refused &+= UInt64(lines.count)
      return lines.count
    }
  }

  public func reset() {}

  private final class Answer: Sendable {
    private let value = Mutex<(Int?, String?)>((nil, nil))
    private let done = DispatchSemaphore(value: 0)

    func give(_ status: Int?, _ problem: String?) {
      value.withLock { $0 = (status, problem) }
      done.signal()
    }

    func wait() -> (Int?, String?) {
      done.wait()
      return value.withLock { $0 }
    }
  }
}
