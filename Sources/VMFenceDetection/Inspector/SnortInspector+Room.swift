import VMFenceCore

/// Room for segments, and the work of putting them together: who gives way, and who pays.
extension SnortInspector {
  /// Streams that give way for one segment at the most, of those that were inspected and of those that wait, in each of `rounds`.
  static let sweep = 64
  private static let rounds = 4

  /// Makes room for a segment. When memory is short, streams of the largest share give way: those that were inspected, then what others hold behind holes,
  /// then, if the share is another one's, what waits for an acknowledgement, inspected first. In a stream that is full, what was not acknowledged is
  /// inspected, and what lies farther gives way. No hole is passed for it: what comes to fill it would count as old.
  mutating func giveRoom(
    _ place: Int, _ fromClient: Bool, _ sequence: UInt32, _ problem: StreamStore.Insertion.Result,
    _ events: inout StreamEvents, into output: inout InspectionOutput
  ) {
    defer { countSegmentWork() }
    guard problem == .tooFar else {
      counters.memoryLimitHits += 1
      let own = streams.share(of: flows[place].peer)
      for _ in 0..<Self.rounds where streams.lacksRoom {
        let share = streams.largestShare(own: own)
        giveUpOverlaps(of: share)
        for _ in 0..<Self.sweep where streams.lacksRoom {
          guard let block = streams.oldestWithHole(share) else { break }
          giveUpFarthest(block, into: &output)
        }
        guard share != own else { return }
        for _ in 0..<Self.sweep where streams.lacksRoom {
          guard let block = streams.oldestPlain(share) else { break }
          giveUpWaiting(block, into: &output)
        }
      }
      return
    }
    counters.inspectedEarly += 1
    inspectStream(
      place, ofClient: fromClient, .ready, Timestamp(nanoseconds: flows[place].lastSeen), .wire, &events, into: &output)
    let track = flows[place].session[ofClient: fromClient].stream
    if streams.isFull(track, before: sequence) { giveUpFarthest(Int(track.block) - 1, into: &output) }
  }

  /// The stream that has a block; nil: none.
  private func stream(_ block: Int) -> (place: Int, ofClient: Bool)? {
    guard let place = streams.owner(block) else { return nil }
    if flows[place].session.client.stream.block == Int32(block) + 1 { return (place, true) }
    return flows[place].session.server.stream.block == Int32(block) + 1 ? (place, false) : nil
  }

  /// Gives up of some streams of a share what was inspected already, and what of their blocks they do not need: of all in turn, a few at a time, so
  /// that no flood makes each of its packets look at every stream.
  private mutating func giveUpOverlaps(of share: Int) {
    for _ in 0..<Self.sweep where streams.lacksRoom {
      guard let block = streams.oldestPlain(share) else { return }
      streams.refresh(block)
      guard let (place, ofClient) = stream(block) else { continue }
      var track = flows[place].session[ofClient: ofClient].stream
      if Int(sequenceDistance(track.inspected, track.base)) >= streams.ready(track) {
        streams.release(&track, before: track.inspected)
        setStream(track, place, ofClient)
      } else {
        streams.fit(block)
      }
    }
  }

  /// Inspects what a stream holds without a hole before it was acknowledged, and forgets it.
  private mutating func giveUpWaiting(_ block: Int, into output: inout InspectionOutput) {
    streams.refresh(block)
    guard let (place, ofClient) = stream(block) else { return }
    counters.inspectedEarly += 1
    var events = StreamEvents()
    inspectStream(
      place, ofClient: ofClient, .ready, Timestamp(nanoseconds: flows[place].lastSeen), .wire, &events, into: &output)
    var track = flows[place].session[ofClient: ofClient].stream
    streams.release(&track, before: track.inspected)
    setStream(track, place, ofClient)
  }

  /// Inspects the farthest segments that a block holds behind a hole, and forgets them, so that it becomes half as large at least, or holds nothing
  /// behind a hole any more.
  mutating func giveUpFarthest(_ block: Int, into output: inout InspectionOutput) {
    streams.refresh(block)
    guard let (place, ofClient) = stream(block) else { return }
    counters.memoryEvictions += 1
    let track = flows[place].session[ofClient: ofClient].stream
    let first = streams.firstBeyondHalf(track)
    let found = (flows[place].clientFound, flows[place].serverFound)
    if !settings.isStreamInline, !track.marks.contains(.isOff) {
      for index in first..<Int(streams.blocks[block].count) {
        // Those that touch are one.
        let range = streams.range(track, index)
        var part = track
        part.base = track.base &+ UInt32(truncatingIfNeeded: range.lowerBound)
        inspectWindow(
          place, ofClient, part, range, fresh: 0, Timestamp(nanoseconds: flows[place].lastSeen), .wire, into: &output)
      }
    }
    // What was found there is not what was found in the bytes that the next window begins with.
    (flows[place].clientFound, flows[place].serverFound) = found
    streams.forget(&flows[place].session[ofClient: ofClient].stream, from: first)
  }

  // MARK: Work

  mutating func setDebts(_ owed: WorkDebts, of place: Int) {
    debts[place] = owed
    if owed.isEmpty { flows[place].marks.remove(.owes) } else { flows[place].marks.insert(.owes) }
  }

  /// Has a flow owe what putting its segments together took.
  @inline(__always)
  mutating func chargeSegments(_ place: Int) {
    let work = countSegmentWork()
    if work > 0 { chargeSegments(work, place) }
  }

  private mutating func chargeSegments(_ work: Int, _ place: Int) {
    var owed = flows[place].marks.contains(.owes) ? debts[place] : WorkDebts()
    owed.chargeSegments(work)
    setDebts(owed, of: place)
  }

  /// Has a flow pay off what a segment with so many bytes does.
  @inline(__always)
  mutating func paySegment(_ byteCount: Int, _ place: Int) {
    guard flows[place].marks.contains(.owes) else { return }
    var owed = debts[place]
    owed.paySegment(byteCount)
    setDebts(owed, of: place)
  }

  /// Whether a flow owes so much for its segments that those that touch are joined.
  @inline(__always)
  func joinsSegments(_ place: Int) -> Bool { flows[place].marks.contains(.owes) && debts[place].joinsSegments }

  /// Counts what it took, and what making room for others did.
  @inline(__always)
  @discardableResult
  mutating func countSegmentWork() -> Int {
    let work = streams.takeWork()
    counters.work &+= UInt64(work)
    return work
  }
}

extension Flow {
  /// A number of the host that the guest talks to; where nobody knows which end that is, of the client. Hosts of one IPv6 network of 64 bits are one:
  /// whoever has one of its addresses has all.
  var peer: UInt64 {
    let isFirst = key.guestIsFirst.map { !$0 } ?? marks.contains(.clientIsFirst)
    let address = isFirst ? key.first : key.second
    return address.family == .v4 ? address.low : address.high
  }
}
