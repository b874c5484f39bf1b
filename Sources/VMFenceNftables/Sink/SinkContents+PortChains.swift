internal import Glibc
import VMFenceCore

// The chains at the guests' ports (`PortRules`), in a table of the netdev family that has the name of ours.

extension SinkContents {
  /// The table as the kernel has it.
  private struct PortImage {
    var flags: UInt32 = 0
    var owner: UInt32?
    /// Those that have what they should have.
    var chains: Set<String> = []
    /// By chain.
    var counts: [String: TrafficCount] = [:]
  }

  /// Goes on with the chains that an earlier run left.
  mutating func openPortChains() throws(NetlinkError) {
    guard hasIngressHook else { return }
    guard let image = try readPortChains() else { return }
    try checkOwner(image)
    batch.begin(.netdev, table: configuration.table, sequence: socket.takeSequence(16))
    if image.flags == (isOwned ? TableImage.persistFlag : 0) {
      portChains = image.chains
      guard isOwned else { return }
    } else {
      batch.deleteTable()
    }
    batch.addTable(flags: tableFlags, comment: Self.comment)
    try commitPortChains()
  }

  private func checkOwner(_ image: PortImage) throws(NetlinkError) {
    if let owner = image.owner, owner != socket.port { throw .held(owner, .netdev) }
  }

  /// A table that was not there before may have been made since by somebody who keeps it: then it is said whose it is.
  private mutating func commitPortChains() throws(NetlinkError) {
    do throws(NetlinkError) { try commit() } catch .refused(EPERM, let words) {
      if let image = try readPortChains() { try checkOwner(image) }
      throw .refused(EPERM, words)
    }
  }

  /// Sees to it that the ports where that is wanted have their chains, as far as the interfaces are there, and that no others have any.
  ///
  /// - `quarantined`: domains that are about to be cut off.
  mutating func guardPorts(alsoOf quarantined: Set<DomainUUID> = []) throws(NetlinkError) {
    // Before ports were named, those of an earlier run stay.
    guard hasIngressHook, guards != nil else { return }
    var wanted: [String: String] = [:]
    for (domain, ports) in described where quarantined.contains(domain) || mayNotSpeakToBridge(domain) {
      for name in ports.lazy.map(\.interface) {
        if let chain = portChain(of: name) { wanted[chain] = name }
      }
    }
    let new = wanted.filter { !portChains.contains($0.key) }
    let old = portChains.subtracting(wanted.keys)
    do throws(NetlinkError) {
      try writePortChains(adding: new, removing: old)
    } catch .refused {
      // An interface that goes meanwhile takes the others' chains with it, so each comes by itself.
      try writePortChains(adding: [:], removing: old)
      for (chain, name) in new {
        do throws(NetlinkError) {
          try writePortChains(adding: [chain: name], removing: [])
        } catch {
          if case .refused = error, portChain(of: name) != chain { continue }
          throw error
        }
      }
    }
  }

  /// nil when there is no such interface.
  private func portChain(of interface: String) -> String? {
    let number = socket.interfaceNumber(of: interface)
    return number == 0 ? nil : PortRules.chain(of: interface, number: number)
  }

  private func mayNotSpeakToBridge(_ domain: DomainUUID) -> Bool {
    antiSpoofing.kinds(for: domain).contains(.mac)
      || standing[FirewallMeasure.Key(scope: .domain(domain), kind: .quarantine)] != nil
  }

  private mutating func writePortChains(adding new: [String: String], removing old: Set<String>) throws(NetlinkError) {
    guard !new.isEmpty || !old.isEmpty else { return }
    batch.begin(.netdev, table: configuration.table, sequence: socket.takeSequence(Self.sequenceNumbers))
    batch.addTable(flags: tableFlags, comment: Self.comment)
    for chain in old {
      // Added first: the kernel may have removed it with its interface, and to delete what is absent would fail.
      batch.add(ChainSpecification(name: chain))
      batch.deleteChain(named: chain)
    }
    for (chain, interface) in new {
      batch.add(ChainSpecification(name: chain, base: PortRules.base), device: interface)
      batch.add(PortRules.rule(in: chain))
    }
    try commitPortChains()
    portChains.subtract(old)
    portChains.formUnion(new.keys)
  }

  /// Reads which chains are there, and writes those that are missing.
  mutating func mendPortChains() throws(NetlinkError) {
    guard hasIngressHook else { return }
    portChains = try readPortChains()?.chains ?? []
    try guardPorts()
  }

  /// Adds what was stopped at the ports that have a chain now: to that of all ports, and at those whose domains may not speak to the bridge by themselves.
  mutating func countAtPorts(_ counts: inout TrafficCounts) throws(NetlinkError) {
    guard hasIngressHook, let image = try readPortChains() else { return }
    let guarded = Set(
      described.filter { antiSpoofing.kinds(for: $0.key).contains(.mac) }.values.joined().map(\.interface))
    for (chain, count) in image.counts where count.packets > 0 {
      counts.spoofed[.mac, default: TrafficCount()] += count
      if let interface = PortRules.interface(of: chain), guarded.contains(interface) {
        counts.spoofedAtPorts[interface, default: [:]][.mac, default: TrafficCount()] += count
      }
    }
  }

  /// nil when there is no such table.
  private mutating func readPortChains() throws(NetlinkError) -> PortImage? {
    for _ in 0..<Self.readAttempts {
      do throws(NetlinkError) {
        return try readPortChainsOnce()
      } catch .interrupted {
        continue
      } catch .refused(ENOENT, _) {
        return nil
      }
    }
    throw .interrupted
  }

  private mutating func readPortChainsOnce() throws(NetlinkError) -> PortImage {
    var image = PortImage()
    (image.flags, image.owner) = try readTableFlags(.netdev)
    var comments: [String: [String]] = [:]
    try socket.ask(.rules, family: .netdev, table: configuration.table) { (message, bytes) throws(NetlinkError) in
      let rule = try ReadRule(message, bytes)
      guard rule.table == configuration.table else { return }
      comments[rule.chain, default: []].append(rule.comment)
      if let count = rule.count { image.counts[rule.chain, default: TrafficCount()] += count }
    }
    image.chains = Set(comments.filter { $0.value == [PortRules.comment] }.keys)
    return image
  }
}
