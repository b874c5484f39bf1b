/// What a detector's loop is told from outside: by a thread's owner, or over a process's socket.
@usableFromInline
package protocol DetectorControl: ~Copyable {
  associatedtype Rules: CompiledRules

  /// At a batch boundary: does what was asked for meanwhile (parks, for a thread). False: the loop is to end.
  mutating func checkpoint() -> Bool
  /// Sleeps until the bell rings. False: the loop is to end.
  mutating func sleep() -> Bool
  /// Wakes the supervisor.
  mutating func ring()
  /// The rule set of a generation; waits for it, as it was sent before the first packet of that generation. nil: the loop is
  /// to end.
  mutating func takeRules(generation: UInt32) -> Rules?
}

/// Why a detector's loop ended.
@usableFromInline
package enum DetectorLoopEnd: Hashable, Sendable {
  case stopped
  case badRules(String)
  /// The shared memory holds what the supervisor never writes.
  case damaged
}

/// A detector's life: take a packet, inspect it, publish its verdict, take the next. The same code in a thread and in a
/// process, so the same input gives the same output in both.
@usableFromInline
package struct DetectorLoop: ~Copyable {
  private let down: SharedRegion
  private let ring: SharedArea
  private let sharedTail: SharedWord
  private var verdicts: VerdictRingWriter
  private var ownSleep: SleepWord
  private var supervisorSleep: SleepWord
  private var head: UInt64
  private var tail: UInt64
  private var expectedID: UInt64
  private var generation: UInt32
  private var isDamaged = false
  /// News were published since the supervisor was looked at with a fence.
  private var hasNews = false
  private let stateRequest: SharedWord
  private let stateAnswer: SharedWord
  private let stateArea: SharedArea
  private let up: SharedRegion
  /// What is to be said of packets beside alerts.
  @usableFromInline let notes: PacketNotes
  /// The number of the last state that was asked for and saved.
  private var answeredState: UInt64
  @usableFromInline let counterBlock: CounterBlockWriter
  /// Batches since the counters were shown.
  private var quietBatches = 0

  /// Packets inspected between two looks at the control and at a sleeping supervisor.
  private static let batch = 64
  /// Batches after which the counters are shown, while packets keep coming.
  private static let counterPeriod = 16
  /// How often the ring is looked at before the detector goes to sleep.
  private static let spins = 256

  /// Joins the rings where the supervisor's `attach` said.
  package init(down: SharedRegion, up: SharedRegion) {
    self.down = down
    self.up = up
    let control = down.area(0, count: RingLayout.controlBytes)
    let stateBytes = Self.stateBytes(down)
    ring = down.area(RingLayout.controlBytes, count: down.byteCount - RingLayout.controlBytes - stateBytes)
    sharedTail = down.word(RingLayout.packetTail)
    notes = PacketNotes(rawValue: UInt8(truncatingIfNeeded: control.load(RingLayout.notes, as: UInt64.self)))
    verdicts = VerdictRingWriter(up: up, down: down, stateBytes: stateBytes, notes: notes)
    counterBlock = CounterBlockWriter(up: up)
    stateArea = up.area(up.byteCount - stateBytes, count: stateBytes)
    stateRequest = down.word(RingLayout.stateRequest)
    stateAnswer = up.word(RingLayout.stateAnswer)
    // What a predecessor was asked for is not this one's to answer; what was asked for since this one was started is.
    answeredState = control.load(RingLayout.answeredRequests, as: UInt64.self)
    ownSleep = SleepWord(up, RingLayout.detectorSleep)
    supervisorSleep = SleepWord(down, RingLayout.supervisorSleep)
    head = control.load(RingLayout.startPosition, as: UInt64.self)
    tail = head
    expectedID = control.load(RingLayout.startID, as: UInt64.self)
    generation = control.load(RingLayout.startGeneration, as: UInt32.self)
  }

  /// How many bytes of each region are its state area.
  package static func stateBytes(_ down: SharedRegion) -> Int {
    Int(
      truncatingIfNeeded: down.area(0, count: RingLayout.controlBytes).load(RingLayout.stateCapacity, as: UInt64.self))
  }

  /// Inspects packets until the control or the inspector's rules end it.
  @inlinable
  package static func run<Inspector: PacketInspector & ~Copyable, Control: DetectorControl & ~Copyable>(
    _ loop: consuming DetectorLoop, inspector: consuming Inspector, control: inout Control
  ) -> DetectorLoopEnd where Control.Rules == Inspector.Rules {
    var output = InspectionOutput(keepsAnomalies: loop.notes.contains(.anomalies))
    if let start = loop.startState {
      do throws(EngineStateError) {
        _ = try inspector.restoreState(start.bytes, at: start.time)
        loop.noteStart(isTaken: true)
      } catch {
        loop.noteStart(isTaken: false)
      }
    }
    while loop.awaitPackets(&control) {
      if let time = loop.stateTime {
        loop.answerState(inspector.saveState(at: time, limit: loop.stateCapacity).bytes)
      }
      var taken = 0
      while let slot = loop.next(&taken) {
        if let generation = loop.newGeneration(of: slot) {
          guard let rules = control.takeRules(generation: generation) else { return .stopped }
          do throws(RuleCompilationError) {
            try inspector.replaceRules(with: rules)
          } catch {
            return .badRules(error.description)
          }
        }
        output.reset()
        switch slot.kind {
        case .frame: loop.withBytes(of: slot) { inspector.inspect(slot.frame, $0, into: &output) }
        case .time: while hasRoom(output), inspector.advance(to: slot.frame.timestamp, into: &output) {}
        case .end: while hasRoom(output), inspector.finish(into: &output) {}
        }
        // What is no frame is not refused.
        if slot.kind != .frame { output.clearVerdict() }
        guard loop.answer(slot, output, &control) else { return .stopped }
      }
      loop.endBatch(&control)
      if loop.showsCounters() {
        let block = loop.counterBlock
        var index = 0
        inspector.forEachCounter { value in
          block.write(value, at: index)
          index += 1
        }
      }
    }
    return loop.end
  }

  /// Whether the alerts of one more flow likely fit. What is left is looked at when time, or the end, is told again.
  @usableFromInline
  static func hasRoom(_ output: borrowing InspectionOutput) -> Bool { output.count <= InspectionOutput.capacity / 2 }

  /// Waits at a batch boundary until there are packets, or a state is asked for. False: the loop is to end.
  @usableFromInline
  mutating func awaitPackets(_ control: inout some DetectorControl & ~Copyable) -> Bool {
    guard !isDamaged, control.checkpoint() else { return false }
    if head != tail || isStateWanted { return true }
    for _ in 0..<Self.spins {
      tail = sharedTail.loadAcquiring()
      if head != tail { return checkTail() }
    }
    while true {
      ownSleep.announce()
      tail = sharedTail.loadAcquiring()
      if head != tail {
        ownSleep.withdraw()
        return checkTail()
      }
      if isStateWanted {
        ownSleep.withdraw()
        return true
      }
      let goesOn = control.sleep()
      ownSleep.withdraw()
      guard goesOn, control.checkpoint() else { return false }
    }
  }

  private mutating func checkTail() -> Bool {
    if tail > head, tail - head <= UInt64(ring.count), tail % 8 == 0, head % 8 == 0 { return true }
    isDamaged = true
    return false
  }

  /// The next packet of this batch; nil at its end.
  @usableFromInline
  mutating func next(_ taken: inout Int) -> PacketSlot? {
    guard head != tail, taken < Self.batch else { return nil }
    taken += 1
    guard let slot = PacketSlot(ring: ring, position: head, tail: tail, snapLength: ring.count),
      slot.id == expectedID
    else {
      isDamaged = true
      return nil
    }
    return slot
  }

  @usableFromInline
  mutating func newGeneration(of slot: PacketSlot) -> UInt32? {
    guard slot.generation > generation else { return nil }
    generation = slot.generation
    return generation
  }

  @usableFromInline
  func withBytes(of slot: PacketSlot, _ body: (RawSpan) -> Void) {
    ring.withBytes(slot.offset + RingLayout.slotHeader, length: slot.length, body)
  }

  /// Publishes the verdict, which also gives the slot back; waits while the verdict ring is full. False: the loop is to end.
  @usableFromInline
  mutating func answer(
    _ slot: PacketSlot, _ output: borrowing InspectionOutput, _ control: inout some DetectorControl & ~Copyable
  ) -> Bool {
    let size = VerdictRingWriter.recordBytes(output)
    while !verdicts.hasRoom(size) {
      if supervisorSleep.mustRing() { control.ring() }
      ownSleep.announce()
      let goesOn = verdicts.hasRoom(size) || control.sleep()
      ownSleep.withdraw()
      guard goesOn, control.checkpoint() else { return false }
    }
    if verdicts.append(id: slot.id, output) { hasNews = true }
    // The next packet may take long. The end of the batch looks again, with a fence.
    if supervisorSleep.shouldRing(withNews: hasNews) { control.ring() }
    head = slot.end
    expectedID += 1
    return true
  }

  /// Wakes the supervisor if it sleeps and wants to know of what there is. If it does not sleep, it sees that before it does.
  @usableFromInline
  mutating func endBatch(_ control: inout some DetectorControl & ~Copyable) {
    if supervisorSleep.mustRing(withNews: hasNews) { control.ring() }
    hasNews = false
  }

  /// Whether the counters are to be shown after this batch: when it was the last for now, and every sixteenth.
  @usableFromInline
  mutating func showsCounters() -> Bool {
    quietBatches += 1
    guard head == tail || quietBatches >= Self.counterPeriod else { return false }
    quietBatches = 0
    return true
  }

  // MARK: What the inspector remembers

  private var isStateWanted: Bool { stateRequest.loadAcquiring() != answeredState }

  /// For what time a state is wanted; nil when none is.
  @usableFromInline
  var stateTime: Timestamp? {
    guard isStateWanted else { return nil }
    let control = down.area(0, count: RingLayout.controlBytes)
    return Timestamp(nanoseconds: control.load(RingLayout.stateTime, as: Int64.self))
  }

  @usableFromInline
  var stateCapacity: Int { stateArea.count }

  /// Hands a state to the supervisor; an empty one if it is too long.
  @usableFromInline
  mutating func answerState(_ bytes: [UInt8]) {
    let length = bytes.count <= stateArea.count ? bytes.count : 0
    bytes.withRawSpan { stateArea.copy($0, length: length, to: 0) }
    up.word(RingLayout.stateLength).storeOnce(UInt64(length))
    answeredState = stateRequest.loadAcquiring()
    stateAnswer.storeReleasing(answeredState)
  }

  /// What is to be taken over before the first packet.
  @usableFromInline
  var startState: (bytes: [UInt8], time: Timestamp)? {
    let control = down.area(0, count: RingLayout.controlBytes)
    let length = Int(truncatingIfNeeded: control.load(RingLayout.startStateLength, as: UInt64.self))
    guard length > 0, length <= stateArea.count else { return nil }
    let area = down.area(down.byteCount - stateArea.count, count: stateArea.count)
    return (
      area.withBytes(0, length: length) { $0.copiedBytes() },
      Timestamp(nanoseconds: control.load(RingLayout.startStateTime, as: Int64.self))
    )
  }

  @usableFromInline
  func noteStart(isTaken: Bool) { up.word(RingLayout.startStateOutcome).storeReleasing(isTaken ? 1 : 2) }

  @usableFromInline
  var end: DetectorLoopEnd { isDamaged ? .damaged : .stopped }
}
