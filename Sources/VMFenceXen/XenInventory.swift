package import VMFenceCore

/// What is known of a host's domains, and how it is looked at: the probe without its thread and its subscribers.
package struct XenInventory {
  package typealias Connect = @Sendable () throws(ProbeError) -> any XenStoreAccess

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
    /// What will be told of the run state (see `settle`).
    var runState: RunState

    var description: DomainDescription {
      let number = domain.incarnation.domainID
      return DomainDescription(
        incarnation: domain.incarnation, name: details.name ?? "domain-\(number)", ports: details.ports,
        disks: details.disks, runState: domain.runState, migration: details.migration, cpuTime: domain.cpuTime)
    }
  }

  /// What is watched. Only Dom0 writes below these paths; a guest cannot make hints.
  package static let watchedPaths =
    ["@introduceDomain", "@releaseDomain", "/vm", "/local/domain/0/backend/vif"]
    + DomainDetails.diskBackends.map { "/local/domain/0/backend/\($0)" }
  /// Hints that one look takes; more make everything stale.
  private static let hintLimit = 4096
  /// A domain whose name has not been written yet is looked at again for this long.
  private static let completionTime: Duration = .seconds(10)
  private static let reconnectPause: Duration = .seconds(1)
  /// The toolstack takes a domain's entries away a moment before the domain itself.
  private static let farewell: Duration = .seconds(3)
  /// Numbers of domains that are gone, remembered so that the end of their devices is not taken for another domain.
  private static let goneLimit = 1024
  private static let problemLimit = 64

  private let hypervisor: any XenHypervisor
  private let connect: Connect
  private let interfaceExists: @Sendable (String) -> Bool
  private let refreshInterval: Duration

  private var store: (any XenStoreAccess)?
  /// Why xenstore is not connected to.
  private(set) var storeFailure: ProbeError?
  private var nextConnection: Duration?
  private var wasConnected = false
  private var entries: [Incarnation: Entry] = [:]
  /// By domain number.
  private var order: [Incarnation] = []
  private var gone: [DomainID] = []
  private var refreshed: Duration?
  private var refreshPosition = 0

  package init(
    hypervisor: any XenHypervisor, connect: @escaping Connect, interfaceExists: @escaping @Sendable (String) -> Bool,
    refreshInterval: Duration
  ) {
    self.hypervisor = hypervisor
    self.connect = connect
    self.interfaceExists = interfaceExists
    self.refreshInterval = refreshInterval
  }

  /// By rising numbers.
  package var domains: [DomainDescription] { order.compactMap { entries[$0]?.description } }

  package var descriptor: Int32 { store?.descriptor ?? -1 }

  package var problems: [Diagnostic] {
    let ofDomains = order.lazy.compactMap { entries[$0]?.details.problems }.joined().prefix(Self.problemLimit)
    return (storeFailure.map { [$0.diagnostic] } ?? []) + ofDomains
  }

  // MARK: A look

  /// Asks the hypervisor, follows the hints of xenstore, and says what is different from the last look.
  ///
  /// - `now`: of a clock that does not jump.
  /// - Throws: when the hypervisor cannot be asked; what is known stays as it was.
  package mutating func look(at now: Duration) throws(SystemFailure) -> News {
    var news = News()
    connectIfNeeded(at: now, &news)
    let hinted = takeHints()
    let listed = try hypervisor.domains()
    take(listed, at: now, &news)
    noteShortLives(hinted, listed, &news)
    refresh(at: now)
    tell(&news)
    return news
  }

  private mutating func connectIfNeeded(at now: Duration, _ news: inout News) {
    guard store == nil, now >= nextConnection ?? now else { return }
    nextConnection = now + Self.reconnectPause
    do throws(ProbeError) {
      let opened = try connect()
      do throws(SystemFailure) { for path in Self.watchedPaths { try opened.watch(path) } } catch {
        throw ProbeError(.failed, error.description, remedy: "see whether `xenstore-ls` works on this host")
      }
      store = opened
      storeFailure = nil
      for incarnation in order { entries[incarnation]?.isStale = true }
      if wasConnected { news.gaps.append("the connection to xenstored was lost, and made anew") }
      wasConnected = true
    } catch { storeFailure = error }
  }

  private mutating func lostStore(_ error: SystemFailure) {
    store = nil
    storeFailure = ProbeError(
      .failed, error.description, remedy: "see whether xenstored runs; it is connected to again")
  }

  /// Marks what hints are about, and collects the numbers that they name.
  private mutating func takeHints() -> Set<DomainID> {
    var hinted: Set<DomainID> = []
    var uuids: Set<DomainUUID> = []
    guard let store else { return hinted }
    var count = 0
    do throws(SystemFailure) {
      while let path = try store.nextEvent() {
        count += 1
        guard count <= Self.hintLimit else { continue }
        switch Hint(path) {
        case .number(let number): hinted.insert(number)
        case .uuid(let uuid): uuids.insert(uuid)
        case .none: break
        }
      }
    } catch { lostStore(error) }
    // Once for all hints, however many there are.
    guard count > Self.hintLimit || !hinted.isEmpty || !uuids.isEmpty else { return hinted }
    for incarnation in order
    where count > Self.hintLimit || hinted.contains(incarnation.domainID) || uuids.contains(incarnation.uuid) {
      entries[incarnation]?.isStale = true
    }
    return hinted
  }

  private mutating func take(_ listed: [XenDomain], at now: Duration, _ news: inout News) {
    // Nearly every look finds the same domains.
    if !order.elementsEqual(listed.lazy.map(\.incarnation)) {
      let present = Set(listed.map(\.incarnation))
      for incarnation in order where !present.contains(incarnation) {
        entries[incarnation] = nil
        news.changes.append(.removed(incarnation))
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
  private mutating func noteShortLives(_ hinted: Set<DomainID>, _ listed: [XenDomain], _ news: inout News) {
    guard !hinted.isEmpty else { return }
    let known = Set(listed.map(\.incarnation.domainID)).union(gone)
    for number in hinted.subtracting(known).sorted() where number != .dom0 {
      news.gaps.append("domain \(number) came and went between two looks")
      gone.append(number)
    }
  }

  /// Reads what xenstore has of the domains that hints were about, and in turn of the others.
  private mutating func refresh(at now: Duration) {
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
    guard let store else { return }
    for incarnation in order {
      guard entries[incarnation]?.isStale == true, var entry = entries[incarnation] else { continue }
      // While a domain is taken down, its devices go one by one; what it was is kept until it is gone.
      if entry.domain.runState == .dying, entry.details.name != nil { continue }
      do throws(SystemFailure) {
        let details = try DomainDetails.read(entry.domain, from: store, interfaceExists: interfaceExists)
        // One that was started anew knows nothing of domains that run on.
        if details.name == nil, entry.details.name != nil {
          let since = entry.forgottenSince ?? now
          entry.forgottenSince = since
          entry.isStale = now - since < Self.farewell
          if !entry.isStale { entry.details.problems = [Self.forgotten(incarnation)] }
          entries[incarnation] = entry
          continue
        }
        entry.forgottenSince = nil
        if details != entry.details {
          entry.details = details
          entry.isNews = true
        }
      } catch {
        lostStore(error)
        return
      }
      entry.isStale = entry.details.name == nil && now - entry.firstSeen < Self.completionTime
      entries[incarnation] = entry
    }
  }

  private static func forgotten(_ domain: Incarnation) -> Diagnostic {
    Diagnostic(
      .warning,
      "domain \(domain.domainID): xenstore has nothing about it any more; what was known of it stays in force",
      remedy: "a xenstored that was started anew learns of running domains no more: start the domain, or the host, anew"
    )
  }

  private mutating func tell(_ news: inout News) {
    for incarnation in order {
      guard entries[incarnation]?.isNews == true, var entry = entries[incarnation] else { continue }
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

extension XenInventory {
  /// What a watch's path is about.
  private enum Hint {
    case number(DomainID)
    case uuid(DomainUUID)
    case none

    /// `/local/domain/0/backend/KIND/NUMBER…`, `/vm/UUID…`, and others that only say "look".
    init(_ path: String) {
      let parts = path.split(separator: "/", maxSplits: 6, omittingEmptySubsequences: true)
      if parts.count >= 6, parts[3] == "backend", let number = UInt32(parts[5]) {
        self = .number(DomainID(number))
      } else if parts.count >= 2, parts[0] == "vm", let uuid = DomainUUID(parts[1]) {
        self = .uuid(uuid)
      } else {
        self = .none
      }
    }
  }
}
