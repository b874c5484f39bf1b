package import VMFenceCore

/// What the hints of xenstore were about.
package struct XenHints: Hashable, Sendable {
  var numbers: Set<DomainID> = []
  var uuids: Set<DomainUUID> = []
  /// There were more than were looked at.
  var areTooMany = false
  /// There were others, which say that domains came or went.
  var areOfMore = false

  package init() {}
  var areOfDomains: Bool { !numbers.isEmpty || !uuids.isEmpty || areTooMany }
}

/// What came of reading about one domain.
package struct XenReading: Hashable, Sendable {
  var incarnation: Incarnation
  var details: DomainDetails
}

/// How the connection to xenstored stands.
package enum XenStoreState: Hashable, Sendable {
  case connected
  /// Not yet, or not any more.
  case failed(ProbeError)
}

/// The connection to xenstored, and what is asked over it. Every call of it waits until xenstored answers, however long that takes: it is for a thread of
/// its own, which holds nothing meanwhile that others need.
package struct XenStoreFollower {
  package typealias Connect = @Sendable () throws(ProbeError) -> any XenStoreAccess

  /// What is watched. Only Dom0 writes below these paths, so a guest chooses nothing that is read. It can make hints, though: a backend writes its state there whenever
  /// the guest's frontend changes its own. Of any number of hints comes one look, and no more than one in `XenProbe.hintPause`.
  package static let watchedPaths =
    ["@introduceDomain", "@releaseDomain", "/vm", "/local/domain/0/backend/vif"]
    + DomainDetails.diskBackends.map { "/local/domain/0/backend/\($0)" }
  /// Hints that one look takes; more make everything stale.
  private static let hintLimit = 4096
  package static let reconnectPause: Duration = .seconds(1)

  private let connect: Connect
  private let interfaceExists: @Sendable (String) -> Bool
  private var store: (any XenStoreAccess)?
  private var nextConnection: Duration?
  package private(set) var state = XenStoreState.failed(
    ProbeError(.unavailable, "xenstored was not asked yet", remedy: "see whether xenstored runs"))

  package init(connect: @escaping Connect, interfaceExists: @escaping @Sendable (String) -> Bool) {
    self.connect = connect
    self.interfaceExists = interfaceExists
  }

  package var descriptor: Int32 { store?.descriptor ?? -1 }

  /// Connects where that is due, and takes the hints that have come.
  ///
  /// - `now`: of a clock that does not jump.
  package mutating func takeHints(at now: Duration) -> XenHints {
    connectIfNeeded(at: now)
    var hints = XenHints()
    guard let store else { return hints }
    var count = 0
    do throws(SystemFailure) {
      while let path = try store.nextEvent() {
        count += 1
        if count > Self.hintLimit { hints.areTooMany = true } else { hints.add(path) }
      }
    } catch { lose(error) }
    return hints
  }

  /// Reads what the toolstack wrote of domains, as far as xenstored answers.
  package mutating func read(_ domains: some Sequence<XenDomain>) -> [XenReading] {
    var readings: [XenReading] = []
    guard let store else { return readings }
    do throws(SystemFailure) {
      for domain in domains {
        let details = try DomainDetails.read(domain, from: store, interfaceExists: interfaceExists)
        readings.append(XenReading(incarnation: domain.incarnation, details: details))
      }
    } catch { lose(error) }
    return readings
  }

  private mutating func connectIfNeeded(at now: Duration) {
    guard store == nil, now >= nextConnection ?? now else { return }
    nextConnection = now + Self.reconnectPause
    do throws(ProbeError) {
      let opened = try connect()
      do throws(SystemFailure) { for path in Self.watchedPaths { try opened.watch(path) } } catch {
        throw ProbeError(.failed, error.description, remedy: "see whether `xenstore-ls` works on this host")
      }
      store = opened
      state = .connected
    } catch { state = .failed(error) }
  }

  private mutating func lose(_ error: SystemFailure) {
    store = nil
    state = .failed(
      ProbeError(.failed, error.description, remedy: "see whether xenstored runs; it is connected to again"))
  }
}

extension XenHints {
  /// Of `/local/domain/0/backend/KIND/NUMBER…`, `/vm/UUID…`, and others that only say "look".
  fileprivate mutating func add(_ path: String) {
    let parts = path.split(separator: "/", maxSplits: 6, omittingEmptySubsequences: true)
    if parts.count >= 6, parts[3] == "backend", let number = UInt32(parts[5]) {
      numbers.insert(DomainID(number))
    } else if parts.count >= 2, parts[0] == "vm", let uuid = DomainUUID(parts[1]) {
      uuids.insert(uuid)
    } else {
      areOfMore = true
    }
  }
}
