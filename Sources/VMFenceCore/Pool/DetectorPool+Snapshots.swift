// What a detector remembers, for its successor should it die.
//
// A guest that finds a packet which kills its detector must not have thresholds, bits and flows forgotten at will. So a detector writes down
// now and then what it remembers, as it does for a migration; that lies in its own shared memory and costs the supervisor none.

extension DetectorPool {
  /// Has a detector with traffic write down what it remembers, when that is due: between two batches of packets, and nobody waits for it.
  func refreshSnapshot(_ entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard let interval = configuration.snapshotInterval, entry.isAnswering, entry.move == nil, entry.ending == nil,
      entry.counters.packets != entry.packetsAtSnapshot, time >= entry.lastSnapshot + interval,
      let channel = entry.channel, channel.isStateAnswered, channel.askForState(at: time)
    else { return }
    entry.packetsAtSnapshot = entry.counters.packets
    entry.lastSnapshot = time
  }

  /// Has the successor of a detector that died begin with what that one, or one before it, wrote down last.
  func offerSnapshot(to entry: GuardedDomain<Rules>, at time: Timestamp) {
    guard configuration.snapshotInterval != nil, !entry.isTakingOver, let channel = entry.channel,
      let (bytes, saved) = channel.lastState
    else { return }
    // Times go on from when it was written down: what has run out since is over.
    offer(bytes, to: entry, over: channel, at: saved)
  }

  /// A detector died. What its successor would begin with is forgotten when that may be the reason: before the detector had said that it took
  /// it over, or again and again.
  func judgeSnapshot(_ entry: GuardedDomain<Rules>, diedAgainAndAgain: Bool, at time: Timestamp) {
    let diedTakingOver = entry.isTakingOver && entry.channel?.tookOverState != true
    entry.isTakingOver = false
    guard diedTakingOver || diedAgainAndAgain, let channel = entry.channel, channel.lastState != nil else { return }
    channel.forgetState()
    tell(
      entry, .stateLost, severity: 2, at: time,
      diedTakingOver
        ? "the detector died while it took over the saved state, which is not offered again"
        : "detectors died again and again: what the last one had saved is not offered again")
  }
}
