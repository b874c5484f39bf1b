#if Daemon
import Foundation
import Synchronization
import VMFenceControl
import VMFenceCore
import VMFenceStore

/// A question that only the daemon's loop can answer, and where the answer goes.
struct LoopQuestion: Sendable {
  var request: ControlRequest
  var answer: @Sendable (Result<[UInt8], ControlFailure>) -> Void
}

/// Answers what comes over the control socket: what the coordinator knows at once, the rest through the loop.
final class ControlDesk: PromptEventSink {
  /// Past decisions, and alerts, that an explanation has.
  private static let pastExplained = 5
  private static let listDefault = 10_000
  private static let listMaximum = 200_000
  /// The longest ban that a person may set.
  private static let banMaximum = Duration.seconds(366 * 86_400)

  private let coordinator: EnforcementCoordinator
  private let directory: DomainDirectory
  private let clock: SteadyClock
  private let encoder: EVEEncoder
  private let mailbox: Mailbox<LiveMessage>
  private let history: HistoryRecorder
  private let guestPolicies: GuestPolicies
  private let server = Mutex<ControlServer?>(nil)

  init(
    coordinator: EnforcementCoordinator, directory: DomainDirectory, clock: SteadyClock, encoder: EVEEncoder,
    mailbox: Mailbox<LiveMessage>, history: HistoryRecorder, guestPolicies: GuestPolicies
  ) {
    self.coordinator = coordinator
    self.directory = directory
    self.clock = clock
    self.encoder = encoder
    self.mailbox = mailbox
    self.history = history
    self.guestPolicies = guestPolicies
  }

  /// Begins to answer at `path`.
  func open(_ path: String) throws(ControlFailure) {
    let made = try ControlServer(path: path) { [weak self] request throws(ControlFailure) in
      guard let self else { throw ControlFailure("the daemon stops", cause: .busy) }
      return try await answer(request)
    }
    made.start()
    server.withLock { $0 = made }
  }

  func close() { server.withLock { $0?.close() } }

  func receive(_ event: Event) {
    if let server = server.withLock({ $0 }), server.hasFollowers {
      let isAlert = if case .alert = event { true } else { false }
      server.publish(encoder.encode(event), isAlert: isAlert, of: event.incarnation)
    }
  }

  // MARK: Answers

  private func answer(_ request: ControlRequest) async throws(ControlFailure) -> [UInt8] {
    switch request.verb {
    case .status, .domains, .rulesShow, .rulesSet, .barrier, .declared, .declaredForget, .declaredAllow:
      return try await askLoop(request)
    case .follow: throw ControlFailure("following is not answered in one line")
    case .alerts: return try await recentAlerts(request)
    case .bans:
      let decisions = await coordinator.decisionsInForce.filter { $0.firewallMeasure != nil }
      let wanted = try uuid(of: request)
      let past = request.all == true ? try await pastBans(request, wanted) : []
      let shown = decisions.filter { wanted == nil || $0.incarnation?.uuid == wanted }
      return Self.encode(past + shown.suffix(limit(request)).map(describe))
    case .pending: return Self.encode(await coordinator.pending.map(describe))
    case .approve, .deny: return try await settle(request)
    case .why: return try await explain(request)
    case .guestPolicy: return try await guestPolicy(request)
    case .banAdd: return try await addBan(request)
    case .banDelete: return try await deleteBan(request)
    }
  }

  private func askLoop(_ request: ControlRequest) async throws(ControlFailure) -> [UInt8] {
    let result = await withCheckedContinuation { continuation in
      mailbox.post(.question(LoopQuestion(request: request) { continuation.resume(returning: $0) }))
    }
    return try result.get()
  }

  private func limit(_ request: ControlRequest) -> Int {
    min(max(1, request.limit ?? Self.listDefault), Self.listMaximum)
  }

  /// What has a UUID may be gone: the history knows it still.
  private func uuid(of request: ControlRequest) throws(ControlFailure) -> DomainUUID? {
    try request.domain.map { name throws(ControlFailure) in
      if let found = directory.find(name) { return found.incarnation.uuid }
      if let uuid = DomainUUID(name) { return uuid }
      throw ControlFailure(
        "there is no domain `\(name.escapedForDisplay)` now",
        remedy: "list them: vmfence-ref domains; one that is gone goes by its UUID")
    }
  }

  private func address(of request: ControlRequest) throws(ControlFailure) -> IPAddress? {
    guard let text = request.address else { return nil }
    guard let address = IPAddress(text) else {
      throw ControlFailure(
        "`\(text.escapedForDisplay)` is no address", remedy: "192.0.2.7 or 2001:db8::7, for example")
    }
    return address
  }

  private func recall<Result: Sendable>(
    _ body: @escaping @Sendable (HistoryStore) throws(StateStoreError) -> Result
  ) async throws(ControlFailure) -> Result {
    do throws(StateStoreError) { return try await history.ask(body) } catch { throw ControlFailure(error) }
  }

  private func recentAlerts(_ request: ControlRequest) async throws(ControlFailure) -> [UInt8] {
    let (vm, address, limit) = (try uuid(of: request), try address(of: request), limit(request))
    let lines = try await recall { store throws(StateStoreError) in
      try store.lastAlerts(limit, of: vm, with: address)
    }
    return Array("[".utf8) + Array(lines.joined(separator: Array(",".utf8))) + Array("]".utf8)
  }

  /// Blocks, rate limits and quarantines that are over, were withheld or were taken back.
  private func pastBans(
    _ request: ControlRequest, _ vm: DomainUUID?
  ) async throws(ControlFailure) -> [DecisionStatus] {
    let (limit, inForce) = (limit(request), Set(await coordinator.decisionsInForce.map(\.id)))
    let past = try await recall { store throws(StateStoreError) in
      try store.lastDecisions(limit, about: vm) {
        $0.measure != "notify" && !inForce.contains($0.id) && $0.status != .pending
      }
    }
    return past.map(describe)
  }

  private func settle(_ request: ControlRequest) async throws(ControlFailure) -> [UInt8] {
    guard let id = request.id else { throw ControlFailure("the decision's number is missing", remedy: "give `id`") }
    do throws(PolicyError) {
      let decision =
        request.verb == .approve
        ? try await coordinator.approve(id, at: clock.now) : try await coordinator.deny(id, at: clock.now)
      return Self.encode(describe(decision))
    } catch { throw ControlFailure(error) }
  }

  private func explain(_ request: ControlRequest) async throws(ControlFailure) -> [UInt8] {
    guard let address = try address(of: request) else {
      throw ControlFailure("the address is missing", remedy: "give `domain` and `address`")
    }
    let domain = try find(request.domain ?? "")
    let found = await coordinator.explain(address, for: domain.incarnation, at: clock.now)
    let now = clock.now
    let (vm, count) = (domain.incarnation.uuid, Self.pastExplained)
    let standing = Set(found.decisions.map(\.id))
    let (past, alerts) = try await recall { store throws(StateStoreError) in
      let past = try store.lastDecisions(count, about: vm) { decision in
        !standing.contains(decision.id) && (decision.network ?? decision.source)?.contains(address) == true
      }
      return (past, try store.lastAlerts(count, of: vm, with: address))
    }
    return Self.encode(
      Explanation(
        domain: domain.name, address: address.description, isBlocked: !found.decisions.isEmpty,
        decisions: found.decisions.map(describe), neverBlocked: found.obstacle,
        ladders: found.offences.map { offence in
          "\(offence.decision.policy): step \(offence.decision.step + 1) was \(offence.decision.measure.name) "
            + "(decision \(offence.decision.id), \(offence.decision.status.rawValue)); "
            + "forgotten in \((offence.forgottenAt - now).display)"
        },
        past: past.map(describe),
        alerts: alerts.compactMap { try? JSONDecoder().decode(EVEAlert.self, from: Data($0)).line }))
  }

  private func guestPolicy(_ request: ControlRequest) async throws(ControlFailure) -> [UInt8] {
    let domain = try find(request.domain ?? "")
    let rendering: GuestPolicy.Rendering
    do throws(GuestPolicyError) { rendering = try await guestPolicies.current(of: domain.incarnation.uuid) } catch {
      throw ControlFailure(error)
    }
    return Self.encode(GuestPolicyStatus(rendering, of: domain, at: clock.now + clock.offset))
  }

  private func network(_ request: ControlRequest) throws(ControlFailure) -> IPNetwork {
    guard let text = request.network, let network = IPNetwork(text) else {
      throw ControlFailure(
        "`\((request.network ?? "").escapedForDisplay)` is no address and no network",
        remedy: "192.0.2.7 or 2001:db8::/48, for example")
    }
    return network
  }

  private func addBan(_ request: ControlRequest) async throws(ControlFailure) -> [UInt8] {
    let network = try network(request)
    let domain = try request.domain.map { name throws(ControlFailure) in try find(name).incarnation }
    let seconds = request.duration ?? 0
    let maximum = Double(Self.banMaximum.components.seconds)
    guard seconds > 0, seconds <= maximum else {
      throw ControlFailure("no ban is for \(seconds) s", remedy: "every ban ends: say for how long, up to a year")
    }
    do throws(PolicyError) {
      let decisions = try await coordinator.block(
        network, for: domain, duration: .seconds(seconds), reason: "asked for over the control socket", at: clock.now)
      return Self.encode(decisions.filter { $0.firewallMeasure != nil }.map(describe))
    } catch { throw ControlFailure(error) }
  }

  private func deleteBan(_ request: ControlRequest) async throws(ControlFailure) -> [UInt8] {
    let network = try network(request)
    let wanted = try request.domain.map { name throws(ControlFailure) in
      FirewallScope.domain(try find(name).incarnation.uuid)
    }
    // In a dry run, too, a block that stands can be taken back: it would be in force once the dry run ends.
    let measures = await coordinator.decisionsInForce.compactMap(\.firewallMeasure).filter {
      $0.key.kind == .block(network) && (wanted == nil || $0.key.scope == wanted)
    }
    if measures.isEmpty {
      throw ControlFailure("no ban of \(network) is in force there", remedy: "list them: vmfence-ref bans list")
    }
    var lifted: [DecisionStatus] = []
    for measure in measures {
      do throws(PolicyError) {
        lifted += try await coordinator.lift(measure.key, reason: "taken back over the control socket", at: clock.now)
          .map(describe)
      } catch { throw ControlFailure(error) }
    }
    return Self.encode(lifted)
  }

  private func find(_ name: String) throws(ControlFailure) -> DomainDescription {
    guard let found = directory.find(name) else {
      throw ControlFailure("there is no domain `\(name.escapedForDisplay)`", remedy: "list them: vmfence-ref domains")
    }
    return found
  }

  private func describe(_ decision: Decision) -> DecisionStatus {
    let shown = decision.shifted(by: clock.offset)
    let name = decision.incarnation.map { directory.entry(for: $0)?.description.name ?? $0.uuid.description }
    let isOnHost = if case .blockOnHost = decision.measure { true } else { false }
    return DecisionStatus(
      id: decision.id, measure: decision.measure.name, network: decision.measure.network?.description,
      domain: isOnHost ? nil : name,
      status: decision.status.rawValue, policy: decision.policy, reason: decision.reason, trigger: decision.trigger,
      step: decision.step, since: shown.time.rfc3339, expires: shown.expires?.rfc3339,
      remaining: decision.remaining(at: clock.now).map { Double($0.wholeNanoseconds / 1_000_000) / 1e3 })
  }

  /// A decision of the past, as the history has it: what was enforced is not any more. Its times are the system's already.
  private func describe(_ decision: HistoryDecision) -> DecisionStatus {
    // A measure of which a log that was made anew says that it ended is over like any other. What was to be done with a domain and is `expired` was never done.
    let isOver =
      decision.status == .enforced
      || decision.status == .expired && !["lift", "pause", "shut_down"].contains(decision.measure)
    return DecisionStatus(
      id: decision.id, measure: decision.measure, network: decision.network?.description,
      domain: decision.vm.map { decision.name ?? $0.description },
      status: isOver ? "over" : decision.status.rawValue,
      policy: decision.policy, reason: decision.reason, trigger: decision.trigger, step: decision.step,
      since: decision.time.rfc3339, expires: decision.expires?.rfc3339, remaining: nil)
  }

  static func encode(_ value: some Encodable) -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    return (try? encoder.encode(value)).map { Array($0) } ?? Array("null".utf8)
  }
}

extension DomainDirectory {
  /// By name or UUID; of several incarnations the one with the highest number.
  func find(_ text: String) -> DomainDescription? {
    let uuid = DomainUUID(text)
    return all.map(\.description).filter { $0.name == text || $0.incarnation.uuid == uuid }
      .max { $0.incarnation.domainID < $1.incarnation.domainID }
  }
}

extension GuestPolicyStatus {
  /// - `now`: of the system's clock, as the policy's times.
  fileprivate init(_ rendering: GuestPolicy.Rendering, of domain: DomainDescription, at now: Timestamp) {
    let policy = rendering.policy
    // What has run out stays in the policy until something else changes.
    let standing = policy.measures.filter { measure in measure.expires.map { now < $0 } ?? true }
    self.init(
      domain: domain.name, uuid: policy.domain.description, version: policy.version,
      sha256: policy.digest.map { $0.hexadecimal(width: 2) }.joined(), issued: policy.issued.rfc3339,
      measures: standing.map { Measure($0, at: now) }, exceptions: policy.exceptions.networks.map(\.description),
      allowsDHCP: policy.exceptions.allowsDHCP, omitted: rendering.omitted,
      encoded: String(decoding: Base64.encode(policy.encoded), as: UTF8.self))
  }
}

extension GuestPolicyStatus.Measure {
  fileprivate init(_ measure: GuestPolicy.Measure, at now: Timestamp) {
    var (network, rate): (IPNetwork?, UInt32?)
    let kind =
      switch measure.kind {
      case .block: "block"
      case .quarantine: "quarantine"
      case .rateLimit: "rate_limit"
      }
    if case .block(let blocked) = measure.kind { network = blocked }
    if case .rateLimit(let packetsPerSecond) = measure.kind { rate = packetsPerSecond }
    self.init(
      kind: kind, network: network?.description, packetsPerSecond: rate, decision: measure.decision,
      expires: measure.expires?.rfc3339,
      remaining: measure.expires.map { Double(($0 - now).wholeNanoseconds / 1_000_000) / 1e3 },
      comment: measure.comment)
  }
}

extension Timestamp {
  /// In UTC, to the second.
  var rfc3339: String { Date(timeIntervalSince1970: Double(nanoseconds) / 1e9).formatted(.iso8601) }
}
#endif
