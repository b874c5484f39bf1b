internal import Synchronization

/// What is known of a domain besides its number, for whoever has to name it: notification and policy.
public struct DomainEntry: Sendable, Hashable {
  public var description: DomainDescription
  /// The state of its detector, if a supervisor has said.
  public var state: LifecycleState?

  public init(description: DomainDescription, state: LifecycleState? = nil) {
    self.description = description
    self.state = state
  }
}

/// The domains of this host by incarnation and by address, shared by everything that names them. The supervisor writes it,
/// notification and policy read it. Safe to use from any thread.
public final class DomainDirectory: Sendable {
  private struct Contents {
    var entries: [Incarnation: DomainEntry] = [:]
    /// Who may use an address. Several during a migration to the same host.
    var owners: [IPAddress: [Incarnation]] = [:]

    /// How many addresses of guests lie in an IPv6 /64, by its upper half: what most look-ups of networks ask.
    var v6Sites: [UInt64: Int] = [:]

    mutating func addAddresses(of domain: DomainDescription) {
      for address in domain.ports.flatMap(\.addresses) {
        owners[address, default: []].append(domain.incarnation)
        if address.family == .v6 { v6Sites[address.high, default: 0] += 1 }
      }
    }

    mutating func forgetAddresses(of incarnation: Incarnation) {
      for address in entries[incarnation]?.description.ports.flatMap(\.addresses) ?? [] {
        if let position = owners[address]?.firstIndex(of: incarnation) { owners[address]?.remove(at: position) }
        if owners[address]?.isEmpty == true { owners[address] = nil }
        guard address.family == .v6, let count = v6Sites[address.high] else { continue }
        v6Sites[address.high] = count > 1 ? count - 1 : nil
      }
    }
  }

  private let contents = Mutex(Contents())

  public init(_ domains: [DomainDescription] = []) {
    for domain in domains { update(domain) }
  }

  /// Adds a domain, or replaces what is known of it; its state stays.
  public func update(_ domain: DomainDescription) {
    contents.withLock { contents in
      let state = contents.entries[domain.incarnation]?.state
      contents.forgetAddresses(of: domain.incarnation)
      contents.entries[domain.incarnation] = DomainEntry(description: domain, state: state)
      contents.addAddresses(of: domain)
    }
  }

  /// Says in which state the domain's detector is. Of a domain that is not known, nothing is kept.
  public func setState(_ state: LifecycleState, of incarnation: Incarnation) {
    contents.withLock { $0.entries[incarnation]?.state = state }
  }

  /// Takes the state from what a lifecycle says; other events change nothing. For whoever hands events on, before the sinks get them.
  public func note(_ event: Event) {
    if case .lifecycle(let report) = event, case .transition(_, _, let state) = report.kind {
      setState(state, of: report.incarnation)
    }
  }

  /// Forgets a domain. Call it when no more events of it can come.
  public func remove(_ incarnation: Incarnation) {
    contents.withLock { contents in
      contents.forgetAddresses(of: incarnation)
      contents.entries[incarnation] = nil
    }
  }

  public func entry(for incarnation: Incarnation) -> DomainEntry? {
    contents.withLock { $0.entries[incarnation] }
  }

  /// All of them, in the order of their incarnations.
  public var all: [DomainEntry] {
    contents.withLock { $0.entries.values.sorted { $0.description.incarnation < $1.description.incarnation } }
  }

  /// The domains that may use `address`.
  public func owners(of address: IPAddress) -> [DomainEntry] {
    contents.withLock { contents in
      (contents.owners[address] ?? []).compactMap { contents.entries[$0] }
    }
  }

  /// The domains with an address in `network`, in the order of their incarnations.
  public func owners(in network: IPNetwork) -> [DomainEntry] {
    if network.isSingleAddress { return owners(of: network.base) }
    return contents.withLock { contents in
      if network.base.family == .v6, network.prefix == 64, contents.v6Sites[network.base.high] == nil { return [] }
      return contents.entries.values
        .filter { $0.description.ports.contains { $0.addresses.contains(where: network.contains) } }
        .sorted { $0.description.incarnation < $1.description.incarnation }
    }
  }
}
