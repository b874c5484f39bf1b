import VMFenceCore

/// An adapter: a packet source that reads frames from text, one a line: seconds since the start, a space, the bytes in
/// hexadecimal. Lines that are empty or begin with `#` are passed over.
public struct TextCapture: PacketSource, ~Copyable {
  private let lines: [Substring]
  private let start: Timestamp
  private let port: PortID
  private var next = 0
  private var failure: PacketSourceError?
  public private(set) var counters = CaptureCounters()

  /// - Parameter port: where all these frames were seen.
  public init(_ text: String, start: Timestamp, port: PortID) {
    lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    self.start = start
    self.port = port
  }

  public mutating func nextBatch(
    limit: Int, patience: Duration, _ body: (FrameMetadata, RawSpan) -> Void
  ) throws(PacketSourceError) -> BatchOutcome {
    var frames = 0
    while frames < limit {
      // An error stays, as an end does: who asks again gets the same answer.
      if let failure { throw failure }
      guard next < lines.count else { return BatchOutcome(frames: frames, isAtEnd: true) }
      let line = lines[next]
      next += 1
      if line.isEmpty || line.hasPrefix("#") { continue }
      do throws(PacketSourceError) {
        let (time, bytes) = try parse(line)
        let metadata = FrameMetadata(
          timestamp: start + time, port: port, originalLength: UInt32(bytes.count))
        bytes.withRawSpan { body(metadata, $0) }
        counters.received += 1
        counters.receivedBytes += UInt64(bytes.count)
        frames += 1
      } catch {
        failure = error
        throw error
      }
    }
    return BatchOutcome(frames: frames, isAtEnd: false)
  }

  /// What comes from outside is checked before it is used; what is wrong is said with its place and what to do.
  private func parse(_ line: Substring) throws(PacketSourceError) -> (Duration, [UInt8]) {
    let parts = line.split(separator: " ")
    guard parts.count == 2, let seconds = Double(parts[0]), (0..<1e6).contains(seconds),
      let bytes = hexadecimal(parts[1]), bytes.count <= 65_535
    else {
      throw PacketSourceError(
        .corrupt, "not a frame", at: SourcePlace(file: "text capture", line: next),
        remedy: "write SECONDS and the bytes in hexadecimal")
    }
    return (.seconds(seconds), bytes)
  }

  private func hexadecimal(_ text: Substring) -> [UInt8]? {
    let digits = text.utf8.map(\.hexadecimalDigitValue)
    guard !digits.isEmpty, digits.count % 2 == 0 else { return nil }
    var bytes: [UInt8] = []
    for index in stride(from: 0, to: digits.count, by: 2) {
      guard let high = digits[index], let low = digits[index + 1] else { return nil }
      bytes.append(high << 4 | low)
    }
    return bytes
  }
}
