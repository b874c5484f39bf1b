/// Counts forged and unknown source addresses, for reports that a guest cannot turn into a flood: a fixed number of
/// addresses per domain, and one count for the rest of them.
struct SourceEvents {
  enum Kind: UInt8 {
    case forgedMAC
    case forgedAddress
    case unknownMAC
  }

  private struct Entry {
    var kind: Kind
    /// An IP address, or a MAC address in `low`.
    var address: IPAddress
    var count: UInt64
  }

  /// Addresses that are told apart per domain and report.
  static let capacityPerGroup = 16

  /// By slot, and one group more for what concerns no domain.
  private var entries: [Entry]
  private var used: [Int]
  private var overflow: [UInt64]

  init(slotCount: Int) {
    let groups = slotCount + 1
    entries = Array(
      repeating: Entry(kind: .unknownMAC, address: .anyV4, count: 0), count: groups * Self.capacityPerGroup)
    used = Array(repeating: 0, count: groups)
    overflow = Array(repeating: 0, count: groups)
  }

  private var hostGroup: Int { used.count - 1 }

  mutating func record(_ kind: Kind, slot: Int?, mac: MACAddress) {
    record(kind, group: slot ?? hostGroup, IPAddress(v6High: 0, low: mac.rawValue))
  }

  mutating func record(_ kind: Kind, slot: Int, address: IPAddress) { record(kind, group: slot, address) }

  private mutating func record(_ kind: Kind, group: Int, _ address: IPAddress) {
    let start = group * Self.capacityPerGroup
    for index in start..<start + used[group] where entries[index].kind == kind && entries[index].address == address {
      entries[index].count &+= 1
      return
    }
    guard used[group] < Self.capacityPerGroup else {
      overflow[group] &+= 1
      return
    }
    entries[start + used[group]] = Entry(kind: kind, address: address, count: 1)
    used[group] += 1
  }

  /// What was counted, as alerts in the order of slots and of first sight; counting begins anew.
  mutating func drain(at time: Timestamp, _ identities: [DispatchTable.Identity?]) -> [PlatformAlert] {
    var alerts: [PlatformAlert] = []
    for group in used.indices where used[group] > 0 {
      let identity = group < hostGroup ? identities[group] : nil
      let who = identity.map { "domain \($0.name.escapedForDisplay)" } ?? "a captured interface"
      let start = group * Self.capacityPerGroup
      for entry in entries[start..<start + used[group]] {
        alerts.append(Self.alert(entry, time, identity, who))
      }
      if overflow[group] > 0 {
        alerts.append(
          PlatformAlert(
            time: time, incarnation: identity?.incarnation, kind: identity == nil ? .unknownSource : .spoofedSource,
            message: "\(who): more than \(Self.capacityPerGroup) different "
              + (identity == nil ? "unknown" : "forged") + " sources; these frames came from the others",
            count: overflow[group]))
      }
      used[group] = 0
      overflow[group] = 0
    }
    return alerts
  }

  private static func alert(
    _ entry: Entry, _ time: Timestamp, _ identity: DispatchTable.Identity?, _ who: String
  ) -> PlatformAlert {
    let mac = MACAddress(rawValue: entry.address.low)
    let message =
      switch entry.kind {
      case .forgedMAC: "\(who) sends frames with the MAC address \(mac), which is not its own"
      case .forgedAddress: "\(who) sends packets with the address \(entry.address), which is not its own"
      case .unknownMAC: "\(who) shows frames from \(mac) that concern no known domain"
      }
    return PlatformAlert(
      time: time, incarnation: identity?.incarnation,
      kind: entry.kind == .unknownMAC ? .unknownSource : .spoofedSource, message: message,
      severity: entry.kind == .unknownMAC ? 3 : 2, count: entry.count,
      source: entry.kind == .forgedAddress ? entry.address : nil)
  }
}
