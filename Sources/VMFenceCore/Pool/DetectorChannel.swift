/// The rings between the supervisor and the detector of one incarnation, as the supervisor holds them.
///
/// Packets go in (`enqueue`, then `publish` once per batch), verdicts come out (`collect`), each packet exactly once and in
/// order, whatever happens to the detector: what a dead detector had not answered, its successor inspects. Nothing that the
/// detector writes is believed.
///
/// One thread at a time uses a channel and the handle of its detector. `enqueue` and `collect` allocate nothing.
public final class DetectorChannel: @unchecked Sendable {
  // Not synchronised: the contract above makes one thread at a time its user, and the value moves between threads with
  // it. All in one, so that a packet costs one check for overlapping access and not ten.
  private var state: DetectorChannelState

  /// The generation that packets enqueued now carry. Rises by one with each rule set.
  public var generation: UInt32 { state.generation }

  package let down: SharedRegion
  package let up: SharedRegion
  public let configuration: DetectorChannelConfiguration

  /// Checks that the sizes in `configuration` can be used.
  package static func check(_ configuration: DetectorChannelConfiguration) throws(DetectorError) {
    let packet = configuration.packetRingBytes
    let verdict = configuration.verdictRingBytes
    func isPowerOfTwo(_ value: Int) -> Bool { value > 0 && value & (value - 1) == 0 }
    guard isPowerOfTwo(packet), packet >= 4096, packet <= 1 << 30, isPowerOfTwo(verdict), verdict >= 16384,
      verdict <= 1 << 30
    else {
      throw DetectorError(
        .memory, "rings of \(packet) and \(verdict) bytes",
        remedy: "use powers of two: 4096 to 1073741824 for packets, 16384 to 1073741824 for verdicts")
    }
    guard configuration.stateBytes >= 0, configuration.stateBytes <= 1 << 28, configuration.stateBytes % 4096 == 0
    else {
      throw DetectorError(
        .memory, "\(configuration.stateBytes) bytes for a saved state",
        remedy: "use a multiple of 4096, 268435456 at the most")
    }
    guard configuration.snapLength > 0, configuration.snapLength <= packet / 2 - RingLayout.slotHeader else {
      throw DetectorError(
        .memory, "frames of up to \(configuration.snapLength) bytes do not fit twice into a ring of \(packet)",
        remedy: "use a larger ring or a smaller snap length")
    }
  }

  /// - `down`: zeroed; what the supervisor writes: `downBytes(_:)` long.
  /// - `up`: zeroed; what the detector writes: `upBytes(_:)` long.
  package init(
    configuration: DetectorChannelConfiguration, down: SharedRegion, up: SharedRegion
  ) throws(DetectorError) {
    try Self.check(configuration)
    precondition(down.byteCount == Self.downBytes(configuration) && up.byteCount == Self.upBytes(configuration))
    self.configuration = configuration
    self.down = down
    self.up = up
    state = DetectorChannelState(configuration: configuration, down: down, up: up)
  }

  package static func downBytes(_ configuration: DetectorChannelConfiguration) -> Int {
    RingLayout.controlBytes + configuration.packetRingBytes + configuration.stateBytes
  }

  package static func upBytes(_ configuration: DetectorChannelConfiguration) -> Int {
    RingLayout.controlBytes + configuration.verdictRingBytes + configuration.stateBytes
  }

  // MARK: Packets in

  public enum EnqueueOutcome: Hashable, Sendable {
    /// In the ring, under this number; the detector sees it after `publish()`.
    case queued(id: UInt64)
    /// No room. Collect verdicts to free some, and try again or count a drop.
    case full
  }

  /// Copies one frame into the ring. What exceeds the configuration's snap length is cut.
  @discardableResult
  public func enqueue(_ frame: FrameMetadata, _ bytes: RawSpan) -> EnqueueOutcome { state.enqueue(frame, bytes) }

  /// Tells the detector that no frame came before `time` (packet time), so that it looks at what has waited for one too long; its alerts come with a
  /// verdict of their own (`PacketVerdict.isOfTime`). When they are many, some wait for the next time that is told. False: the ring is full, so that there
  /// are frames.
  @discardableResult
  public func enqueueTime(_ time: Timestamp) -> Bool { state.tell(.time, at: time) }

  /// The same, for the end: no frame will come.
  @discardableResult
  public func enqueueEnd(at time: Timestamp) -> Bool { state.tell(.end, at: time) }

  /// Shows the detector what was enqueued, and wakes it if it sleeps.
  public func publish() { state.publish() }

  // MARK: Verdicts out

  /// Whether the head of a packet whose verdict is not `pass` can be had with its verdict.
  package func keepRefused() { state.keepsRefused = true }

  /// Within `collect`: the packet that the verdict is about, if it was refused and is kept.
  package var refused: (frame: FrameMetadata, head: [UInt8])? { state.refused }

  /// Has the detectors that are attached from now on say more of packets than alerts.
  package func keepNotes(_ configuration: PacketNoteConfiguration) { state.keepNotes(configuration) }

  /// Within `collect`: what was said of the verdict's packet beside alerts, if that was asked for.
  package var noted: PacketNote? { state.noted }

  /// Hands over the verdicts that have arrived, in the order of their packets, each exactly once. The alerts are valid
  /// for the duration of the call only; their rule indices are within the rule set of the verdict's generation.
  ///
  /// - Returns: how many verdicts there were.
  /// - Throws: `violation` when the detector wrote what a sound one never writes. Verdicts handed over before stand; the
  ///   detector is to be killed, and a successor inspects from the first packet without a verdict.
  @discardableResult
  public func collect(
    _ body: (borrowing PacketVerdict, Span<AlertRecord>) -> Void
  ) throws(DetectorError) -> Int {
    var available = try state.beginCollecting()
    guard available > 0 else { return 0 }
    var taken = 0
    while available > 0 {
      let (verdict, hasAlerts) = try state.take(&available)
      if hasAlerts {
        // Taken out meanwhile: the body may use this channel.
        let found = exchange(&state.alerts, with: [])
        body(verdict, found.span)
        state.alerts = found
      } else {
        body(verdict, Span())
      }
      taken += 1
    }
    state.endCollecting()
    return taken
  }

  /// Packets that have no verdict yet, published or not.
  public var outstanding: Int { Int(state.packets.nextID - state.packets.headID) }

  /// How many packets have their verdict, or were skipped.
  var settled: UInt64 { state.packets.headID }

  /// The packet whose verdict was handed over last, or that was skipped last; nil before the first.
  public var lastAnsweredID: UInt64? {
    let next = state.packets.headID
    return next == 0 ? nil : next - 1
  }

  /// What the detectors of this channel counted by themselves, in the order of `counters`: as the last one showed it, some packets ago. Nothing of it
  /// is believed: totals never go back, and every number is one that can be shown.
  public func inspectorCounters(_ counters: [InspectorCounter]) -> [UInt64] { state.inspectorCounters.read(counters) }

  public var counters: DetectorChannelCounters {
    var result = state.tally
    result.enqueued = state.packets.nextID
    result.answered = state.packets.headID - result.skipped
    return result
  }

  // MARK: Waiting

  public enum WaitResult: Hashable, Sendable {
    /// There is something to collect.
    case verdicts
    case timedOut
    /// No detector is attached, or it is gone, and nothing is left to collect.
    case gone
  }

  /// Waits until there are verdicts to collect, at the most `patience` of real time (rounded up to milliseconds).
  public func waitForVerdicts(upTo patience: Duration) -> WaitResult {
    let deadline = MonotonicTime.now() + max(0, min(patience.wholeNanoseconds, 1 << 60))
    while true {
      guard beginWait() else { return .verdicts }
      let remaining = deadline - MonotonicTime.now()
      let milliseconds = remaining <= 0 ? 0 : min(remaining / 1_000_000 + 1, Int64(Int32.max))
      let result = state.link?.wait(milliseconds: Int32(milliseconds)) ?? .gone
      let isOpen = endWait() && result != .gone
      if state.verdicts.hasRecords { return .verdicts }
      if !isOpen { return .gone }
      // A bell that was rung for an earlier wait may have ended this one.
      if remaining <= 0 { return .timedOut }
    }
  }

  /// For waiting on many channels at once: announces that the supervisor sleeps. False: there is what is waited for, do not wait. True:
  /// poll `pollDescriptor` for input, and call `endWait()` afterwards.
  ///
  /// - `onlyForNews`: what is waited for is an alert or a packet that is refused. Who is woken by packets anyway takes the other verdicts then:
  ///   being woken for each costs more than inspecting it does.
  public func beginWait(onlyForNews: Bool = false) -> Bool {
    state.ownSleep.announce(onlyForNews: onlyForNews)
    guard onlyForNews ? state.verdicts.hasNews : state.verdicts.hasRecords else { return true }
    state.ownSleep.withdraw()
    return false
  }

  /// Ends what `beginWait()` began, and takes the bells that were rung. False: the detector is gone, or none is attached.
  @discardableResult
  public func endWait() -> Bool {
    state.ownSleep.withdraw()
    return state.link?.drain() ?? false
  }

  /// Readable when the detector rang, or is gone; nil while none is attached.
  public var pollDescriptor: Int32? { state.link?.descriptor }

  // MARK: Detectors, one after the other

  /// Prepares the shared memory for a new detector that begins at the first packet without a verdict, with a rule set of
  /// `ruleCount` rules and a generation of its own. The backend calls this before it starts the detector.
  package func attach(ruleCount: Int, socket: consuming DetectorSocket) throws(DetectorError) {
    guard !state.attached else {
      throw DetectorError(
        .launchFailed, "the channel has a detector already", remedy: "call kill() on its handle first, dead or not")
    }
    state.beginAnew(ruleCount: ruleCount)
    let control = down.area(0, count: RingLayout.controlBytes)
    control.store(state.packets.head, at: RingLayout.startPosition)
    control.store(state.packets.headID, at: RingLayout.startID)
    control.store(state.generation, at: RingLayout.startGeneration)
    control.store(UInt64(configuration.stateBytes), at: RingLayout.stateCapacity)
    control.store(UInt64(state.offered?.length ?? 0), at: RingLayout.startStateLength)
    control.store(state.offered?.time.nanoseconds ?? 0, at: RingLayout.startStateTime)
    control.store(state.stateRequests, at: RingLayout.answeredRequests)
    control.store(UInt64(state.notes.rawValue), at: RingLayout.notes)
    (state.handed, state.offered) = (state.offered, nil)
    up.word(RingLayout.startStateOutcome).storeReleasing(0)
    state.link = consume socket
    state.attached = true
  }

  /// The detector is gone for good: nobody else writes to the shared memory any more. What it had published stays to be
  /// collected until the next one is attached.
  package func detach() {
    state.link = nil
    state.attached = false
  }

  /// Starts a new generation: packets enqueued from now on are inspected with `ruleCount` other rules. The backend calls
  /// this when it has handed the rules over.
  @discardableResult
  package func advanceGeneration(ruleCount: Int) -> UInt32 {
    state.advanceGeneration(ruleCount: ruleCount)
    return state.generation
  }

  /// Calls `body` with the socket to the detector, if one is attached.
  package func withSocket<Result>(_ body: (borrowing DetectorSocket) -> Result) -> Result? {
    guard let descriptor = state.link?.descriptor else { return nil }
    let borrowed = DetectorSocket(adopting: descriptor)
    let result = body(borrowed)
    _ = (consume borrowed).releaseDescriptor()
    return result
  }

  // MARK: What detectors remember

  /// Gives the next detector a state to take over, which `saveState` gave: of this engine, from any time. It checks it, and begins without
  /// when it is not one (`tookOverState`).
  ///
  /// - `time`: packet time: what remained of a time when the state was saved remains from then on.
  /// - Returns: false when there is no room for so much.
  /// - Precondition: no detector is attached.
  package func offerState(_ bytes: [UInt8], at time: Timestamp) -> Bool {
    precondition(!state.attached, "a state may be offered only while no detector runs")
    guard bytes.count <= configuration.stateBytes else { return false }
    let area = down.area(down.byteCount - configuration.stateBytes, count: configuration.stateBytes)
    bytes.withRawSpan { area.copy($0, length: bytes.count, to: 0) }
    state.offered = (bytes.count, time)
    // What a detector said of an earlier one says nothing of this.
    up.word(RingLayout.startStateOutcome).storeReleasing(0)
    return true
  }

  /// The last detector could not be started: what it was to take over is for the next one. Does nothing while one is attached.
  package func offerStateAgain() {
    guard !state.attached, state.offered == nil else { return }
    state.offered = state.handed
    up.word(RingLayout.startStateOutcome).storeReleasing(0)
  }

  /// The state that was offered last, while no detector has said what became of it; nil when one has, or none was offered.
  package var untakenState: [UInt8]? {
    guard tookOverState == nil, let (length, _) = state.offered ?? state.handed else { return nil }
    let area = down.area(down.byteCount - configuration.stateBytes, count: configuration.stateBytes)
    return area.withBytes(0, length: length) { $0.copiedBytes() }
  }

  /// Whether the detector took over the state that it was offered; nil while it has not said so, or was offered none.
  package var tookOverState: Bool? {
    switch up.word(RingLayout.startStateOutcome).loadOnce() {
    case 0: nil
    case 1: true
    default: false
    }
  }

  /// What the detector remembers of the traffic, as it was at a batch boundary from now on: collect all verdicts first, and publish nothing
  /// meanwhile. The bytes are hostile; only another detector is to read them.
  ///
  /// - `time`: packet time.
  /// - Returns: nil when it did not answer within `patience` of real time, or nothing can be saved.
  package func saveState(at time: Timestamp, upTo patience: Duration) -> [UInt8]? {
    askForState(at: time) ? awaitState(upTo: patience) : nil
  }

  /// Waits for what the detector answers to the last `askForState`.
  ///
  /// - Returns: nil when it did not answer within `patience` of real time.
  package func awaitState(upTo patience: Duration) -> [UInt8]? {
    let deadline = MonotonicTime.now() + max(0, min(patience.wholeNanoseconds, 1 << 60))
    return awaitState(until: deadline) ? takeState() : nil
  }

  /// Asks without waiting: `takeState` has the answer when there is one. What was asked for before is not answered any more.
  ///
  /// - Returns: false when nothing can be saved.
  @discardableResult
  package func askForState(at time: Timestamp) -> Bool {
    guard state.attached, configuration.stateBytes > 0 else { return false }
    state.noteStateRequest(at: time)
    down.area(0, count: RingLayout.controlBytes).store(time.nanoseconds, at: RingLayout.stateTime)
    down.word(RingLayout.stateRequest).storeReleasing(state.stateRequests)
    state.link?.ring()
    return true
  }

  /// What the detector answered to the last `askForState`; nil while it has not. Empty when it said more than there is room for.
  package func takeState() -> [UInt8]? {
    guard up.word(RingLayout.stateAnswer).loadAcquiring() == state.stateRequests else { return nil }
    let length = up.word(RingLayout.stateLength).loadOnce()
    guard length <= UInt64(configuration.stateBytes) else { return [] }
    let area = up.area(up.byteCount - configuration.stateBytes, count: configuration.stateBytes)
    return area.withBytes(0, length: Int(length)) { $0.copiedBytes() }
  }

  /// Whether nothing was asked for that is not answered.
  package var isStateAnswered: Bool { up.word(RingLayout.stateAnswer).loadAcquiring() == state.stateRequests }

  /// What a detector said last, this one or one before it, when it was asked what it remembers, and the packet time of that; nil when none has,
  /// or after `forgetState`. One that died while it wrote leaves bytes that its successor refuses. Hostile, as all that `takeState` gives.
  package var lastState: (bytes: [UInt8], time: Timestamp)? {
    let answer = up.word(RingLayout.stateAnswer).loadAcquiring()
    let length = up.word(RingLayout.stateLength).loadOnce()
    guard let time = state.timeOfState(answer), length > 0, length <= UInt64(configuration.stateBytes) else {
      return nil
    }
    let area = up.area(up.byteCount - configuration.stateBytes, count: configuration.stateBytes)
    return (area.withBytes(0, length: Int(length)) { $0.copiedBytes() }, time)
  }

  /// What detectors have said so far is not `lastState` any more.
  package func forgetState() { state.forgetStates() }

  private func awaitState(until deadline: Int64) -> Bool {
    let answer = up.word(RingLayout.stateAnswer)
    while true {
      state.ownSleep.announce()
      if answer.loadAcquiring() == state.stateRequests {
        state.ownSleep.withdraw()
        return true
      }
      let remaining = deadline - MonotonicTime.now()
      guard remaining > 0 else {
        state.ownSleep.withdraw()
        return false
      }
      let result = state.link?.wait(milliseconds: Int32(min(remaining / 1_000_000 + 1, Int64(Int32.max)))) ?? .gone
      let isOpen = endWait() && result != .gone
      if !isOpen { return answer.loadAcquiring() == state.stateRequests }
    }
  }

  // MARK: The packet that kills

  /// The first packet without a verdict: after a crash, and when everything was collected, the one that was being
  /// inspected. nil when every published packet has its verdict.
  ///
  /// - Throws: `violation` when the shared memory does not hold that packet any more (a thread wrote where it must not).
  public func headPacket() throws(DetectorError) -> (id: UInt64, frame: FrameMetadata, bytes: [UInt8])? {
    guard let slot = try state.packets.headSlot() else { return nil }
    return (slot.id, slot.frame, state.packets.withBytes(of: slot) { $0.copiedBytes() })
  }

  /// Passes over the first packet without a verdict, and returns it as evidence. Collect everything first.
  ///
  /// - Precondition: no detector is attached.
  public func skipHeadPacket() throws(DetectorError) -> (id: UInt64, frame: FrameMetadata, bytes: [UInt8])? {
    precondition(!state.attached, "a packet may be skipped only while no detector runs")
    guard let result = try headPacket(), let slot = try state.packets.headSlot() else { return nil }
    state.packets.release(slot)
    state.tally.skipped &+= 1
    return result
  }
}

/// What went through a channel so far.
public struct DetectorChannelCounters: Hashable, Sendable {
  /// Frames, and what was told of time.
  public var enqueued: UInt64 = 0
  /// How often the detector was told of time.
  public var timesTold: UInt64 = 0
  /// Bytes of the enqueued frames, before cutting.
  public var enqueuedBytes: UInt64 = 0
  /// Frames that were longer than the snap length.
  public var cut: UInt64 = 0
  /// How often a frame found no room. Whether that was a drop is the caller's choice.
  public var refused: UInt64 = 0
  public var answered: UInt64 = 0
  public var alerts: UInt64 = 0
  /// Alerts that did not fit into their packet's record.
  public var alertsLost: UInt64 = 0
  /// Alerts that claimed a proved address and have other ends than their packet; the claim was dropped.
  public var unproved: UInt64 = 0
  /// Packets passed over because they killed their detector.
  public var skipped: UInt64 = 0
  public var bells: UInt64 = 0
  public var violations: UInt64 = 0
  public init() {}
}
