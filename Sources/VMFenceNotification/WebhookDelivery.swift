internal import CCurl
internal import VMFenceCore

/// Events to a web service: a POST with one JSON object a line (application/x-ndjson). An answer of 2xx takes them; 3xx, 408, 429, 5xx and no answer are tried
/// again; every other answer refuses them for good. Sent by libcurl, which is opened with the first of them.
///
/// The service is not trusted. Of its answer only the status is taken, and then the connection is closed; redirects are not followed, for they could lead to
/// hosts that only this one reaches.
public final class WebhookDelivery: Delivery, RefusingDelivery, @unchecked Sendable {
  public private(set) var refused: UInt64 = 0
  package private(set) var refusal: String?
  private let url: String
  private let headers: String
  private let timeout: Duration
  private let limit: Duration

  /// - `url`: http or https.
  /// - `timeout`: how long nothing may move, in whole seconds.
  /// - `limit`: how long one delivery may take, until the status of the answer is there.
  public init(
    url: String, headers: [String: String] = [:], timeout: Duration = .seconds(10), limit: Duration = .seconds(60)
  ) {
    self.url = url
    self.timeout = timeout
    self.limit = limit
    let given = Set(headers.keys.map { $0.lowercased() })
    let own = ["Content-Type": "application/x-ndjson", "User-Agent": "vmfence/\(VMFenceVersion.text)"]
      .filter { !given.contains($0.key.lowercased()) }
    // A line break would begin another header.
    self.headers = own.merging(headers, uniquingKeysWith: { $1 }).sorted { $0.key < $1.key }
      .map { String("\($0.key): \($0.value)".map { $0.isNewline ? " " : $0 }) + "\n" }.joined()
  }

  public func deliver(_ lines: [[UInt8]]) throws(DeliveryFailure) -> Int {
    switch post(lines.flatMap { $0 + [0x0A] }) {
    case .failure(let problem): throw DeliveryFailure("\(url.escapedForDisplay) does not answer: \(problem.text)")
    case .success(200..<300):
      refusal = nil
      return lines.count
    case .success(let status) where (300..<400).contains(status):
      throw DeliveryFailure(
        "\(url.escapedForDisplay) answers \(status), and redirects are not followed: name the address that it leads to")
    case .success(let status) where [408, 429].contains(status) || status >= 500:
      throw DeliveryFailure("\(url.escapedForDisplay) answers \(status)")
    case .success(let status):
      refused &+= UInt64(lines.count)
      refusal = "\(url.escapedForDisplay) answers \(status), and takes nothing: check the address and the headers"
      return lines.count
    }
  }

  public func reset() {}

  private struct Problem: Error { var text: String }

  /// The status of the answer.
  private func post(_ body: [UInt8]) -> Result<Int, Problem> {
    // SAFETY: the strings and the body are valid for the call, which reads them; the text of a problem ends in zero.
    unsafe url.withCString { url in
      unsafe headers.withCString { headers in
        unsafe body.withUnsafeBytes { body in
          var request = unsafe vmfence_post()
          unsafe request.url = url
          unsafe request.headers = headers
          unsafe request.body = body.baseAddress
          unsafe request.length = body.count
          unsafe request.silence = Int(clamping: timeout.wholeNanoseconds / 1_000_000)
          unsafe request.limit = Int(clamping: limit.wholeNanoseconds / 1_000_000)
          var answer = unsafe vmfence_send_post(&request)
          guard answer.status == 0 else { return .success(answer.status) }
          let text = unsafe withUnsafeBytes(of: &answer.problem) { bytes in
            unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
          }
          return .failure(Problem(text: text.escapedForDisplay))
        }
      }
    }
  }
}
