import VMFenceCore

/// What happens without a packet: because time has passed, or because none will come.
extension SnortInspector {
  /// Data that its receiver has read is inspected once its flow was silent for so long, in nanoseconds: before that, a chunk of it may become full, or the
  /// answer come.
  static let silence: Int64 = 500_000_000

  public mutating func finish(into output: inout InspectionOutput) -> Bool {
    guard let place = flows.nextWithBuffers(from: finishPlace) else {
      finishPlace = 0
      return false
    }
    finishPlace = place + 1
    let (alerts, lost) = (output.count, output.overflow)
    endFlow(place, at: Timestamp(nanoseconds: flows[place].lastSeen), into: &output)
    settle(into: &output)
    count(alerts, lost, output)
    return true
  }

  public mutating func advance(to time: Timestamp, into output: inout InspectionOutput) -> Bool {
    for place in advancePlace..<max(advancePlace, flows.usedEnd) where flows.isUsed(place) {
      let isOver = flows.isOver(place, time.nanoseconds)
      if isOver, !flows[place].hasBuffers {
        flows.expire(place)
        continue
      }
      guard isOver || hasSilentData(place, time) else { continue }
      advancePlace = place + 1
      let (alerts, lost) = (output.count, output.overflow)
      if isOver {
        endFlow(place, at: time, into: &output)
        flows.expire(place)
      } else {
        inspectRead(place, into: &output)
      }
      settle(into: &output)
      // A rule may drop, but there is nothing to be dropped.
      output.clearVerdict()
      count(alerts, lost, output)
      return true
    }
    fragments.expire(at: time.nanoseconds)
    advancePlace = 0
    return false
  }

  /// Whether a receiver has read what was not inspected, and neither end went on.
  private func hasSilentData(_ place: Int, _ time: Timestamp) -> Bool {
    guard flows[place].hasBuffers, time - Timestamp(nanoseconds: flows[place].lastSeen) >= .nanoseconds(Self.silence)
    else { return false }
    return hasRead(flows[place].session.client) || hasRead(flows[place].session.server)
  }

  private func hasRead(_ end: borrowing TCPEnd) -> Bool {
    guard end.stream.block != 0, end.stream.marks.contains(.isKnown) else { return false }
    let known = streams.ready(end.stream)
    let read = Int(sequenceDistance(end.mapped(end.acknowledged), end.stream.base))
    return min(known, read) > Int(sequenceDistance(end.stream.inspected, end.stream.base))
  }

  /// Inspects what the receivers of both directions have read.
  private mutating func inspectRead(_ place: Int, into output: inout InspectionOutput) {
    var events = StreamEvents()
    let time = Timestamp(nanoseconds: flows[place].lastSeen)
    for ofClient in [true, false] {
      inspectStream(place, ofClient: ofClient, .acknowledged, time, .flowTimeout, &events, into: &output)
    }
  }
}
