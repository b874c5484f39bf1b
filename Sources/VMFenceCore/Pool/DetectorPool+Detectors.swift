// Starting, watching and ending the detectors of a pool.

extension DetectorPool {
  /// Deaths without a packet to blame, after which restarts are spaced out: first by `backOffFirst`, then twice as much each time.
  private static var immediateRestarts: Int { 5 }
  private static var backOffFirst: Duration { .milliseconds(100) }
  private static var backOffMaximum: Duration { .seconds(10) }

  // MARK: Actions

  func start(_ incarnation: Incarnation, at time: Timestamp) -> [LifecycleTracker.Action] {
    guard let entry = entry(incarnation), let rules = chooseRules(entry.description) else {
      return tracker.detectorGone(incarnation, at: time, retry: time + Self.backOffMaximum)
    }
    do throws(DetectorError) {
      let channel: DetectorChannel
      if let known = entry.channel { channel = known } else { channel = try backend.makeChannel(configuration.channel) }
      entry.channel = channel
      entry.handle = try backend.launch(rules: rules, channel: channel, configuration: configuration.inspector)
      entry.generations = [(channel.generation, rules)]
      if entry.deaths > 0 {
        entry.counters.restarts &+= 1
        tell(
          entry, .detectorRestarted, severity: 3, at: time,
          "the detector was restarted; \(channel.outstanding) packets were waiting, none was lost")
      }
      return []
    } catch {
      entry.deaths += 1
      tell(entry, .detectorDied, severity: 1, at: time, "the detector could not be started: \(error.message)")
      return tracker.detectorGone(incarnation, at: time, retry: time + backOff(entry))
    }
  }

  func suspend(_ incarnation: Incarnation, at time: Timestamp) {
    guard let entry = entry(incarnation), let handle = entry.handle else { return }
    // What arrived before it stops is for it to see, as far as it gets.
    entry.channel?.publish()
    if configuration.waitsWhenFull { drain(entry, at: time, patience: configuration.endingPatience) }
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
    } catch { lose(entry, because: "resuming it failed: \(error.message)", at: time) }
  }

  /// The domain is gone: what is left in the ring is inspected, within bounds, and the detector killed.
  func end(_ incarnation: Incarnation, at time: Timestamp) -> [LifecycleTracker.Action] {
    guard let entry = entry(incarnation), let handle = entry.handle else {
      return tracker.detectorGone(incarnation, at: time)
    }
    entry.isEnding = true
    // A stopped detector is woken to finish.
    if entry.isSuspended { resume(incarnation, at: time) }
    entry.channel?.publish()
    drain(entry, at: time, patience: configuration.endingPatience)
    handle.kill()
    collect(entry, at: time)
    entry.handle = nil
    entry.isSuspended = false
    let left = entry.channel?.outstanding ?? 0
    if left > 0 {
      entry.counters.droppedAtEnd &+= UInt64(left)
      tell(
        entry, .packetsDropped, severity: 2, at: time, "\(left) packets were not inspected before the domain's end",
        count: UInt64(left))
    }
    entry.finalChannelCounters = entry.channel?.counters ?? entry.finalChannelCounters
    entry.channel = nil
    return tracker.detectorGone(incarnation, at: time)
  }

  // MARK: Watching

  func checkDetectors(at time: Timestamp) {
    for entry in slots.compactMap(\.self) { checkDetector(entry, at: time) }
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

  /// The detector is dead, or must die because it cannot be trusted any more. Alerts, passes over a packet that killed it twice, and lets
  /// the tracker start another.
  func lose(_ entry: GuardedDomain<Rules>, because reason: String, at time: Timestamp) {
    guard let handle = entry.handle else { return }
    handle.kill()
    entry.handle = nil
    entry.isSuspended = false
    collect(entry, at: time)
    entry.deaths += 1
    tell(entry, .detectorDied, severity: 1, at: time, "the detector died: \(reason)")
    let isPacketToBlame = passPoison(entry, at: time)
    entry.deathsInVain = isPacketToBlame ? 0 : entry.deathsInVain + 1
    let retry = entry.deathsInVain <= Self.immediateRestarts ? nil : time + backOff(entry)
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
      if evidence.count >= configuration.evidenceCapacity { evidence.removeFirst() }
      evidence.append(
        PoisonPacket(incarnation: entry.incarnation, packetID: poison.id, frame: poison.frame, bytes: poison.bytes))
      tell(
        entry, .poisonPacket, severity: 1, at: time,
        "packet \(poison.id) (\(poison.bytes.count) bytes) killed the detector twice; it was passed over and kept as evidence"
      )
      return true
    } catch {
      // The ring itself is damaged: what was in it is lost, and counted.
      let left = channel.outstanding
      entry.counters.droppedAtEnd &+= UInt64(left)
      tell(
        entry, .detectorViolation, severity: 1, at: time,
        "the packet ring is damaged; \(left) packets are lost: \(error.message)")
      entry.channel = nil
      return false
    }
  }

  // MARK: Collecting

  func collect(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let channel = entry.channel else { return }
    do throws(DetectorError) {
      try channel.collect { verdict, alerts in take(entry, verdict, alerts) }
    } catch {
      guard entry.handle != nil else { return }
      tell(entry, .detectorViolation, severity: 1, at: time, "the detector broke the protocol: \(error.message)")
      lose(entry, because: "it broke the protocol and was killed", at: time)
    }
  }

  private func take(_ entry: GuardedDomain<Rules>, _ verdict: borrowing PacketVerdict, _ alerts: Span<AlertRecord>) {
    entry.counters.inspected &+= 1
    entry.deathsInVain = 0
    if verdict.verdict != .pass { entry.counters.droppedByRule &+= 1 }
    entry.counters.alertsLost &+= UInt64(verdict.overflow)
    guard !alerts.isEmpty, let rules = entry.rules(of: verdict.generation) else { return }
    entry.counters.alerts &+= UInt64(alerts.count)
    for index in alerts.indices {
      let record = alerts[index]
      events.append(
        .alert(
          Alert(
            record, rule: rules.metadata(at: Int(record.ruleIndex)), incarnation: entry.incarnation,
            packetID: verdict.id, verdict: verdict.rule == record.ruleIndex ? verdict.verdict : .pass)))
    }
  }

  /// Waits until the detector has answered everything that was published.
  @discardableResult
  func drain(_ entry: GuardedDomain<Rules>, at time: Timestamp, patience: Duration) -> Bool {
    collect(entry, at: time)
    var waited = Duration.zero
    let step = min(patience, .milliseconds(500))
    while let channel = entry.channel, channel.outstanding > 0, entry.isAnswering {
      switch channel.waitForVerdicts(upTo: step) {
      case .verdicts: waited = .zero
      case .timedOut:
        waited += step
        checkDetector(entry, at: time)
      case .gone: checkDetector(entry, at: time)
      }
      collect(entry, at: time)
      if waited >= patience { return false }
    }
    return true
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
