/// What a `DetectorChannel` holds, and what it does for each packet.
struct DetectorChannelState: ~Copyable {
  var packets: PacketRingWriter
  var verdicts: VerdictRingReader
  var inspectorCounters: CounterBlockReader
  var detectorSleep: SleepWord
  var ownSleep: SleepWord
  var link: DetectorSocket?
  var attached = false
  var generation: UInt32 = 0
  /// The alerts of the record that was taken last; its storage is used again.
  var alerts: [AlertRecord] = []
  /// Whether the head of a packet whose verdict is not `pass` is kept.
  var keepsRefused = false
  /// That of the record that was taken last, if it was refused or came behind a packet that was rejected.
  private(set) var refused: (frame: FrameMetadata, head: [UInt8])?
  /// What the detector is to say of packets beside alerts, and how many of these are kept.
  var notes: PacketNotes = []
  private var notePace = Pace(perSecond: 1)
  /// What was said of the packet whose record was taken last.
  private(set) var noted: PacketNote?
  /// How many packets are still kept behind the one that was rejected last.
  private var following = 0
  var tally = DetectorChannelCounters()
  /// What the next detector is to take over: so many bytes in the state area.
  var offered: (length: Int, time: Timestamp)?
  /// What the last detector was to take over, which lies there until the next offer.
  var handed: (length: Int, time: Timestamp)?
  /// How many states were asked for.
  private(set) var stateRequests: UInt64 = 0
  /// For which times, the last few.
  private var stateTimes: [(request: UInt64, time: Timestamp)] = []
  private var failure: DetectorError?
  /// The rule sets that packets in the ring may have been inspected with, oldest first: how many rules each has.
  private var ruleCounts: [(generation: UInt32, count: Int)] = []

  init(configuration: DetectorChannelConfiguration, down: SharedRegion, up: SharedRegion) {
    packets = PacketRingWriter(
      region: down, capacity: configuration.packetRingBytes, snapLength: configuration.snapLength)
    verdicts = VerdictRingReader(up: up, down: down, capacity: configuration.verdictRingBytes)
    inspectorCounters = CounterBlockReader(up: up)
    detectorSleep = SleepWord(up, RingLayout.detectorSleep)
    ownSleep = SleepWord(down, RingLayout.supervisorSleep)
    alerts.reserveCapacity(InspectionOutput.capacity)
  }

  mutating func enqueue(_ frame: FrameMetadata, _ bytes: RawSpan) -> DetectorChannel.EnqueueOutcome {
    guard let id = packets.append(frame, bytes, generation: generation) else {
      tally.refused &+= 1
      return .full
    }
    tally.enqueuedBytes &+= UInt64(bytes.byteCount)
    if bytes.byteCount > packets.snapLength { tally.cut &+= 1 }
    return .queued(id: id)
  }

  /// Tells what is no frame. False: there is no room for it now.
  mutating func tell(_ kind: SlotKind, at time: Timestamp) -> Bool {
    let frame = FrameMetadata(timestamp: time, port: PortID(0), originalLength: 0)
    guard packets.append(frame, RawSpan(), generation: generation, kind: kind) != nil else { return false }
    tally.timesTold &+= 1
    return true
  }

  mutating func keepNotes(_ configuration: PacketNoteConfiguration) {
    notes = configuration.notes
    notePace = Pace(perSecond: configuration.perSecond)
  }

  mutating func publish() {
    if packets.publish() { wakeDetectorIfAsleep() }
  }

  private mutating func wakeDetectorIfAsleep() {
    guard attached, detectorSleep.mustRing() else { return }
    tally.bells &+= 1
    link?.ring()
  }

  // MARK: Collecting

  /// How many bytes of verdict records there are.
  mutating func beginCollecting() throws(DetectorError) -> UInt64 {
    if let failure { throw failure }
    do throws(DetectorError) {
      return try verdicts.available()
    } catch {
      throw fail(error)
    }
  }

  mutating func endCollecting() {
    verdicts.publishHead()
    wakeDetectorIfAsleep()
  }

  /// Takes one verdict; its alerts, if it has any, are then in `alerts`.
  mutating func take(
    _ available: inout UInt64
  ) throws(DetectorError) -> (verdict: PacketVerdict, hasAlerts: Bool) {
    do throws(DetectorError) {
      return try takeChecked(&available)
    } catch {
      throw fail(error)
    }
  }

  private mutating func fail(_ error: DetectorError) -> DetectorError {
    failure = error
    tally.violations &+= 1
    return error
  }

  @inline(__always)
  private mutating func takeChecked(
    _ available: inout UInt64
  ) throws(DetectorError) -> (verdict: PacketVerdict, hasAlerts: Bool) {
    let record = try verdicts.takeHeader(available: &available)
    guard let slot = try packets.headSlot() else {
      throw verdicts.violation("a verdict for packet \(record.id), which it was never given")
    }
    guard record.id == slot.id else {
      throw verdicts.violation("a verdict for packet \(record.id) where that of \(slot.id) was due")
    }
    let rules = ruleSet(of: slot)
    // Without a rule: the engine's settings refuse it, or a rule of an earlier set has refused its flow.
    guard record.rule == .max || record.rule < rules.count else {
      throw verdicts.violation("a verdict by rule \(record.rule), which does not exist")
    }
    if record.alertCount > 0 {
      alerts.removeAll(keepingCapacity: true)
      for index in 0..<record.alertCount { alerts.append(try verdicts.alert(index, ruleCount: rules.count)) }
      attest(slot)
    }
    let isOfTime = slot.kind != .frame
    guard !isOfTime || record.verdict == .pass && !record.hasNotes else {
      throw verdicts.violation("what it can only say of a packet of \(record.id), which is none")
    }
    noted = record.hasNotes ? try note(record, slot) : nil
    if keepsRefused {
      if isOfTime { refused = nil } else { keepRefused(slot, record.verdict) }
    }
    packets.release(slot)
    tally.alerts &+= UInt64(record.alertCount)
    tally.alertsLost &+= UInt64(record.overflow)
    let verdict = PacketVerdict(
      id: record.id, generation: rules.generation, verdict: record.verdict, rule: record.rule,
      overflow: record.overflow, timestamp: slot.frame.timestamp, port: slot.frame.port, isOfTime: isOfTime)
    return (verdict, record.alertCount > 0)
  }

  /// Compares what the alerts say of a proved address with the packet that they came with. One that is about the packet itself and has other ends proves
  /// nothing; of what was found without a packet, the detector's word is kept and marked as that.
  private mutating func attest(_ slot: PacketSlot) {
    guard alerts.contains(where: { $0.flags.contains(.established) }) else { return }
    let ends = slot.kind == .frame ? packets.withBytes(of: slot) { FrameEnds($0, slot.frame.linkType) } : nil
    for index in alerts.indices where alerts[index].flags.contains(.established) && !alerts[index].isTunnelled {
      switch ends?.relation(to: alerts[index]) {
      case .same: alerts[index].way = slot.frame.direction
      case .answer: alerts[index].way = slot.frame.direction.opposite
      case nil:
        alerts[index].flags.insert(.unattested)
        if alerts[index].origin == .flowTimeout { continue }
        alerts[index].flags.remove(.established)
        tally.unproved &+= 1
      }
    }
  }

  /// What the detector said of a packet beside alerts; without the packet, if there were too many.
  private mutating func note(
    _ record: VerdictRingReader.Header, _ slot: PacketSlot
  ) throws(DetectorError) -> PacketNote {
    guard !record.isTagged || notes.contains(.tagged), record.anomalyCount == 0 || notes.contains(.anomalies) else {
      throw verdicts.violation("of packet \(record.id) what nobody asked for")
    }
    // Looked at even if nobody will see them, so that a lie is one at any pace.
    var anomalies: [PacketAnomaly] = []
    let isKept = notePace.admits(at: slot.frame.timestamp)
    for index in 0..<record.anomalyCount {
      let anomaly = try verdicts.anomaly(index, of: record)
      if isKept { anomalies.append(anomaly) }
    }
    guard isKept else { return PacketNote() }
    return PacketNote(
      frame: slot.frame,
      head: packets.withBytes(of: slot) { bytes in
        bytes.extracting(0..<min(bytes.byteCount, NotedPacket.headBytes)).copiedBytes()
      }, capturedLength: slot.length, anomalies: anomalies, isTagged: record.isTagged)
  }

  private mutating func keepRefused(_ slot: PacketSlot, _ verdict: Verdict) {
    if verdict == .reject {
      following = RefusedPacket.following
    } else if verdict == .pass {
      guard following > 0 else {
        refused = nil
        return
      }
      following -= 1
    }
    let head = packets.withBytes(of: slot) { bytes in
      bytes.extracting(0..<min(bytes.byteCount, RefusedPacket.headBytes)).copiedBytes()
    }
    refused = (slot.frame, head)
  }

  /// The rule set that `slot` is inspected with: its own generation's, or, when the detector began with a later one, that.
  @inline(__always)
  private mutating func ruleSet(of slot: PacketSlot) -> (generation: UInt32, count: Int) {
    while ruleCounts.count > 1, ruleCounts[1].generation <= slot.generation { ruleCounts.removeFirst() }
    return ruleCounts.first ?? (0, 0)
  }

  // MARK: What detectors remember

  private static let stateTimesKept = 4

  mutating func noteStateRequest(at time: Timestamp) {
    stateRequests &+= 1
    if stateTimes.count >= Self.stateTimesKept { stateTimes.removeFirst() }
    stateTimes.append((stateRequests, time))
  }

  /// The time that a state was asked for with this number; nil for one of long ago, and after `forgetStates`.
  func timeOfState(_ request: UInt64) -> Timestamp? { stateTimes.first { $0.request == request }?.time }

  mutating func forgetStates() { stateTimes.removeAll() }

  // MARK: Detectors and rule sets

  /// Ready for a new detector, which begins at the first packet without a verdict with a rule set of its own.
  mutating func beginAnew(ruleCount: Int) {
    advanceGeneration(ruleCount: ruleCount)
    ruleCounts.removeFirst(ruleCounts.count - 1)
    verdicts.reset()
    inspectorCounters.beginAnew()
    detectorSleep.reset()
    ownSleep.withdraw()
    failure = nil
    _ = packets.publish()
  }

  mutating func advanceGeneration(ruleCount: Int) {
    generation += 1
    ruleCounts.append((generation, ruleCount))
  }
}

/// What a detector said of a packet beside alerts, with the packet; without a frame when it was one too many.
package struct PacketNote {
  package var frame: FrameMetadata?
  package var head: [UInt8] = []
  package var capturedLength = 0
  package var anomalies: [PacketAnomaly] = []
  package var isTagged = false
}
