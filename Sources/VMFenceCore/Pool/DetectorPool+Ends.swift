// Ending the detectors of domains that are gone, and all of them.

extension DetectorPool {
  /// How long a detector is waited for at least, where others have used up the time for all.
  private static var grace: Duration { .milliseconds(50) }

  /// What each detector remembers of its domain's traffic, after it has answered everything that was delivered: for `savedState` of a
  /// later pool. Detectors that are suspended are woken for it. To be called before `close`, with no frame between the two.
  ///
  /// A state that was offered to a detector which has not said what became of it, or could not be started, is given back as it was.
  ///
  /// - `patience`: of real time, for all detectors together: once for what they were delivered, and once for their answer. What a detector does not say in time is
  ///   left out, and told as an event.
  public func saveStates(at time: Timestamp, patience: Duration) -> [(domain: DomainDescription, bytes: [UInt8])] {
    advance(to: time)
    settle(at: time, patience: patience)
    let asked = slots.compactMap(\.self).map { entry in
      (entry: entry, isAsked: entry.isAnswering && entry.channel?.askForState(at: time) == true)
    }
    let deadline = ContinuousClock.now + patience
    var states: [(domain: DomainDescription, bytes: [UInt8])] = []
    for (entry, isAsked) in asked {
      let left = max(Self.grace, ContinuousClock.now.duration(to: deadline))
      let answer = isAsked ? entry.channel?.awaitState(upTo: left) : nil
      if let bytes = answer ?? entry.untakenState {
        if !bytes.isEmpty { states.append((entry.description, bytes)) }
      } else if isAsked || entry.handle != nil && entry.isUnresponsive {
        tellLost(entry, at: time)
      }
    }
    return states
  }

  private func tellLost(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard configuration.channel.stateBytes > 0 else { return }
    tell(entry, .stateLost, severity: 3, at: time, "the detector did not save what it remembers in time")
  }

  /// Waits until the detectors have answered what they were delivered, for all of them together, and wakes those that are suspended for that. One that says nothing meanwhile is not
  /// waited for again until it does.
  func settle(at time: Timestamp, patience: Duration) {
    let entries = slots.compactMap(\.self)
    for entry in entries where entry.handle != nil {
      if entry.isSuspended { resume(entry.incarnation, at: time) }
      entry.channel?.publish()
    }
    let deadline = ContinuousClock.now + patience
    for entry in entries {
      drain(entry, at: time, patience: max(Self.grace, ContinuousClock.now.duration(to: deadline)))
    }
  }

  /// The domain is gone: what is left in the ring is inspected, within bounds, and the detector killed. On a live host nobody waits for that:
  /// `goOnWithEnd` looks again. A replay waits, and so does the shutdown.
  func end(_ incarnation: Incarnation, at time: Timestamp) -> [LifecycleTracker.Action] {
    guard let entry = entry(incarnation), let handle = entry.handle else {
      return tracker.detectorGone(incarnation, at: time)
    }
    let waits = configuration.waitsWhenFull || tracker.isShuttingDown
    // It is to say first what it remembers; its time for that is bounded.
    if entry.move != nil, !tracker.isShuttingDown {
      entry.move?.endsDetector = true
      return []
    }
    if entry.ending != nil, !waits { return [] }
    entry.move = nil
    // A stopped detector is woken to finish.
    if entry.isSuspended { resume(incarnation, at: time) }
    entry.channel?.publish()
    entry.endLooks = 0
    if waits {
      var isAnswered = drain(entry, at: time, patience: configuration.endingPatience)
      while isAnswered, entry.endLooks == 0 || entry.looksAgain, tellEnd(entry, at: time) {
        isAnswered = drain(entry, at: time, patience: configuration.endingPatience)
      }
    } else {
      tellEnd(entry, at: time)
      collect(entry, at: time)
      checkDetector(entry, at: time)
    }
    // It died over that, which the tracker has been told.
    guard entry.handle === handle else { return [] }
    if !waits, entry.isAnswering, entry.channel?.outstanding ?? 0 > 0 {
      entry.ending = GuardedDomain.Ending(handle: handle, deadline: time + configuration.endingPatience)
      return []
    }
    return finish(entry, handle, at: time)
  }

  /// Looks whether the detector of a domain that is gone has inspected what was left, or has had its time for that, and kills it then. Never waits.
  func goOnWithEnd(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let ending = entry.ending else { return }
    // It died by itself, which the tracker has been told; or the domain is here after all, and it goes on.
    guard entry.handle === ending.handle, tracker.state(of: entry.incarnation) == .orphaned else {
      entry.ending = nil
      return
    }
    guard entry.channel?.outstanding ?? 0 == 0 || !entry.isAnswering || time >= ending.deadline else { return }
    if entry.isAnswering, time < ending.deadline, entry.looksAgain, tellEnd(entry, at: time) { return }
    perform(finish(entry, ending.handle, at: time), at: time)
    refreshSlots(at: time)
  }

  /// How often a detector is told of the end at the most, each time for as much as fits one verdict.
  private static var endLooks: Int { 16 }

  /// Has a detector look at what waits for packets that will not come. Where what it remembers goes on elsewhere, they may.
  ///
  /// - Returns: whether it was told.
  @discardableResult
  private func tellEnd(_ entry: GuardedDomain<Rules>, at time: Timestamp) -> Bool {
    guard configuration.lookInterval != nil, !entry.isHandedOver, !tracker.isShuttingDown,
      entry.endLooks < Self.endLooks, let channel = entry.channel, channel.enqueueEnd(at: time)
    else { return false }
    entry.endLooks += 1
    entry.looksAgain = false
    channel.publish()
    return true
  }

  private func finish(
    _ entry: GuardedDomain<Rules>, _ handle: any DetectorHandle<Rules>, at time: Timestamp
  ) -> [LifecycleTracker.Action] {
    entry.ending = nil
    handle.kill()
    entry.handle = nil
    entry.isSuspended = false
    collect(entry, at: time)
    abandonRing(entry, at: time)
    return tracker.detectorGone(entry.incarnation, at: time)
  }

  /// Nobody will inspect what is left in the ring: counts it, and lets go of the memory.
  func abandonRing(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let channel = entry.channel else { return }
    let left = channel.outstanding
    if left > 0 {
      entry.counters.droppedAtEnd &+= UInt64(left)
      tell(
        entry, .packetsDropped, severity: 2, at: time, "\(left) packets were not inspected before the domain's end",
        count: UInt64(left))
    }
    entry.pastChannels.add(channel.counters)
    entry.pastInspectors = entry.inspectorCounters
    entry.channel = nil
  }
}
