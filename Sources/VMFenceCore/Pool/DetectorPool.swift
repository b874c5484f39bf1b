internal import Glibc

/// All detectors of a host: one for each incarnation of a domain, started, stopped, resumed and ended as the automaton of
/// each says; packets in, events out.
///
/// Used by one thread at a time, and driven by it: the caller hands in what the probe reports, frames, and the time; the pool reads no clock
/// and starts no thread. A live daemon and a replay drive it alike.
///
/// ```
///   inventory ──▶ update ─▶ tracker ─▶ actions ─▶ detectors
///   frames    ──▶ deliver ─▶ ring ─▶ detector ─▶ verdict ring ─▶ collect ──▶ events
/// ```
public final class DetectorPool<Backend: DetectorBackend> {
  public typealias Rules = Backend.Rules

  public struct Configuration: Sendable {
    public var lifecycle: LifecycleTracker.Configuration
    public var channel: DetectorChannelConfiguration
    public var inspector: InspectorConfiguration
    /// What happens to a frame that finds its ring full: false, it is dropped and counted, as on a live host; true, its
    /// delivery waits, as in a replay.
    public var waitsWhenFull: Bool
    /// How long a detector may take over what is left in its ring before it is killed because its domain has ended: of the times that are handed in
    /// on a live host, where nothing waits for it, and of real time in a replay and at the shutdown.
    public var endingPatience: Duration
    /// How long a detector may leave packets without any verdict before it is killed; nil: for ever. For a live host, where the
    /// times that are handed in are real; not for detectors that are threads, which cannot be killed while they inspect.
    public var answerTimeout: Duration?
    /// How often the detector of a domain with traffic is told what time it is, to look at what has waited too long for a packet; nil: never.
    /// Without traffic the pauses double, up to an hour: what is over after some time is looked at before it is over for as long again. A detector that
    /// is suspended is told after it is resumed.
    public var lookInterval: Duration?
    /// How often a detector with traffic writes down what it remembers, for its successor should it die; nil: never, and a successor begins
    /// with nothing. It takes a detector milliseconds for each megabyte, between packets.
    public var snapshotInterval: Duration?
    /// Packets kept as evidence because they killed their detector, for all domains together.
    public var evidenceCapacity: Int
    /// Reports kept of incarnations that have ended.
    public var endedReportCapacity: Int
    /// Whether the packets that rules refuse can be had with `takeRefusedPackets()`, to cut their flows.
    public var keepsRefusedPackets: Bool
    /// What of packets without alerts can be had with `takeNotedPackets()`.
    public var packetNotes: PacketNoteConfiguration

    public init(
      lifecycle: LifecycleTracker.Configuration = .init(), channel: DetectorChannelConfiguration = .init(),
      inspector: InspectorConfiguration = .init(), waitsWhenFull: Bool = false,
      endingPatience: Duration = .seconds(1), answerTimeout: Duration? = nil, lookInterval: Duration? = nil,
      snapshotInterval: Duration? = nil, evidenceCapacity: Int = 16, endedReportCapacity: Int = 1024,
      keepsRefusedPackets: Bool = false,
      packetNotes: PacketNoteConfiguration = .init()
    ) {
      self.lifecycle = lifecycle
      self.channel = channel
      self.inspector = inspector
      self.waitsWhenFull = waitsWhenFull
      self.endingPatience = endingPatience
      self.answerTimeout = answerTimeout
      self.lookInterval = lookInterval
      self.snapshotInterval = snapshotInterval
      self.evidenceCapacity = evidenceCapacity
      self.endedReportCapacity = endedReportCapacity
      self.keepsRefusedPackets = keepsRefusedPackets
      self.packetNotes = packetNotes
    }
  }

  public let configuration: Configuration
  let backend: Backend
  /// The rules for a domain; nil: none are configured for it.
  let chooseRules: (DomainDescription) -> Rules?
  let savedState: (DomainDescription) -> [UInt8]?
  let keepState: ((DomainDescription, [UInt8]?) -> Void)?
  var tracker: LifecycleTracker
  var slots: [GuardedDomain<Rules>?] = []
  var slotOf: [Incarnation: Int] = [:]
  var events = EventSorter()
  var refusals = RefusedPackets()
  /// The slot whose verdicts are taken first.
  private var firstSlot = 0
  var noted = NotedPackets()
  var notePace: Pace
  var ended: [DomainReport] = []
  /// Rises when a domain gets or loses its slot, or its description changes: the dispatch table is to be built anew.
  public private(set) var membershipGeneration: UInt64 = 0
  /// Packets that killed their detector twice, oldest first.
  public internal(set) var evidence: [PoisonPacket] = []
  /// Frames delivered to slots that nobody has.
  public private(set) var undeliverable: UInt64 = 0

  /// The latest time that was handed in.
  private(set) var now: Timestamp
  /// Until when capture times are believed: a frame may carry any time.
  private var horizon: Timestamp

  /// - `savedState`: what `saveStates` or `keepState` gave for the domain, perhaps in an earlier process; asked when its first detector starts.
  /// - `keepState`: keeps what the detector of a domain remembers that is suspended to be saved or migrated, for `savedState` of its next
  ///   incarnation; nil: it goes on here, and what was kept is out of date. Where that incarnation is on this host already, its detector gets the state
  ///   instead. The detector is asked, and nobody waits for its answer, which `collect` and `tick` take when it comes, within 5 s; the detector of a domain
  ///   that is gone before is kept so long. Without this closure detectors of moved domains begin with nothing.
  /// - `rules`: chooses the rules for a domain; called often, so it should keep what it compiled.
  public init(
    backend: Backend, configuration: Configuration = .init(), at time: Timestamp,
    savedState: @escaping (DomainDescription) -> [UInt8]? = { _ in nil },
    keepState: ((DomainDescription, [UInt8]?) -> Void)? = nil, rules: @escaping (DomainDescription) -> Rules?
  ) {
    self.backend = backend
    self.configuration = configuration
    let (pace, whole) = configuration.packetNotes.perSecond.multipliedReportingOverflow(
      by: PacketNoteConfiguration.hostShare)
    notePace = Pace(perSecond: whole ? .max : pace)
    chooseRules = rules
    self.savedState = savedState
    self.keepState = keepState
    tracker = LifecycleTracker(configuration: configuration.lifecycle, at: time)
    now = time
    horizon = time + configuration.lifecycle.blockedAfter
  }

  // MARK: What the probe reports

  /// Takes a change of the inventory, and does what follows from it.
  public func update(_ change: InventoryChange, at time: Timestamp) {
    advance(to: time)
    noteTraffic()
    if case .gap(let count, let reason) = change {
      let lost = count.map { "\($0) changes were" } ?? "an unknown number of changes was"
      events.append(
        .platform(
          PlatformAlert(
            time: time, incarnation: nil, kind: .probeGap, message: "\(lost) lost: \(reason.escapedForDisplay)",
            severity: 3)))
    }
    // A frame that comes later belongs to whoever is there then: what was delivered is published first.
    publish()
    perform(tracker.apply(change, at: time) { chooseRules($0) != nil }, at: time)
    // A domain is seen before its name is: only with that it may turn out which rules it is to have.
    if refreshSlots(at: time) { rulesChanged(at: time) }
  }

  /// Lets time pass: states that depend on it change, detectors that have died are noticed and restarted.
  public func tick(at time: Timestamp) {
    advance(to: time)
    noteTraffic()
    checkDetectors(at: time)
    perform(tracker.tick(at: time), at: time)
    refreshSlots(at: time)
    for case let entry? in slots {
      tellTime(entry, at: time)
      refreshSnapshot(entry, at: time)
      reportDrops(entry, at: time)
    }
  }

  /// Looks again which rules each domain has: detectors that run swap to them between two packets, domains that got their first rules
  /// get a detector.
  public func rulesChanged(at time: Timestamp) {
    advance(to: time)
    publish()
    for case let entry? in slots {
      guard let handle = entry.handle, let rules = chooseRules(entry.description),
        rules.image !== entry.generations.last?.rules.image
      else { continue }
      do throws(DetectorError) {
        entry.remember(rules, generation: try handle.replaceRules(with: rules))
        perform(tracker.rulesReplaced(entry.incarnation, at: time), at: time)
      } catch {
        lose(entry, because: "taking new rules failed: \(error.message)", at: time)
      }
    }
    perform(tracker.reconfigure(at: time) { chooseRules($0) != nil }, at: time)
    refreshSlots(at: time)
  }

  // MARK: Frames

  /// The domains that have a slot, for the dispatch table. One that is gone, and whose detector finishes, is `dying`, whatever it was seen to be last: its interfaces'
  /// names and addresses may be another's already.
  public var members: [DispatchMember] {
    slots.enumerated().compactMap { slot, entry in
      guard let entry else { return nil }
      var domain = entry.description
      if tracker.state(of: entry.incarnation) == .orphaned, !domain.runState.isFinal { domain.runState = .dying }
      return DispatchMember(slot: slot, domain: domain)
    }
  }

  /// Hands a frame to the domain in `slot`. It is inspected after the next `publish`. Allocates nothing, but for the first frame of a port.
  public func deliver(to slot: Int, _ frame: FrameMetadata, _ bytes: RawSpan) {
    guard slot >= 0, slot < slots.count, let entry = slots[slot] else {
      undeliverable &+= 1
      return
    }
    entry.counters.packets &+= 1
    entry.counters.bytes &+= UInt64(bytes.byteCount)
    entry.traffic.add(frame.port, bytes: bytes.byteCount)
    entry.lastTraffic = max(entry.lastTraffic, min(frame.timestamp, horizon))
    if entry.wakesOnTraffic { wake(entry) }
    guard let channel = entry.channel else {
      entry.counters.droppedUnguarded &+= 1
      return
    }
    if case .queued = channel.enqueue(frame, bytes) { return }
    deliverToFull(entry, channel, frame, bytes)
  }

  /// How long a frame waits for room in a replay while no verdict comes, in real time.
  private static var fullPatience: Duration { .seconds(30) }

  private func deliverToFull(
    _ entry: GuardedDomain<Rules>, _ channel: DetectorChannel, _ frame: FrameMetadata, _ bytes: RawSpan
  ) {
    channel.publish()
    collect(entry, at: now)
    if case .queued = channel.enqueue(frame, bytes) { return }
    while configuration.waitsWhenFull, awaitAnswers(entry, at: now, patience: Self.fullPatience) {
      guard let channel = entry.channel else { break }
      if case .queued = channel.enqueue(frame, bytes) { return }
    }
    entry.counters.droppedFull &+= 1
  }

  /// Shows the detectors what was delivered. Call it after each batch of frames.
  public func publish() {
    for entry in slots { entry?.channel?.publish() }
  }

  /// Takes the verdicts that have come in.
  public func collect(at time: Timestamp) {
    advance(to: time)
    // Whose refused packets come first finds most room for them: that is another each time.
    if configuration.keepsRefusedPackets { firstSlot = firstSlot + 1 < slots.count ? firstSlot + 1 : 0 }
    for index in slots.indices {
      let slot = firstSlot + index
      guard let entry = slots[slot < slots.count ? slot : slot - slots.count] else { continue }
      collect(entry, at: time)
      goOnWithMove(entry, at: time)
      goOnWithEnd(entry, at: time)
    }
  }

  /// Publishes, and waits until every detector that is not suspended has answered everything: the barrier of a replay.
  ///
  /// - Returns: false when a detector did not answer for as long as `patience`; it is still there.
  @discardableResult
  public func drain(at time: Timestamp, patience: Duration = .seconds(30)) -> Bool {
    advance(to: time)
    publish()
    var isComplete = true
    for case let entry? in slots {
      if !drain(entry, at: time, patience: patience) { isComplete = false }
      goOnWithEnd(entry, at: time)
    }
    return isComplete
  }

  // MARK: Results

  /// What has happened since the last call, by time; at the same time first what VMFence noticed, in order, then the alerts by
  /// slot, packet and their order within it. After a `drain` this order is the same however fast the detectors were.
  public func takeEvents() -> [Event] { events.take() }

  /// The packets that rules refused since the last call, and the first behind each that was rejected, in the order of their verdicts, when
  /// `keepsRefusedPackets` is set.
  ///
  /// 8,192 of them wait at the most, and besides 16 of each domain: a domain may have as many as there is room left, and so half of it alone.
  public func takeRefusedPackets() -> [RefusedPacket] {
    guard !refusals.isEmpty else { return [] }
    for case let entry? in slots { entry.refusalsHeld = 0 }
    return refusals.take()
  }
  /// Those of them that found no room; `DomainCounters.refusalsLost` has them by domain.
  public var refusedPacketsLost: UInt64 { refusals.lost }

  /// The packets since the last call that detectors said more of than alerts, as `Configuration.packetNotes` has it, in the order of their verdicts.
  public func takeNotedPackets() -> [NotedPacket] { noted.take() }

  /// Sleeps until a detector has an alert or refused a packet, or has died, or one of `descriptors` is readable, at the most `patience` of real
  /// time. Verdicts that only let packets pass wait to be collected meanwhile. Publish first.
  public func wait(upTo patience: Duration, alsoFor descriptors: [Int32] = []) {
    var polled = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    var sleeping: [DetectorChannel] = []
    defer { for channel in sleeping { channel.endWait() } }
    for entry in slots {
      guard let entry, entry.isAnswering, let channel = entry.channel, let descriptor = channel.pollDescriptor else {
        continue
      }
      // Behind a packet that was rejected, those that pass are wanted, too.
      guard channel.beginWait(onlyForNews: entry.rejecting == nil) else { return }
      sleeping.append(channel)
      polled.append(pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0))
    }
    let milliseconds = Int32(clamping: max(0, patience.wholeNanoseconds) / 1_000_000)
    // SAFETY: the array has as many elements as are named.
    _ = unsafe poll(&polled, nfds_t(polled.count), milliseconds)
  }

  /// The state of a domain's automaton; nil when its history was forgotten.
  public func state(of incarnation: Incarnation) -> LifecycleState? { tracker.state(of: incarnation) }

  /// One report for each incarnation, those that have ended included (the last `endedReportCapacity` of them).
  public var reports: [DomainReport] {
    (ended + slots.compactMap { $0.map(report) }).sorted { $0.description.incarnation < $1.description.incarnation }
  }

  /// Ends all detectors: the platform shuts down. They are waited for all together, as long as `endingPatience` for one of them.
  public func close(at time: Timestamp) {
    advance(to: time)
    publish()
    settle(at: time, patience: configuration.endingPatience)
    perform(tracker.apply(.platformShutdown, at: time) { _ in false }, at: time)
    refreshSlots(at: time)
  }

  // MARK: Slots

  func perform(_ actions: [LifecycleTracker.Action], at time: Timestamp) {
    // An action may lead to more: the list is worked off in order. Each detector's death leads to one restart at the most, so it ends.
    var pending = actions[...]
    while let action = pending.popFirst() {
      switch action {
      case .startDetector(let incarnation): pending.append(contentsOf: start(incarnation, at: time))
      case .suspendDetector(let incarnation): suspend(incarnation, at: time)
      case .resumeDetector(let incarnation): resume(incarnation, at: time)
      case .killDetector(let incarnation): pending.append(contentsOf: end(incarnation, at: time))
      case .report(let report): events.append(.lifecycle(report))
      }
    }
  }

  /// Gives new domains a slot, takes those of ended ones away, and notes what depends on the state.
  ///
  /// - Returns: whether something by which rules are chosen is different now.
  @discardableResult
  func refreshSlots(at time: Timestamp) -> Bool {
    var isOtherwise = false
    for incarnation in tracker.incarnations {
      guard let description = tracker.description(of: incarnation), let state = tracker.state(of: incarnation) else {
        continue
      }
      if let slot = slotOf[incarnation], let entry = slots[slot] {
        let before = entry.description
        if before.ports != description.ports || before.dispatchRank != description.dispatchRank {
          membershipGeneration &+= 1
        }
        if before.name != description.name || before.serviceType != description.serviceType
          || before.tenant != description.tenant
        {
          isOtherwise = true
        }
        entry.description = description
        entry.wakesOnTraffic = tracker.wakesOnTraffic(incarnation)
        followMove(entry, at: time)
      } else if !state.isOver {
        makeSlot(for: description)
      }
    }
    // The tracker may have forgotten the oldest of the ended ones already.
    for case let entry? in slots where entry.handle == nil {
      if tracker.state(of: entry.incarnation)?.isOver ?? true { release(entry, at: time) }
    }
    return isOtherwise
  }

  @discardableResult
  private func makeSlot(for description: DomainDescription) -> GuardedDomain<Rules> {
    let slot = slots.firstIndex { $0 == nil } ?? slots.count
    let entry = GuardedDomain<Rules>(description, slot: slot)
    if slot == slots.count { slots.append(entry) } else { slots[slot] = entry }
    slotOf[description.incarnation] = slot
    membershipGeneration &+= 1
    // It had ended, and is present after all: the figures go on.
    if let index = ended.lastIndex(where: { $0.description.incarnation == description.incarnation }) {
      let report = ended.remove(at: index)
      entry.counters = report.counters
      entry.traffic = TrafficByPort(report.ports)
      entry.alerts = AlertsByClass(report.alertsByClass)
      entry.reportedDrops = report.counters.droppedFull &+ report.counters.droppedUnguarded
      entry.pastChannels = report.channel
    }
    return entry
  }

  private func release(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    abandonRing(entry, at: time)
    reportDrops(entry, at: time, isLast: true)
    ended.append(report(entry))
    if ended.count > max(0, configuration.endedReportCapacity) { ended.removeFirst() }
    slots[entry.slot] = nil
    slotOf[entry.incarnation] = nil
    membershipGeneration &+= 1
  }

  /// The entry of an incarnation, made if there is none yet.
  func entry(_ incarnation: Incarnation) -> GuardedDomain<Rules>? {
    if let slot = slotOf[incarnation] { return slots[slot] }
    return tracker.description(of: incarnation).map(makeSlot)
  }

  // MARK: Time

  func advance(to time: Timestamp) {
    guard time > now else { return }
    now = time
    horizon = time + configuration.lifecycle.blockedAfter
  }

  /// Tells the tracker of the packets since the last time.
  private func noteTraffic() {
    for case let entry? in slots where entry.lastTraffic > entry.notedTraffic {
      entry.notedTraffic = entry.lastTraffic
      let time = min(entry.lastTraffic, now)
      perform(tracker.noteTraffic(entry.incarnation, at: time), at: now)
    }
  }

  private func wake(_ entry: GuardedDomain<Rules>) {
    entry.notedTraffic = entry.lastTraffic
    perform(tracker.noteTraffic(entry.incarnation, at: entry.lastTraffic), at: max(now, entry.lastTraffic))
    entry.wakesOnTraffic = tracker.wakesOnTraffic(entry.incarnation)
  }

  private func report(_ entry: GuardedDomain<Rules>) -> DomainReport {
    var channel = entry.pastChannels
    if let counters = entry.channel?.counters { channel.add(counters) }
    return DomainReport(
      description: entry.description, automaton: tracker.automaton(of: entry.incarnation), counters: entry.counters,
      ports: entry.traffic.ports, alertsByClass: entry.alerts.counts, channel: channel,
      inspector: entry.inspectorCounters, waiting: entry.channel?.outstanding ?? 0)
  }
}

extension LifecycleState {
  /// Whether nothing more comes of the incarnation as it is.
  var isOver: Bool { self == .ended || self == .end }
}
