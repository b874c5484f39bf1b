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
    /// How long a detector may take over what is left in its ring before it is killed because its domain has ended.
    public var endingPatience: Duration
    /// Packets kept as evidence because they killed their detector, for all domains together.
    public var evidenceCapacity: Int
    /// Reports kept of incarnations that have ended.
    public var endedReportCapacity: Int

    public init(
      lifecycle: LifecycleTracker.Configuration = .init(), channel: DetectorChannelConfiguration = .init(),
      inspector: InspectorConfiguration = .init(), waitsWhenFull: Bool = false,
      endingPatience: Duration = .seconds(1), evidenceCapacity: Int = 16, endedReportCapacity: Int = 1024
    ) {
      self.lifecycle = lifecycle
      self.channel = channel
      self.inspector = inspector
      self.waitsWhenFull = waitsWhenFull
      self.endingPatience = endingPatience
      self.evidenceCapacity = evidenceCapacity
      self.endedReportCapacity = endedReportCapacity
    }
  }

  public let configuration: Configuration
  let backend: Backend
  /// The rules for a domain; nil: none are configured for it.
  let chooseRules: (DomainDescription) -> Rules?
  var tracker: LifecycleTracker
  var slots: [GuardedDomain<Rules>?] = []
  var slotOf: [Incarnation: Int] = [:]
  var events: [Event] = []
  var ended: [DomainReport] = []
  /// Rises when a domain gets or loses its slot, or its description changes: the dispatch table is to be built anew.
  public private(set) var membershipGeneration: UInt64 = 0
  /// Packets that killed their detector twice, oldest first.
  public internal(set) var evidence: [PoisonPacket] = []
  /// Frames delivered to slots that nobody has.
  public private(set) var undeliverable: UInt64 = 0

  /// - Parameter rules: chooses the rules for a domain; called often, so it should keep what it compiled.
  public init(
    backend: Backend, configuration: Configuration = .init(), at time: Timestamp,
    rules: @escaping (DomainDescription) -> Rules?
  ) {
    self.backend = backend
    self.configuration = configuration
    chooseRules = rules
    tracker = LifecycleTracker(configuration: configuration.lifecycle, at: time)
  }

  // MARK: What the probe reports

  /// Takes a change of the inventory, and does what follows from it.
  public func update(_ change: InventoryChange, at time: Timestamp) {
    noteTraffic(at: time)
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
    refreshSlots(at: time)
  }

  /// Lets time pass: states that depend on it change, detectors that have died are noticed and restarted.
  public func tick(at time: Timestamp) {
    noteTraffic(at: time)
    checkDetectors(at: time)
    perform(tracker.tick(at: time), at: time)
    refreshSlots(at: time)
  }

  /// Looks again which rules each domain has: detectors that run swap to them between two packets, domains that got their first rules
  /// get a detector.
  public func rulesChanged(at time: Timestamp) {
    publish()
    for entry in slots.compactMap(\.self) {
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

  /// The domains that have a slot, for the dispatch table.
  public var members: [DispatchMember] {
    slots.enumerated().compactMap { slot, entry in
      entry.map { DispatchMember(slot: slot, domain: $0.description) }
    }
  }

  /// Hands a frame to the domain in `slot`. It is inspected after the next `publish`. Allocates nothing.
  public func deliver(to slot: Int, _ frame: FrameMetadata, _ bytes: RawSpan) {
    guard slot >= 0, slot < slots.count, let entry = slots[slot] else {
      undeliverable &+= 1
      return
    }
    entry.counters.packets &+= 1
    entry.counters.bytes &+= UInt64(bytes.byteCount)
    entry.lastTraffic = max(entry.lastTraffic, frame.timestamp)
    if entry.wakesOnTraffic { wake(entry, at: frame.timestamp) }
    guard let channel = entry.channel else {
      entry.counters.droppedUnguarded &+= 1
      return
    }
    if case .queued = channel.enqueue(frame, bytes) { return }
    deliverToFull(entry, channel, frame, bytes)
  }

  private func deliverToFull(
    _ entry: GuardedDomain<Rules>, _ channel: DetectorChannel, _ frame: FrameMetadata, _ bytes: RawSpan
  ) {
    channel.publish()
    collect(entry, at: frame.timestamp)
    if case .queued = channel.enqueue(frame, bytes) { return }
    while configuration.waitsWhenFull, entry.isAnswering {
      if channel.waitForVerdicts(upTo: .seconds(1)) == .gone { checkDetector(entry, at: frame.timestamp) }
      collect(entry, at: frame.timestamp)
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
    for entry in slots.compactMap(\.self) { collect(entry, at: time) }
  }

  /// Publishes, and waits until every detector that is not suspended has answered everything: the barrier of a replay.
  ///
  /// - Returns: false when a detector did not answer for as long as `patience`; it is still there.
  @discardableResult
  public func drain(at time: Timestamp, patience: Duration = .seconds(30)) -> Bool {
    publish()
    var isComplete = true
    for entry in slots.compactMap(\.self) where !drain(entry, at: time, patience: patience) { isComplete = false }
    return isComplete
  }

  // MARK: Results

  /// What has happened since the last call: by domain, and for each in order.
  public func takeEvents() -> [Event] {
    defer { events.removeAll(keepingCapacity: true) }
    return events
  }

  /// Waits on all detectors at once until one of them has something to say, or has died.
  public var pollDescriptors: [Int32] { slots.compactMap { $0?.channel?.pollDescriptor } }

  /// One report for each incarnation, those that have ended included (the last `endedReportCapacity` of them).
  public var reports: [DomainReport] {
    (ended + slots.compactMap { $0.map(report) }).sorted { $0.description.incarnation < $1.description.incarnation }
  }

  /// Ends all detectors: the platform shuts down.
  public func close(at time: Timestamp) {
    publish()
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
  func refreshSlots(at time: Timestamp) {
    for incarnation in tracker.incarnations {
      guard let description = tracker.description(of: incarnation), let state = tracker.state(of: incarnation) else {
        continue
      }
      let isOver = state == .ended || state == .end
      if let slot = slotOf[incarnation], let entry = slots[slot] {
        if entry.description != description {
          if entry.description.ports != description.ports { membershipGeneration &+= 1 }
          entry.description = description
        }
        entry.wakesOnTraffic = tracker.wakesOnTraffic(incarnation)
        if isOver, entry.handle == nil { release(slot, entry) }
      } else if !isOver {
        makeSlot(for: description)
      }
    }
  }

  @discardableResult
  private func makeSlot(for description: DomainDescription) -> GuardedDomain<Rules> {
    let entry = GuardedDomain<Rules>(description)
    let slot = slots.firstIndex { $0 == nil } ?? slots.count
    if slot == slots.count { slots.append(entry) } else { slots[slot] = entry }
    slotOf[description.incarnation] = slot
    membershipGeneration &+= 1
    ended.removeAll { $0.description.incarnation == description.incarnation }
    return entry
  }

  private func release(_ slot: Int, _ entry: GuardedDomain<Rules>) {
    entry.counters.droppedAtEnd &+= UInt64(entry.channel?.outstanding ?? 0)
    ended.append(report(entry))
    if ended.count > configuration.endedReportCapacity { ended.removeFirst() }
    slots[slot] = nil
    slotOf[entry.incarnation] = nil
    membershipGeneration &+= 1
  }

  /// The entry of an incarnation, made if there is none yet.
  func entry(_ incarnation: Incarnation) -> GuardedDomain<Rules>? {
    if let slot = slotOf[incarnation] { return slots[slot] }
    return tracker.description(of: incarnation).map(makeSlot)
  }

  /// Tells the tracker of the packets since the last time.
  private func noteTraffic(at time: Timestamp) {
    for entry in slots.compactMap(\.self) where entry.lastTraffic > entry.notedTraffic {
      entry.notedTraffic = entry.lastTraffic
      perform(tracker.noteTraffic(entry.incarnation, at: entry.lastTraffic), at: entry.lastTraffic)
    }
  }

  private func wake(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    entry.notedTraffic = entry.lastTraffic
    perform(tracker.noteTraffic(entry.incarnation, at: time), at: time)
    entry.wakesOnTraffic = tracker.wakesOnTraffic(entry.incarnation)
  }

  private func report(_ entry: GuardedDomain<Rules>) -> DomainReport {
    DomainReport(
      description: entry.description, automaton: tracker.automaton(of: entry.incarnation), counters: entry.counters,
      channel: entry.channel?.counters ?? entry.finalChannelCounters, waiting: entry.channel?.outstanding ?? 0)
  }
}
