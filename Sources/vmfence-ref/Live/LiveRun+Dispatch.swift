#if Daemon
import VMFenceCore

// Whose frames are whose.

extension LiveRun {
  /// Builds the dispatch table anew when domains or their cards are different.
  func refreshTable(at now: Timestamp) throws(ReplayFailure) {
    guard membership != pool.membershipGeneration else { return }
    try openCaptures()
    membership = pool.membershipGeneration
    let members = pool.members
    var mistakes: [DispatchError] = []
    publisher.publish(
      DispatchTable(
        members: members, ports: captures.ports.dispatchPorts(members), key: hashKey, leavingOut: &mistakes))
    extra += dispatcher.refresh(at: now).map { Event.platform($0) }
    tell(mistakes, at: now)
  }

  /// Mistakes that are told; of more only how many there are.
  private static var mistakesTold: Int { 64 }

  /// Tells what the dispatch table leaves out, each once as long as it is so.
  private func tell(_ mistakes: [DispatchError], at now: Timestamp) {
    let known = Set(dispatchMistakes)
    dispatchMistakes = mistakes
    for mistake in mistakes.prefix(Self.mistakesTold) where !known.contains(mistake) {
      logger.log([mistake.diagnostic])
      note(
        .platform(
          PlatformAlert(
            time: now, incarnation: mistake.concerned.first,
            kind: mistake.code == .badMAC ? .badAddress : .duplicateIdentity, message: mistake.message)))
    }
    if mistakes.isEmpty, !known.isEmpty { logger.notice("every card's packets are led to its domain again") }
  }

  /// The same as problems of the host.
  var dispatchProblems: [String] {
    let more = dispatchMistakes.count - Self.mistakesTold
    return dispatchMistakes.prefix(Self.mistakesTold).map(\.diagnostic.description)
      + (more > 0 ? ["\(more) more domains or cards are not told apart"] : [])
  }

  /// The dispatch table is to be built anew before frames are read again.
  func forgetTable() { membership = nil }
}
#endif
