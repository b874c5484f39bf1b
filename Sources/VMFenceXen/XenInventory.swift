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
  /// Numbers of domains that are gone, remembered for so long so that the end of their devices, a moment later, is not taken for another domain. Xen gives a
  /// number again when it has given all others, so whoever has it after that time is another.
  package static let goneTime: Duration = .seconds(60)
  private static let goneLimit = 1024
  private static let problemLimit = 64

  private let refreshInterval: Duration

  /// How the connection to xenstored stood last; nil: nothing is known yet.
  private var storeState: XenStoreState?
  private var wasConnected = false
  private var news = News()
  /// By domain number. They are changed where they are: each look passes a thousand of them.
  private var entries: [Entry] = []
  /// From the one that has been gone for longest.
  private var gone: [(number: DomainID, since: Duration)] = []
  private var refreshed: Duration?
  private var refreshPosition = 0

  package init(refreshInterval: Duration) { self.refreshInterval = refreshInterval }

  /// By rising numbers.
  package var domains: [DomainDescription] { entries.lazy.filter(\.isListed).map(\.description) }

  /// Why xenstore is not connected to.
  package var storeFailure: ProbeError? { if case .failed(let error) = storeState { error } else { nil } }

  package var problems: [Diagnostic] {
    let ofDomains = entries.lazy.flatMap(\.details.problems).prefix(Self.problemLimit)
    return (storeFailure.map { [$0.diagnostic] } ?? []) + ofDomains
  }

  // MARK: A look

  /// Takes over what the hypervisor listed.
  ///
  /// - `now`: of a clock that does not jump.
  /// - `hints`: of xenstore, that had come before.
  package mutating func look(at now: Duration, finding listed: [XenDomain], after hints: XenHints = XenHints()) {
    _ = markStale(hints)
    take(listed, at: now)
    noteShortLives(hints.numbers, listed, at: now)
    makeStale(at: now)
    for index in entries.indices where !entries[index].isListed { list(index, at: now) }
  }

  /// Takes over hints that need no look: entries of known domains were written, as a rename does.
  ///
  /// - Returns: false when domains may have come or gone: the hypervisor is to be asked, and `look` is to have the hints.
  package mutating func take(_ hints: XenHints) -> Bool {
    guard !hints.areTooMany, !hints.areOfMore, hints.numbers.isEmpty else { return false }
    return markStale(hints) == hints.uuids
  }

  /// Has the domains be read again that hints are about; once for all hints, however many there are.
  ///
  /// - Returns: the UUIDs among them that a domain has.
  private mutating func markStale(_ hints: XenHints) -> Set<DomainUUID> {
    var found: Set<DomainUUID> = []
    guard hints.areOfDomains else { return found }
    for index in entries.indices {
      let incarnation = entries[index].domain.incarnation
      let isNamed = hints.uuids.contains(incarnation.uuid)
      if isNamed { found.insert(incarnation.uuid) }
      if isNamed || hints.areTooMany || hints.numbers.contains(incarnation.domainID) { entries[index].isStale = true }
    }
    return found
  }

  /// What is different from what was taken the last time.
  package mutating func takeNews() -> News {
    tell()
    defer { news = News() }
    return news
  }

  /// The domains about which xenstore is to be asked.
  package var due: [XenDomain] { entries.lazy.filter(\.isDue).map(\.domain) }
  package var isAnyDue: Bool { entries.contains(where: \.isDue) }

  /// Takes notice of how the connection to xenstored stands.
  package mutating func note(_ state: XenStoreState) {
    defer { storeState = state }
    switch (storeState, state) {
    case (.connected, .failed(let error)):
      news.gaps.append("the connection to xenstored was lost (\(error.message)): what is written there is not seen")
    case (.connected, .connected), (_, .failed): break
    case (_, .connected):
      for index in entries.indices { entries[index].isStale = true }
      if wasConnected { news.gaps.append("the connection to xenstored was lost, and made anew") }
      wasConnected = true
    }
  }

  private mutating func take(_ listed: [XenDomain], at now: Duration) {
    // Nearly every look finds the same domains.
    if !entries.lazy.map(\.domain.incarnation).elementsEqual(listed.lazy.map(\.incarnation)) {
      var known = Dictionary(entries.lazy.map { ($0.domain.incarnation, $0) }) { first, _ in first }
      let before = entries.map(\.domain.incarnation)
      entries = listed.map { domain in
        known.removeValue(forKey: domain.incarnation)
          ?? Entry(domain: domain, details: DomainDetails(), isStale: true, firstSeen: now, runState: domain.runState)
      }
      for incarnation in before {
        guard let entry = known[incarnation] else { continue }
        if entry.isListed {
          news.changes.append(.removed(incarnation))
        } else {
          news.gaps.append("domain \(incarnation.domainID) came and went before it had a name")
        }
        noteGone(incarnation.domainID, at: now)
      }
    }
    for (index, domain) in listed.enumerated() { entries[index].settle(domain) }
  }

  /// Devices of a domain that no look has seen: it came and went in between.
  private mutating func noteShortLives(_ hinted: Set<DomainID>, _ listed: [XenDomain], at now: Duration) {
    guard !hinted.isEmpty else { return }
    gone.removeAll { now - $0.since >= Self.goneTime }
    let known = Set(listed.map(\.incarnation.domainID)).union(gone.map(\.number))
    for number in hinted.subtracting(known).sorted() where number != .dom0 {
      news.gaps.append("domain \(number) came and went between two looks")
      noteGone(number, at: now)
    }
  }

  private mutating func noteGone(_ number: DomainID, at now: Duration) {
    if gone.count == Self.goneLimit { gone.removeFirst() }
    gone.append((number, now))
  }

  /// Has those be read again whose turn it is.
  private mutating func makeStale(at now: Duration) {
    var turn = 0
    if let refreshed {
      // As many as are due since the last look, so that a thousand domains are not read at once.
      turn = Int(Double(entries.count) * ((now - refreshed) / refreshInterval))
      if turn > 0 { self.refreshed = now }
    } else {
      refreshed = now
    }
    for _ in 0..<min(turn, entries.count) {
      refreshPosition = (refreshPosition + 1) % entries.count
      entries[refreshPosition].isStale = true
    }
  }

  /// Has others know of a domain, once it has its name or is not waited for any more.
  private mutating func list(_ index: Int, at now: Duration) {
    let isWaitedFor =
      entries[index].details.name == nil && storeFailure == nil
      && now - entries[index].firstSeen < entries[index].namePatience
    if !isWaitedFor { entries[index].isListed = true }
  }

  /// Takes over what xenstore has of domains. One that is gone meanwhile is passed over.
  package mutating func take(_ readings: [XenReading], at now: Duration) {
    for reading in readings {
      guard let index = entries.firstIndex(where: { $0.domain.incarnation == reading.incarnation }) else { continue }
      var entry = entries[index]
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
      entries[index] = entry
      list(index, at: now)
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
    for index in entries.indices where entries[index].isNews && entries[index].isListed {
      entries[index].isNews = false
      var description = entries[index].description
      description.runState = entries[index].runState
      var told = description
      // Which goes on by itself: a snapshot says it.
      told.cpuTime = .zero
      guard entries[index].told != told else { continue }
      entries[index].told = told
      news.changes.append(.changed(description))
    }
  }
}

extension XenInventory.Entry {
  /// Whether xenstore is to be asked about it. While a domain is taken down, its devices go one by one; what it was is kept until it is gone.
  fileprivate var isDue: Bool { isStale && (domain.runState != .dying || details.name == nil) }

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
