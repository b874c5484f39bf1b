#if Daemon
import VMFenceControl
import VMFenceCore

/// Whoever plugs a guest's card in, and waits until the guest is guarded there.
struct BarrierWait {
  /// Who can wait at the same time; each also has a connection of its own (`ControlServer.Limits.clients`).
  static let limit = 64
  static let longest = Duration.seconds(60)
  static let usual = Duration.seconds(10)

  var port: String
  var deadline: Timestamp
  var question: LoopQuestion
}

// The barrier before a guest's packets.

extension LiveRun {
  /// Takes a question that is answered when all is in force at a port, or when its time is over.
  func waitAtBarrier(_ question: LoopQuestion, at now: Timestamp) async throws(ControlFailure) {
    guard let port = question.request.port, (1...15).contains(port.utf8.count) else {
      throw ControlFailure("the port is missing", remedy: "give the interface's name: vif3.0, for example")
    }
    guard barriers.count < BarrierWait.limit else {
      throw ControlFailure("\(BarrierWait.limit) wait already", remedy: "try again", cause: .busy)
    }
    let wish = question.request.duration.map { Duration.seconds(min(max(0, $0), 3600)) } ?? BarrierWait.usual
    barriers.append(
      BarrierWait(port: port, deadline: now + min(wish, BarrierWait.longest), question: question))
    // What the toolstack has just written need not wait for a hint. Packets do not wait for it either.
    domains.lookSoon()
    await refreshInventory(at: now)
    noteInterfaces(at: now)
    if portsAreStale { await refreshInventory(at: now) }
  }

  /// Answers those who need not wait any more.
  func openBarriers(at now: Timestamp) {
    guard !barriers.isEmpty else { return }
    barriers.removeAll { wait in
      let missing = missing(at: wait.port)
      if missing == nil {
        let domain = domain(at: wait.port)
        let hasRules = domain.flatMap { rules.selection.rules(for: $0) } != nil
        wait.question.answer(
          .success(
            ControlDesk.encode(BarrierStatus(port: wait.port, domain: domain?.name ?? "", isInspected: hasRules))))
        return true
      }
      guard now >= wait.deadline else { return false }
      wait.question.answer(.failure(ControlFailure("\(wait.port.escapedForDisplay) is not guarded: \(missing ?? "")")))
      return true
    }
  }

  func abandonBarriers() {
    for wait in barriers { wait.question.answer(.failure(ControlFailure("the daemon stops", cause: .busy))) }
    barriers = []
  }

  private func domain(at port: String) -> DomainDescription? {
    snapshot?.domains.last { domain in domain.ports.contains { $0.interface == port } && !domain.runState.isFinal }
  }

  /// What is not in force at a port yet; nil when all is. A guest without rules is waited for no longer than for the firewall.
  private func missing(at port: String) -> String? {
    guard let domain = domain(at: port) else { return "no domain has it" }
    guard isKnown(interface: port) else { return interfaceProblem ?? "its interface is not there, or has just come" }
    guard !portsAreStale else { return "the packet filter has not taken its measures and what it may pretend" }
    guard rules.selection.rules(for: domain) != nil else { return isPreparing ? "its rules are being compiled" : nil }
    guard membership == pool.membershipGeneration else { return "its packets are not led to a detector yet" }
    guard let card = domain.ports.first(where: { $0.interface == port }),
      captures.isOpen(at: port, bridge: card.bridge)
    else { return "it cannot be captured" }
    let places = [port, card.bridge].compactMap { name in name.flatMap { captures.ports.numbers[$0] } }
    guard places.contains(where: { publisher.table.leads(card.mac, at: $0, to: domain.incarnation) }) else {
      let mistake = dispatchMistakes.first { $0.concerned.contains(domain.incarnation) }
      return "its packets are not led to its detector: \(mistake?.message ?? "nobody knows why")"
    }
    let state = pool.state(of: domain.incarnation)
    return state == .inspecting || state == .suspended ? nil : "its detector has not started"
  }
}
#endif
