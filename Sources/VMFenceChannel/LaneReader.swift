import VMFenceCore

/// The receiving side of a lane. Its index is its own; the sender's is read once for each look, and checked.
struct LaneReader {
  let page: SharedPage
  let lane: Lane
  private var head: UInt64 = 0
  private var tail: UInt64 = 0
  private var sequence: UInt64 = 0

  init(_ page: SharedPage, _ lane: Lane) {
    self.page = page
    self.lane = lane
  }

  /// Begins a session: both indices are 0.
  mutating func reset() {
    (head, tail, sequence) = (0, 0, 0)
    page.release(0, at: lane.head)
  }

  /// The next message, copied and checked; nil when none waits. Takes time in proportion to the longest message.
  mutating func next(epoch: UInt64, version: UInt16) throws(ChannelViolation) -> (type: UInt8, payload: [UInt8])? {
    if tail == head {
      let seen = page.acquire(lane.tail)
      guard seen >= tail, seen - head <= UInt64(ChannelLayout.laneBytes), seen % 8 == 0 else {
        throw ChannelViolation(.index, "the sender's index went from \(tail) to \(seen)")
      }
      tail = seen
    }
    let available = Int(tail - head)
    guard available > 0 else { return nil }
    guard available >= FrameHeader.byteCount else {
      throw ChannelViolation(.index, "\(available) bytes are no message")
    }
    var bytes: [UInt8] = []
    bytes.reserveCapacity(ChannelLayout.frameLimit)
    copy(FrameHeader.byteCount, to: &bytes)
    let header = try bytes.withRawSpan { (span) throws(ChannelViolation) in try FrameHeader(span) }
    guard header.paddedLength <= available else {
      throw ChannelViolation(.index, "a message of \(header.paddedLength) bytes in \(available)")
    }
    copy(header.paddedLength - FrameHeader.byteCount, to: &bytes)
    guard header.matches(bytes) else { throw ChannelViolation(.checksum, "a message's checksum or padding is wrong") }
    guard header.version == version else {
      throw ChannelViolation(.version, "a message of version \(header.version) in a session of version \(version)")
    }
    guard header.epoch == epoch else { throw ChannelViolation(.order, "a message of another session") }
    guard header.sequence == sequence &+ 1 else {
      throw ChannelViolation(.order, "message \(header.sequence) after message \(sequence)")
    }
    sequence = header.sequence
    head += UInt64(header.paddedLength)
    page.release(head, at: lane.head)
    return (header.type, Array(bytes[FrameHeader.byteCount..<FrameHeader.byteCount + header.length]))
  }

  /// Fetches words behind those that were fetched already, each once.
  private func copy(_ count: Int, to bytes: inout [UInt8]) {
    for _ in 0..<count / 8 { bytes.append(little: page.load(lane.place(head + UInt64(bytes.count)))) }
  }
}

/// The sending side of a lane.
struct LaneWriter {
  let page: SharedPage
  let lane: Lane
  private var head: UInt64 = 0
  private var tail: UInt64 = 0
  private var sequence: UInt64 = 0

  init(_ page: SharedPage, _ lane: Lane) {
    self.page = page
    self.lane = lane
  }

  /// Begins a session: both indices are 0.
  mutating func reset() {
    (head, tail, sequence) = (0, 0, 0)
    page.release(0, at: lane.tail)
  }

  /// Whether everything that was sent has been taken, as far as was seen.
  var isEmpty: Bool { head == tail }

  /// Sends a message if there is room for it.
  ///
  /// - Returns: whether it was sent.
  mutating func send(
    _ type: UInt8, _ payload: [UInt8], epoch: UInt64, version: UInt16
  ) throws(ChannelViolation) -> Bool {
    precondition(payload.count <= ChannelLayout.payloadLimit, "a message that no lane takes")
    let seen = page.acquire(lane.head)
    guard seen >= head, seen <= tail, seen % 8 == 0 else {
      throw ChannelViolation(.index, "the receiver's index went from \(head) to \(seen) of \(tail)")
    }
    head = seen
    let header = FrameHeader(
      version: UInt8(truncatingIfNeeded: version), type: type, length: payload.count, epoch: epoch,
      sequence: sequence + 1)
    guard header.paddedLength <= ChannelLayout.laneBytes - Int(tail - head) else { return false }
    let bytes = FrameHeader.encode(header, payload)
    bytes.withRawSpan { span in
      for offset in stride(from: 0, to: span.byteCount, by: 8) {
        page.store(span.u64le(offset), at: lane.place(tail + UInt64(offset)))
      }
    }
    sequence += 1
    tail += UInt64(bytes.count)
    page.release(tail, at: lane.tail)
    return true
  }
}
