public import VMFenceCore

/// What a guest's channel is like. All of what the guest said is a claim.
public struct ChannelStatus: Sendable, Hashable {
  public enum State: String, Sendable {
    /// The guest has no frontend, which is as good as any other state.
    case none
    /// The page is there, and the guest has not taken up the session.
    case offered
    case open
    /// The guest broke the protocol, or offered what is no page.
    case error
  }

  public internal(set) var state = State.none
  public internal(set) var problem = ""
  /// The version of the policy that the guest is to have; as long as it reads nothing, no more than a part of it is in its page.
  public internal(set) var sent: UInt64?
  /// What it answered last.
  public internal(set) var answer: PolicyAcknowledgement?
  /// How long that took.
  public internal(set) var answerDelay: Duration?
  public internal(set) var inForce: InForceReport?
  /// What the tenant wants, and stands.
  public internal(set) var standing = TenantDeclaration()
  /// What went wrong since the guest is known, and how often; without what did not.
  public internal(set) var errors: [ChannelError: UInt64] = [:]

  mutating func count(_ error: ChannelError) { errors[error, default: 0] &+= 1 }
}

/// What others are to know of channels.
public enum ChannelNews: Sendable, Hashable {
  /// A session began: the guest is to have its policy.
  case opened(Incarnation)
  case alert(Incarnation, PlatformAlert.Kind, String)
  /// What stands of a guest's wishes became more.
  case declared(DomainUUID, TenantDeclaration)
  /// The guest holds a policy of this version that is not the one that it should have.
  case holds(DomainUUID, version: UInt64)
}

extension PlatformAlert.Kind {
  /// A guest broke the protocol of the policy channel; the channel was closed.
  public static let channelViolation = PlatformAlert.Kind("channel-violation")
  /// A guest says that its policy is not in force, or says nothing.
  public static let policyNotInForce = PlatformAlert.Kind("policy-not-in-force")
  /// A guest declares less protection than stands, which changes nothing.
  public static let declarationShrinks = PlatformAlert.Kind("declaration-shrinks")
}

/// The channels of all guests, without the thread that turns them. What a guest does costs its own channel, and is bounded by budgets of its own.
public struct ChannelKeeper<Pages: GuestPages>: Sendable {
  /// How often a guest without a channel is looked at in its first minute, and every guest later.
  private static var soon: Duration { .seconds(1) }
  private static var later: Duration { .seconds(5) }
  private static var youth: Duration { .seconds(60) }
  /// So many sessions at once, and one more in each of these times; as many alerts come of it at the most.
  private static var attempts: (capacity: Int, every: Duration) { (4, .seconds(15)) }
  /// Rings that a guest may cause; more wait, masked by the kernel.
  private static var rings: (capacity: Int, every: Duration) { (64, .milliseconds(20)) }
  private static var claims: (capacity: Int, every: Duration) { (4, .seconds(10)) }

  private struct Attached {
    var offer: Pages.Offer
    var page: GuestPage<Pages.Session>
    var rung: UInt64 = 0
    var isMasked = false
  }

  private struct Guest {
    var since: Timestamp
    var look: Timestamp
    var attempts: TokenBucket
    var rings: TokenBucket
    var claims: TokenBucket
    var attached: Attached?
    var policy: GuestPolicy?
    var status = ChannelStatus()
    /// How often it gave its last answer, one after the other.
    var repeats = 0
  }

  public private(set) var pages: Pages
  private let epoch: @Sendable () -> UInt64
  private var guests: [Incarnation: Guest] = [:]
  private var order: [Incarnation] = []
  /// By UUID: a guest that is migrated keeps what it declared.
  private var standing: [DomainUUID: TenantDeclaration]
  private var refusals: [DomainUUID: DeclarationRefusal]

  /// - `standing`: what guests declared before; `refusals`: what is not taken of them.
  /// - `epoch`: another number at every call, and not zero.
  public init(
    _ pages: Pages, standing: [DomainUUID: TenantDeclaration] = [:], refusals: [DomainUUID: DeclarationRefusal] = [:],
    epoch: @escaping @Sendable () -> UInt64
  ) {
    self.pages = pages
    self.standing = standing
    self.refusals = refusals
    self.epoch = epoch
  }

  public var statuses: [Incarnation: ChannelStatus] { guests.mapValues(\.status) }
  /// Whether there is a page that nobody rings for.
  public var mustLook: Bool {
    guests.values.contains { guest in
      guest.attached.map { $0.isMasked || ($0.page.port == nil && $0.page.session.descriptor < 0) } ?? false
    }
  }
  /// Readable when there is something to do before `nextLook`.
  public var descriptors: [Int32] {
    ([pages.descriptor] + guests.values.compactMap { $0.attached?.page.session.descriptor }).filter { $0 >= 0 }
  }
  /// When the next guest is due, on the steady clock.
  public var nextLook: Timestamp? { guests.values.lazy.map(\.look).min() }

  /// The guests that are there. Channels of others are closed, so that a domain that ends can end.
  public mutating func update(_ domains: [Incarnation], at now: Timestamp) {
    let present = Set(domains)
    for gone in order where !present.contains(gone) {
      detach(gone)
      guests[gone] = nil
    }
    for (index, domain) in domains.enumerated() where guests[domain] == nil {
      // Not all of them at the same time.
      let share = Duration.milliseconds(Int64(index % 100) * 10)
      var guest = Guest(
        since: now, look: now + share,
        attempts: TokenBucket(capacity: Self.attempts.capacity, every: Self.attempts.every, at: now),
        rings: TokenBucket(capacity: Self.rings.capacity, every: Self.rings.every, at: now),
        claims: TokenBucket(capacity: Self.claims.capacity, every: Self.claims.every, at: now))
      guest.status.standing = standing[domain.uuid] ?? TenantDeclaration()
      guests[domain] = guest
    }
    order = domains
  }

  /// Has a guest get a policy, now or when it has a channel.
  public mutating func offer(_ policy: GuestPolicy) {
    for domain in order where domain.uuid == policy.domain {
      guard var guest = guests[domain], guest.policy != policy else { continue }
      guest.policy = policy
      guest.attached?.page.session.offer(policy)
      if guest.attached != nil { guest.status.sent = policy.version }
      guests[domain] = guest
    }
  }

  /// Takes this of a guest no more, and takes back what stands of it.
  public mutating func refuse(_ refusal: DeclarationRefusal, of uuid: DomainUUID) {
    refusals[uuid] = refusal.isNothing ? nil : refusal
    guard let left = standing[uuid].map(refusal.applied) else { return }
    standing[uuid] = left
    for domain in order where domain.uuid == uuid { guests[domain]?.status.standing = left }
  }

  /// Does what is to be done now.
  ///
  /// - `now`: of a clock that does not jump; `system`: of the system's, which guests are told.
  public mutating func work(at now: Timestamp, system: Timestamp) -> [ChannelNews] {
    var news: [ChannelNews] = []
    let rung = Set(pages.takeRings())
    for domain in order {
      guard var guest = guests[domain] else { continue }
      if let port = guest.attached?.page.port, rung.contains(port) { guest.attached?.isMasked = true }
      if now >= guest.look { look(domain, &guest, at: now, system, &news) }
      if guest.attached != nil { step(domain, &guest, at: now, system, &news) }
      guests[domain] = guest
    }
    return news
  }

  /// Ends all sessions; guests keep what is in force.
  public mutating func close() {
    for domain in order { detach(domain) }
    guests = [:]
    order = []
  }

  private mutating func detach(_ domain: Incarnation) {
    guard var guest = guests[domain] else { return }
    drop(&guest)
    guests[domain] = guest
  }

  private mutating func drop(_ guest: inout Guest) {
    guard var attached = guest.attached else { return }
    attached.page.session.close()
    pages.close(attached.page)
    guest.attached = nil
    if guest.status.state != .error { guest.status.state = .none }
  }

  // MARK: Looking for offers

  private mutating func look(
    _ domain: Incarnation, _ guest: inout Guest, at now: Timestamp, _ system: Timestamp, _ news: inout [ChannelNews]
  ) {
    guest.look = now + (guest.attached == nil && now - guest.since < Self.youth ? Self.soon : Self.later)
    let offer: Pages.Offer?
    do throws(ProbeError) { offer = try pages.offer(of: domain) } catch { return guest.status.count(.unreadable) }
    if let attached = guest.attached, attached.offer != offer {
      drop(&guest)
      guest.since = now
    }
    guard guest.attached == nil else { return }
    guard let offer else {
      // Whoever takes back what was wrong is a guest without a frontend.
      if guest.status.state == .error { guest.status.state = .none }
      return
    }
    guard guest.attempts.hasToken(at: now) else { return }
    guest.attempts.take()
    do throws(ChannelViolation) {
      var page = try pages.open(offer, of: domain, epoch: epoch(), at: system)
      if let policy = guest.policy {
        page.session.offer(policy)
        guest.status.sent = policy.version
      }
      guest.attached = Attached(offer: offer, page: page)
      guest.status.state = .offered
      pages.ring(page, of: domain)
    } catch { fail(domain, &guest, error, &news) }
  }

  private func fail(
    _ domain: Incarnation, _ guest: inout Guest, _ violation: ChannelViolation, _ news: inout [ChannelNews]
  ) {
    guest.status.state = .error
    guest.status.problem = violation.message
    guest.status.count(ChannelError(violation.code))
    news.append(
      .alert(domain, .channelViolation, "the policy channel was closed: \(violation.message.escapedForDisplay)"))
  }

  // MARK: Turning a channel

  private mutating func step(
    _ domain: Incarnation, _ guest: inout Guest, at now: Timestamp, _ system: Timestamp, _ news: inout [ChannelNews]
  ) {
    guard var attached = guest.attached else { return }
    let events = attached.page.session.step(at: system, rang: attached.isMasked)
    if attached.page.session.messagesSent != attached.rung {
      attached.rung = attached.page.session.messagesSent
      pages.ring(attached.page, of: domain)
    }
    if attached.isMasked, let port = attached.page.port, guest.rings.hasToken(at: now) {
      guest.rings.take()
      attached.isMasked = false
      pages.unmask(port)
    }
    guest.attached = attached
    for event in events { take(event, domain, &guest, at: now, &news) }
  }

  private mutating func take(
    _ event: HostChannelEvent, _ domain: Incarnation, _ guest: inout Guest, at now: Timestamp,
    _ news: inout [ChannelNews]
  ) {
    switch event {
    case .opened:
      guest.status.state = .open
      guest.status.problem = ""
      news.append(.opened(domain))
    case .acknowledged(let answer):
      let isNew = guest.status.answer?.version != answer.version || guest.status.answer?.status != answer.status
      guest.repeats = isNew ? 1 : guest.repeats + 1
      guest.status.answer = answer
      guest.status.answerDelay = guest.attached?.page.session.answerDelay
      if answer.status != .applied { guest.status.count(.notApplied) }
      // One that came damaged is sent again, so often.
      let last = answer.status == .damaged ? HostChannel.attemptLimit : 1
      guard answer.status != .applied, guest.repeats == last, guest.claims.hasToken(at: now) else { return }
      guest.claims.take()
      let reason = answer.reason.isEmpty ? "\(answer.status)" : answer.reason.escapedForDisplay
      news.append(
        .alert(
          domain, .policyNotInForce,
          "the guest says that policy \(answer.version) is not in force: \(reason)"))
    case .inForce(let report):
      guest.status.inForce = report
      guard let held = report.policy, let wanted = guest.policy, held.version >= wanted.version,
        held.digest != wanted.digest, guest.claims.hasToken(at: now)
      else { return }
      guest.claims.take()
      news.append(.holds(domain.uuid, version: held.version))
    case .declared(let declaration): declare(declaration, domain, &guest, at: now, &news)
    case .silent(let version):
      guest.status.count(.unanswered)
      // A process that its guest has taken over says it as often as it likes.
      guard guest.claims.hasToken(at: now) else { return }
      guest.claims.take()
      news.append(.alert(domain, .policyNotInForce, "the guest did not answer to policy \(version)"))
    case .restarted:
      drop(&guest)
      (guest.look, guest.since) = (now, now)
    case .closed(let violation):
      drop(&guest)
      fail(domain, &guest, violation, &news)
    }
  }

  private mutating func declare(
    _ declaration: TenantDeclaration, _ domain: Incarnation, _ guest: inout Guest, at now: Timestamp,
    _ news: inout [ChannelNews]
  ) {
    let declared = refusals[domain.uuid]?.applied(to: declaration) ?? declaration
    let effect = (standing[domain.uuid] ?? TenantDeclaration()).adding(declared)
    if effect.standing != standing[domain.uuid] {
      standing[domain.uuid] = effect.standing
      news.append(.declared(domain.uuid, effect.standing))
    }
    guest.status.standing = effect.standing
    guard effect.isShrinking || !effect.refused.isEmpty, guest.claims.hasToken(at: now) else { return }
    guest.claims.take()
    let service = effect.refusedServiceType.map { "; service type \($0.escapedForDisplay)" } ?? ""
    news.append(
      .alert(
        domain, .declarationShrinks,
        "the guest declares less than stands, which stays: \(effect.missing.count) paths missing"
          + "\(service); \(effect.refused.count) paths beyond the limit"))
  }
}
