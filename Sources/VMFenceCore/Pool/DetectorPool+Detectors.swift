internal import Glibc

// Starting, watching and ending the detectors of a pool.

extension DetectorPool {
  /// Deaths without a packet to blame, after which restarts are spaced out: first by `backOffFirst`, then twice as much each time.
  private static var immediateRestarts: Int { 5 }
  private static var backOffFirst: Duration { .milliseconds(100) }
  private static var backOffMaximum: Duration { .seconds(10) }
  /// A detector that gives verdicts so long after the last death has recovered: deaths are counted anew.
  static var recoveryTime: Duration { .seconds(10) }
  /// Deaths by packets with no recovery between them, after which restarts are `backOffFirst` apart, and no more: whoever sends
  /// poison must not be able to buy time with it, nor every start of a process of the host.
  private static var immediateRestartsByPacket: Int { 32 }
  /// How long the detector of a domain that is being moved may take to say what it remembers. It takes milliseconds, but on a host whose processors
  /// are all taken.
  private static var movePatience: Duration { .seconds(5) }
  /// From when a detector hung up until it is killed.
  private static var hangUpPatience: Duration { .milliseconds(100) }
  /// Drops are reported this far apart, for each domain.
  private static var dropReportInterval: Duration { .seconds(10) }
  private static var lookPauseMaximum: Duration { .seconds(3600) }

  // MARK: Actions

  func start(_ incarnation: Incarnation, at time: Timestamp) -> [LifecycleTracker.Action] {
    guard let entry = entry(incarnation), let rules = chooseRules(entry.description) else {
      return tracker.detectorGone(incarnation, at: time, retry: time + Self.backOffMaximum)
    }
    do throws(DetectorError) {
      let channel: DetectorChannel
      if let known = entry.channel { channel = known } else { channel = try makeChannel(entry, at: time) }
      if configuration.keepsRefusedPackets { channel.keepRefused() }
      channel.keepNotes(configuration.packetNotes)
      entry.channel = channel
      offerSnapshot(to: entry, at: time)
      entry.handle = try backend.launch(rules: rules, channel: channel, configuration: configuration.inspector)
      entry.generations = [(channel.generation, rules)]
      entry.isSuspended = false
      entry.isUnresponsive = false
      entry.hungUpAt = nil
      entry.toldViolation = false
      entry.lastProgress = time
      if entry.deaths > 0 {
        entry.counters.restarts &+= 1
        tell(
          entry, .detectorRestarted, severity: 3, at: time,
          "the detector was restarted; \(channel.outstanding) packets waited for it")
      }
      return []
    } catch {
      if entry.isTakingOver { entry.channel?.offerStateAgain() }
      entry.deaths += 1
      entry.deathsInVain += 1
      tell(entry, .detectorDied, severity: 1, at: time, "the detector could not be started: \(error.message)")
      return tracker.detectorGone(incarnation, at: time, retry: time + backOff(entry))
    }
  }

  private func makeChannel(
    _ entry: GuardedDomain<Rules>, at time: Timestamp
  ) throws(DetectorError) -> DetectorChannel {
    let channel = try backend.makeChannel(configuration.channel)
    if entry.pastChannels.enqueued == 0, let bytes = savedState(entry.description) {
      offer(bytes, to: entry, over: channel, at: time)
    }
    return channel
  }

  /// Tells once that a saved state was refused.
  private func noteTakeover(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard entry.isTakingOver, let isTaken = entry.channel?.tookOverState else { return }
    entry.isTakingOver = false
    if !isTaken {
      tell(entry, .stateLost, severity: 3, at: time, "the detector refused the saved state, and began without one")
    }
  }

  /// Has the detector of a domain that is suspended to be saved or migrated say what it remembers, to be handed on when it has, and takes that back when
  /// the domain goes on here.
  func followMove(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let keepState else { return }
    switch entry.description.runState {
    case .suspendedForMigration where !entry.isHandedOver:
      entry.isHandedOver = true
      beginMove(entry, at: time)
    case .running, .blocked, .paused:
      guard entry.isHandedOver else { return }
      entry.isHandedOver = false
      entry.move = nil
      keepState(entry.description, nil)
    default: break
    }
  }

  /// Asks a detector for what it remembers, behind all packets that it was given; one that is stopped is woken for that. `goOnWithMove` takes the answer.
  private func beginMove(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard configuration.channel.stateBytes > 0 else { return }
    guard let handle = entry.handle else {
      if let bytes = entry.untakenState { handOn(bytes, of: entry, at: time) }
      return
    }
    if entry.isSuspended { resume(entry.incarnation, at: time) }
    guard entry.handle === handle, let channel = entry.channel else { return }
    channel.publish()
    entry.move = GuardedDomain.Move(
      packets: channel.counters.enqueued, handle: handle, deadline: time + Self.movePatience)
  }

  /// Looks whether a detector that was asked for what it remembers has said it, and hands it on. Never waits.
  func goOnWithMove(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let move = entry.move else { return }
    guard entry.handle === move.handle, let channel = entry.channel else { return endMove(entry, nil, at: time) }
    if !move.isAsked, channel.settled >= move.packets {
      channel.askForState(at: time)
      entry.move?.isAsked = true
    }
    if entry.move?.isAsked == true, let bytes = channel.takeState() { return endMove(entry, bytes, at: time) }
    if time >= move.deadline { endMove(entry, nil, at: time) }
  }

  private func endMove(_ entry: GuardedDomain<Rules>, _ bytes: [UInt8]?, at time: Timestamp) {
    guard let move = entry.move else { return }
    entry.move = nil
    // What it was to take over, and has not, it would have said.
    if let bytes = bytes ?? entry.untakenState {
      if !bytes.isEmpty { handOn(bytes, of: entry, at: time) }
    } else {
      tell(
        entry, .stateLost, severity: 3, at: time,
        "the domain is moved, and its detector did not say in time what it remembers")
    }
    guard entry.handle === move.handle else { return }
    if move.endsDetector {
      perform(end(entry.incarnation, at: time), at: time)
    } else if tracker.state(of: entry.incarnation) == .suspended {
      suspend(entry.incarnation, at: time)
    }
  }

  /// To the domain's next incarnation, when that is here with a detector that has seen nothing yet; otherwise for the one that comes.
  private func handOn(_ bytes: [UInt8], of entry: GuardedDomain<Rules>, at time: Timestamp) {
    let next = slots.first { other in
      guard let other else { return false }
      return other !== entry && other.incarnation.uuid == entry.incarnation.uuid && other.handle != nil
        && other.counters.packets == 0
    }
    if let next = next ?? nil { hand(bytes, to: next, at: time) } else { keepState?(entry.description, bytes) }
  }

  /// Has a detector that has not seen a packet yet begin anew with what another one remembers.
  private func hand(_ bytes: [UInt8], to entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let handle = entry.handle, let channel = entry.channel else { return }
    handle.kill()
    entry.handle = nil
    entry.isSuspended = false
    offer(bytes, to: entry, over: channel, at: time)
    perform(tracker.detectorGone(entry.incarnation, at: time), at: time)
  }

  func offer(
    _ bytes: [UInt8], to entry: GuardedDomain<Rules>, over channel: DetectorChannel, at time: Timestamp
  ) {
    entry.isTakingOver = channel.offerState(bytes, at: time)
    if !entry.isTakingOver {
      tell(
        entry, .stateLost, severity: 3, at: time,
        "the saved state has \(bytes.count) bytes, more than the \(configuration.channel.stateBytes) there is room for")
    }
  }

  func suspend(_ incarnation: Incarnation, at time: Timestamp) {
    guard let entry = entry(incarnation), let handle = entry.handle else { return }
    // What arrived before it stops is for it to see, as far as it gets.
    entry.channel?.publish()
    if configuration.waitsWhenFull { drain(entry, at: time, patience: configuration.endingPatience) }
    guard entry.handle === handle else { return }
    do throws(DetectorError) {
      try handle.suspend()
      entry.isSuspended = true
    } catch { lose(entry, because: "suspending it failed: \(error.message)", at: time) }
  }

  func resume(_ incarnation: Incarnation, at time: Timestamp) {
    guard let entry = entry(incarnation), let handle = entry.handle else { return }
    do throws(DetectorError) {
      try handle.resume()
      entry.isSuspended = false
      entry.lastProgress = time
    } catch { lose(entry, because: "resuming it failed: \(error.message)", at: time) }
  }

  // MARK: Watching

  func checkDetectors(at time: Timestamp) {
    for case let entry? in slots {
      noteHangUp(entry, at: time)
      checkDetector(entry, at: time)
      checkProgress(entry, at: time)
      noteTakeover(entry, at: time)
      goOnWithMove(entry, at: time)
      goOnWithEnd(entry, at: time)
    }
  }

  /// A detector that hung up ends at once, unless it is up to something. Nobody waits for that, and nobody sleeps on its answers meanwhile: its
  /// descriptor would end every sleep of the driver at once.
  private func noteHangUp(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    if let since = entry.hungUpAt, entry.handle != nil {
      checkDetector(entry, at: time)
      if time - since >= Self.hangUpPatience { loseHungUp(entry, at: time) }
    } else if entry.isAnswering, entry.channel?.endWait() == false {
      entry.hungUpAt = time
    }
  }

  private func loseHungUp(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    lose(entry, because: "it hung up without ending, and was killed", isSuspicious: true, at: time)
  }

  /// Notices a detector that has died.
  func checkDetector(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let handle = entry.handle else { return }
    switch handle.status {
    case .running, .suspended: return
    case .exited(let code): lose(entry, because: "it ended by itself with code \(code)", at: time)
    case .crashed(let signal): lose(entry, because: "it was ended by signal \(signal)", at: time)
    case .killed: lose(entry, because: "it was killed", at: time)
    }
  }

  /// Ends a detector that has packets and says nothing of them. One that is stopped is not expected to.
  private func checkProgress(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let timeout = configuration.answerTimeout, entry.handle != nil else { return }
    collect(entry, at: time)
    let hasNothingToDo = entry.isSuspended || entry.channel?.outstanding ?? 0 == 0
    if hasNothingToDo || entry.counters.inspected != entry.inspectedAtProgress {
      entry.inspectedAtProgress = entry.counters.inspected
      entry.lastProgress = time
    } else if time - entry.lastProgress >= timeout {
      lose(entry, because: "it did not answer for \(timeout) and was killed", isSuspicious: true, at: time)
    }
  }

  /// Tells a detector what time it is, when that is due.
  func tellTime(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let interval = configuration.lookInterval, entry.isAnswering, let channel = entry.channel else { return }
    let hasTraffic = entry.counters.packets != entry.packetsAtLook
    if !entry.looksAgain {
      guard entry.lookPause > .zero || hasTraffic else { return }
      guard time >= entry.lastLook + (hasTraffic ? interval : entry.lookPause) else { return }
    }
    guard channel.enqueueTime(time) else { return }
    channel.publish()
    entry.lookPause = hasTraffic || entry.looksAgain ? interval : min(entry.lookPause * 2, Self.lookPauseMaximum)
    entry.packetsAtLook = entry.counters.packets
    entry.looksAgain = false
    entry.lastLook = time
  }

  /// Waits for the end of a detector that hung up: a replay's, whose times stand still.
  func expectEnd(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let handle = entry.handle else { return }
    for _ in 0..<100 {
      checkDetector(entry, at: time)
      guard entry.handle === handle else { return }
      // No descriptors are named: this waits a millisecond.
      _ = poll(nil, 0, 1)
    }
    loseHungUp(entry, at: time)
  }

  /// The detector is dead, or must die because it cannot be trusted any more. Alerts, passes over a packet that killed it twice, and lets
  /// the tracker start another.
  ///
  /// `isSuspicious`: the packet that it was at may be the reason, although it did not crash.
  func lose(
    _ entry: GuardedDomain<Rules>, because reason: String, isSuspicious: Bool = false, at time: Timestamp
  ) {
    guard let handle = entry.handle else { return }
    entry.hungUpAt = nil
    let hasCrashed = if case .crashed = handle.status { true } else { false }
    handle.kill()
    entry.handle = nil
    entry.isSuspended = false
    collect(entry, at: time)
    entry.deaths += 1
    entry.lastDeath = time
    tell(entry, .detectorDied, severity: 1, at: time, "the detector died: \(reason)")
    let retry: Timestamp?
    if hasCrashed || isSuspicious, passPoison(entry, at: time) {
      entry.deathsByPacket += 1
      retry = entry.deathsByPacket <= Self.immediateRestartsByPacket ? nil : time + Self.backOffFirst
    } else {
      entry.deathsInVain += 1
      retry = entry.deathsInVain <= Self.immediateRestarts ? nil : time + backOff(entry)
    }
    judgeSnapshot(entry, diedAgainAndAgain: retry != nil, at: time)
    perform(tracker.detectorGone(entry.incarnation, at: time, retry: retry), at: time)
  }

  private func backOff(_ entry: GuardedDomain<Rules>) -> Duration {
    let doublings = min(max(0, entry.deathsInVain - Self.immediateRestarts - 1), 10)
    return min(Self.backOffFirst * (1 << doublings), Self.backOffMaximum)
  }

  /// Whether the death can be laid on a packet: the first without a verdict. The second death at the same one passes over it.
  private func passPoison(_ entry: GuardedDomain<Rules>, at time: Timestamp) -> Bool {
    guard let channel = entry.channel else { return false }
    do throws(DetectorError) {
      guard let head = try channel.headPacket() else {
        entry.suspectedPacket = nil
        return false
      }
      guard entry.suspectedPacket == head.id else {
        entry.suspectedPacket = head.id
        return true
      }
      entry.suspectedPacket = nil
      guard let poison = try channel.skipHeadPacket() else { return false }
      entry.counters.droppedPoison &+= 1
      keep(PoisonPacket(incarnation: entry.incarnation, packetID: poison.id, frame: poison.frame, bytes: poison.bytes))
      tell(
        entry, .poisonPacket, severity: 1, at: time,
        "packet \(poison.id) (\(poison.bytes.count) bytes) killed the detector twice; it was passed over and kept as evidence"
      )
      return true
    } catch {
      // The ring itself is damaged: what was in it is lost, and counted.
      tell(entry, .detectorViolation, severity: 1, at: time, "the packet ring is damaged: \(error.message)")
      abandonRing(entry, at: time)
      return false
    }
  }

  private func keep(_ packet: PoisonPacket) {
    guard configuration.evidenceCapacity > 0 else { return }
    if evidence.count >= configuration.evidenceCapacity { evidence.removeFirst() }
    evidence.append(packet)
  }

  /// Tells of packets that were dropped since the last time, not too often.
  func reportDrops(_ entry: GuardedDomain<Rules>, at time: Timestamp, isLast: Bool = false) {
    let drops = entry.counters.droppedFull &+ entry.counters.droppedUnguarded
    guard drops != entry.reportedDrops else { return }
    if !isLast, let last = entry.lastDropReport, time - last < Self.dropReportInterval { return }
    let count = drops &- entry.reportedDrops
    entry.reportedDrops = drops
    entry.lastDropReport = time
    tell(
      entry, .packetsDropped, severity: 2, at: time,
      "\(count) packets were not inspected; in all \(entry.counters.droppedFull) found the ring full and "
        + "\(entry.counters.droppedUnguarded) no detector", count: count)
  }

  func tell(
    _ entry: GuardedDomain<Rules>, _ kind: PlatformAlert.Kind, severity: Int, at time: Timestamp, _ message: String,
    count: UInt64 = 1
  ) {
    events.append(
      .platform(
        PlatformAlert(
          time: time, incarnation: entry.incarnation, kind: kind, message: message, severity: severity, count: count)))
  }
}
