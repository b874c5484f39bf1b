// What the detectors of a pool say.

extension DetectorPool {
  func collect(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let channel = entry.channel else { return }
    do throws(DetectorError) {
      // Whoever can send what kills a detector can send harmless packets in between: a verdict alone is no recovery.
      let hasRecovered = time - entry.lastDeath >= Self.recoveryTime
      try channel.collect { verdict, alerts in take(entry, verdict, alerts, hasRecovered: hasRecovered) }
    } catch {
      if !entry.toldViolation {
        entry.toldViolation = true
        tell(entry, .detectorViolation, severity: 1, at: time, "the detector broke the protocol: \(error.message)")
      }
      lose(entry, because: "it broke the protocol and was killed", isSuspicious: true, at: time)
    }
  }

  private func take(
    _ entry: GuardedDomain<Rules>, _ verdict: borrowing PacketVerdict, _ alerts: Span<AlertRecord>, hasRecovered: Bool
  ) {
    if verdict.isOfTime {
      entry.looksAgain = alerts.count > InspectionOutput.capacity / 2
    } else {
      entry.counters.inspected &+= 1
    }
    if hasRecovered { (entry.deathsInVain, entry.deathsByPacket) = (0, 0) }
    entry.isUnresponsive = false
    if verdict.verdict != .pass {
      entry.counters.droppedByRule &+= 1
      keepRefused(entry, verdict)
    } else if entry.rejecting != nil, !verdict.isOfTime {
      keepFollowing(entry, verdict)
    }
    if let note = entry.channel?.noted { keep(note, entry, verdict) }
    entry.counters.alertsLost &+= UInt64(verdict.overflow)
    for index in alerts.indices {
      let record = alerts[index]
      guard let rule = entry.metadata(of: record.ruleIndex, generation: verdict.generation) else {
        entry.counters.alertsLost &+= 1
        continue
      }
      entry.counters.alerts &+= 1
      entry.alerts.add(rule.classification)
      let alert = Alert(
        record, rule: rule, incarnation: entry.incarnation, packetID: verdict.id,
        verdict: verdict.rule == record.ruleIndex ? verdict.verdict : .pass)
      events.append(alert, slot: entry.slot)
    }
  }

  private func keep(_ note: PacketNote, _ entry: GuardedDomain<Rules>, _ verdict: borrowing PacketVerdict) {
    guard let frame = note.frame, noted.hasRoom, notePace.admits(at: frame.timestamp) else {
      entry.counters.notesLost &+= 1
      return
    }
    noted.append(
      NotedPacket(
        incarnation: entry.incarnation, packetID: verdict.id, frame: frame, head: note.head,
        capturedLength: note.capturedLength, anomalies: note.anomalies, isTagged: note.isTagged))
  }

  private func keepRefused(_ entry: GuardedDomain<Rules>, _ verdict: borrowing PacketVerdict) {
    guard configuration.keepsRefusedPackets, verdict.rule != .max,
      let rule = entry.metadata(of: verdict.rule, generation: verdict.generation)
    else { return }
    if keepHead(entry, verdict, rule), verdict.verdict == .reject {
      entry.rejecting = (rule, RefusedPacket.following)
    }
  }

  private func keepFollowing(_ entry: GuardedDomain<Rules>, _ verdict: borrowing PacketVerdict) {
    guard let rejecting = entry.rejecting else { return }
    entry.rejecting = rejecting.left > 1 ? (rejecting.rule, rejecting.left - 1) : nil
    _ = keepHead(entry, verdict, rejecting.rule)
  }

  /// - Returns: false when the packet is not there any more, or found no room.
  private func keepHead(
    _ entry: GuardedDomain<Rules>, _ verdict: borrowing PacketVerdict, _ rule: RuleMetadata
  ) -> Bool {
    guard let kept = entry.channel?.refused,
      refusals.hasRoom(&entry.refusalsHeld, lost: &entry.counters.refusalsLost)
    else { return false }
    refusals.append(
      RefusedPacket(
        incarnation: entry.incarnation, packetID: verdict.id, verdict: verdict.verdict, rule: rule, frame: kept.frame,
        head: kept.head))
    return true
  }

  /// Waits until the detector has answered everything that was published.
  ///
  /// - Returns: false when it did not answer for `patience`.
  @discardableResult
  func drain(_ entry: GuardedDomain<Rules>, at time: Timestamp, patience: Duration) -> Bool {
    collect(entry, at: time)
    while let channel = entry.channel, channel.outstanding > 0, entry.isAnswering {
      _ = awaitAnswers(entry, at: time, patience: patience)
    }
    return !entry.isUnresponsive
  }

  /// Waits for verdicts, takes them, and sees to a detector that dies meanwhile.
  ///
  /// - Returns: false when there is no use in waiting: no detector answers. One that says nothing for `patience`, in real time, is not
  ///   waited for again until it does.
  func awaitAnswers(_ entry: GuardedDomain<Rules>, at time: Timestamp, patience: Duration) -> Bool {
    guard let channel = entry.channel, let handle = entry.handle, entry.isAnswering else { return false }
    switch channel.waitForVerdicts(upTo: patience) {
    case .verdicts: collect(entry, at: time)
    case .timedOut:
      checkDetector(entry, at: time)
      if entry.handle === handle { entry.isUnresponsive = true }
    case .gone: expectEnd(entry, at: time)
    }
    return entry.isAnswering
  }
}
