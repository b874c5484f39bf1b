package import VMFenceCore

/// What is known of a host's domains: the probe without its threads, its subscribers and its connections. What the hypervisor listed and what a `XenStoreFollower` has
/// read is handed in.
package struct XenInventory {
  /// What a look found.
  package struct News: Hashable, Sendable {
    package var changes: [InventoryChange] = []
    /// Why something may have been missed.
    package var gaps: [String] = []
  }

  fileprivate struct Entry {
    var domain: XenDomain
    var details: DomainDetails
    /// A hint came, or it is not complete yet.
    var isStale = false
    var firstSeen: Duration
    /// Since when xenstore has had nothing about it, though it had before.
    var forgottenSince: Duration?
    /// Something may be different from what subscribers were told.
    var isNews = true
    /// What subscribers were told last; nil: nothing yet.
    var told: DomainDescription?
    /// It has its name, or is not waited for any more. Until then nobody knows of it: a detector would begin with the rules of a domain without a name, and
    /// what was set for that name would not count. Its cards are not known before its name is either.
    var isListed = false
    /// What will be told of the run state (see `settle`).
    var runState: RunState

    var description: DomainDescription {
      let number = domain.incarnation.domainID
      return DomainDescription(
        incarnation: domain.incarnation, name: details.name ?? "domain-\(number)", ports: details.ports,
        disks: details.disks, runState: domain.runState, migration: details.migration, cpuTime: domain.cpuTime)
    }
  }

  /// A domain whose name has not been written yet is looked at again for this long.
  private static let completionTime: Duration = .seconds(10)
  /// After this time a domain goes by its number.
  package static let namePatience: Duration = .seconds(3)
  /// The same for one that has not run yet: nothing of it needs to be guarded. On a busy host the toolstack takes its time to name what it has created, and
  /// the target of a migration would be a second domain with that UUID.
  package static let constructionPatience: Duration = .seconds(60)
  /// The toolstack takes a domain's entries away a moment before the domain itself.
  private static let farewell: Duration = .seconds(3)
  /// Numbers of domains that are gone, remembered so that the end of their devices is not taken for another domain.
  private static let goneLimit = 1024
  private static let problemLimit = 64

  private let refreshInterval: Duration

  /// How the connection to xenstored stood last; nil: nothing is known yet.
  private var storeState: XenStoreState?
  private var wasConnected = false
  private var news = News()
  private var entries: [Incarnation: Entry] = [:]
  /// By domain number.
  private var order: [Incarnation] = []
  private var gone: [DomainID] = []
  private var refreshed: Duration?
  private var refreshPosition = 0

  package init(refreshInterval: Duration) { self.refreshInterval = refreshInterval }

  /// By rising numbers.
  package var domains: [DomainDescription] {
    order.compactMap { incarnation in
      guard let entry = entries[incarnation], entry.isListed else { return nil }
      return entry.description
    }
  }

  /// Why xenstore is not connected to.
  package var storeFailure: ProbeError? { if case .failed(let error) = storeState { error } else { nil } }

  package var problems: [Diagnostic] {
    let ofDomains = order.lazy.compactMap { entries[$0]?.details.problems }.joined().prefix(Self.problemLimit)
    return (storeFailure.map { [$0.diagnostic] } ?? []) + ofDomains
  }

  // MARK: A look

  /// Takes over what the hypervisor listed.
  ///
  /// - `now`: of a clock that does not jump.
  /// - `hints`: of xenstore, that had come before.
  package mutating func look(at now: Duration, finding listed: [XenDomain], after hints: XenHints = XenHints()) {
    // Once for all hints, however many there are.
    if !hints.isEmpty {
      for incarnation in order where hints.concern(incarnation) { entries[incarnation]?.isStale = true }
    }
    take(listed, at: now)
    noteShortLives(hints.numbers, listed)
    makeStale(at: now)
    for incarnation in order where entries[incarnation]?.isListed == false { list(incarnation, at: now) }
  }

  /// What is different from what was taken the last time.
  package mutating func takeNews() -> News {
    tell()
    defer { news = News() }
    return news
  }

  /// The domains about which xenstore is to be asked.
  package var due: [XenDomain] { order.compactMap { isDue($0) ? entries[$0]?.domain : nil } }
  package var isAnyDue: Bool { order.contains(where: isDue) }

  /// While a domain is taken down, its devices go one by one; what it was is kept until it is gone.
  private func isDue(_ incarnation: Incarnation) -> Bool {
    guard let entry = entries[incarnation], entry.isStale else { return false }
    return entry.domain.runState != .dying || entry.details.name == nil
  }

  /// Takes notice of how the connection to xenstored stands.
  package mutating func note(_ state: XenStoreState) {
    defer { storeState = state }
    switch (storeState, state) {
    case (.connected, .failed(let error)):
      news.gaps.append("the connection to xenstored was lost (\(error.message)): what is written there is not seen")
    case (.connected, .connected), (_, .failed): break
    case (_, .connected):
      for incarnation in order { entries[incarnation]?.isStale = true }
      if wasConnected { news.gaps.append("the connection to xenstored was lost, and made anew") }
      wasConnected = true
    }
  }

  private mutating func take(_ listed: [XenDomain], at now: Duration) {
    // Nearly every look finds the same domains.
    if !order.elementsEqual(listed.lazy.map(\.incarnation)) {
      let present = Set(listed.map(\.incarnation))
      for incarnation in order where !present.contains(incarnation) {
        if entries.removeValue(forKey: incarnation)?.isListed == true {
          news.changes.append(.removed(incarnation))
        } else {
          news.gaps.append("domain \(incarnation.domainID) came and went before it had a name")
        }
        gone.append(incarnation.domainID)
      }
      if gone.count > Self.goneLimit { gone.removeFirst(gone.count - Self.goneLimit) }
      for domain in listed where entries[domain.incarnation] == nil {
        entries[domain.incarnation] = Entry(
          domain: domain, details: DomainDetails(), isStale: true, firstSeen: now, runState: domain.runState)
      }
      order = listed.map(\.incarnation)
    }
    for domain in listed { entries[domain.incarnation]?.settle(domain) }
  }

  /// Devices of a domain that no look has seen: it came and went in between.
  private mutating func noteShortLives(_ hinted: Set<DomainID>, _ listed: [XenDomain]) {
    guard !hinted.isEmpty else { return }
    let known = Set(listed.map(\.incarnation.domainID)).union(gone)
    for number in hinted.subtracting(known).sorted() where number != .dom0 {
      news.gaps.append("domain \(number) came and went between two looks")
      gone.append(number)
    }
  }

  /// Has those be read again whose turn it is.
  private mutating func makeStale(at now: Duration) {
    var turn = 0
    if let refreshed {
      // As many as are due since the last look, so that a thousand domains are not read at once.
      turn = Int(Double(order.count) * ((now - refreshed) / refreshInterval))
      if turn > 0 { self.refreshed = now }
    } else {
      refreshed = now
    }
    for _ in 0..<min(turn, order.count) {
      refreshPosition = (refreshPosition + 1) % order.count
      entries[order[refreshPosition]]?.isStale = true
    }
  }

  /// Has others know of a domain, once it has its name or is not waited for any more.
  private mutating func list(_ incarnation: Incarnation, at now: Duration) {
    guard let entry = entries[incarnation] else { return }
    let isWaitedFor = entry.details.name == nil && storeFailure == nil && now - entry.firstSeen < entry.namePatience
    if !isWaitedFor { entries[incarnation]?.isListed = true }
  }

  /// Takes over what xenstore has of domains. One that is gone meanwhile is passed over.
  package mutating func take(_ readings: [XenReading], at now: Duration) {
    for reading in readings {
      guard var entry = entries[reading.incarnation] else { continue }
      // One that was started anew knows nothing of domains that run on.
      if reading.details.name == nil, entry.details.name != nil {
        let since = entry.forgottenSince ?? now
        entry.forgottenSince = since
        entry.isStale = now - since < Self.farewell
        if !entry.isStale { entry.details.problems = [Self.forgotten(reading.incarnation)] }
      } else {
        entry.forgottenSince = nil
        if reading.details != entry.details {
          entry.details = reading.details
          entry.isNews = true
        }
        let time = max(Self.completionTime, entry.namePatience)
        entry.isStale = entry.details.name == nil && now - entry.firstSeen < time
      }
      entries[reading.incarnation] = entry
      list(reading.incarnation, at: now)
    }
  }

  private static func forgotten(_ domain: Incarnation) -> Diagnostic {
    Diagnostic(
      .warning,
      "domain \(domain.domainID): xenstore has nothing about it any more; what was known of it stays in force",
      remedy: "a xenstored that was started anew learns of running domains no more: start the domain, or the host, anew"
    )
  }

  private mutating func tell() {
    for incarnation in order {
      guard entries[incarnation]?.isNews == true, entries[incarnation]?.isListed == true,
        var entry = entries[incarnation]
      else { continue }
      entry.isNews = false
      defer { entries[incarnation] = entry }
      var description = entry.description
      description.runState = entry.runState
      var told = description
      // Which goes on by itself: a snapshot says it.
      told.cpuTime = .zero
      guard entry.told != told else { continue }
      entry.told = told
      news.changes.append(.changed(description))
    }
  }
}

extension XenInventory.Entry {
  /// How long its name is waited for, from its first look on.
  fileprivate var namePatience: Duration {
    let isUnderConstruction = domain.flags.contains(.paused) && domain.cpuTime == .zero
    return isUnderConstruction ? XenInventory.constructionPatience : XenInventory.namePatience
  }

  /// Takes a look at the domain over. Of running and blocked, only what lasts is a change: an idle guest wakes a thousand times a second, and that
  /// a look caught it there says nothing.
  fileprivate mutating func settle(_ now: XenDomain) {
    let (before, stateBefore) = (domain, runState)
    domain = now
    defer { if runState != stateBefore { isNews = true } }
    switch now.runState {
    case .blocked: if before.runState == .blocked, before.cpuTime == now.cpuTime { runState = .blocked }
    case .running: if before.runState == .running || before.cpuTime != now.cpuTime { runState = .running }
    default:
      runState = now.runState
      return
    }
    // Out of a pause, and the like: whatever it does now is news.
    if runState != .blocked, runState != .running { runState = now.runState }
  }
}

extension XenHints {
  fileprivate func concern(_ incarnation: Incarnation) -> Bool {
    areTooMany || numbers.contains(incarnation.domainID) || uuids.contains(incarnation.uuid)
  }
}
