import Foundation

@testable import VMFenceCore

/// A policy that goes on with what a log has.
enum Restart {
  private static let guest = Incarnation(uuid: DomainUUID(high: 7, low: 1), domainID: DomainID(1))
  private static let source = IPAddress(v4: 0xCB00_7107)
  private static let time = Timestamp(seconds: 1000)

  private static let directory = DomainDirectory([
    DomainDescription(
      incarnation: guest, name: "web", tenant: TenantID("acme"),
      ports: [NetworkPort(interface: "vif1.0", mac: MACAddress(rawValue: 0x0016_3E00_0001))])
  ])
  private static let encoder = EVEEncoder(node: "fuzz", directory: directory)

  private static func make(measures: Int) -> PolicyUpdater {
    let rule = PolicyRule(
      name: "p", selectors: [.allAlerts], counting: Counting(per: .source, count: 1, within: .seconds(60)),
      ladder: [LadderStep(.notify), LadderStep(.block, for: .seconds(60), times: 3)])
    do throws(PolicyError) {
      return try PolicyUpdater(
        policy: Policy(rules: [rule], capacities: .init(offenders: 64, measures: measures, pending: 4)),
        directory: directory)
    } catch { fatalError(error.description) }
  }

  static func check(_ decisions: [Decision]) {
    var (updater, small) = (make(measures: 1024), make(measures: 2))
    let lifted = updater.restore(decisions, at: time)
    _ = small.restore(decisions, at: time)
    precondition(small.measuresInForce.count <= 2 && small.pending.count <= 4, "more than there is room for")
    precondition(updater.measuresInForce.count <= decisions.count && updater.pending.count <= 4)
    for measure in updater.measuresInForce {
      precondition(measure.expires.map { $0 > time } ?? true, "a measure whose time is over")
    }
    // One decision after the other, as they were taken; of those that are not, which is the last is a matter of taste.
    if zip(decisions, decisions.dropFirst()).allSatisfy({ $0.id < $1.id }) { compare(updater) }
    let number = decisions.map(\.id).max() ?? 0
    let next = updater.handle(alert, at: time + .seconds(1))
    // What waited and has no room keeps its own.
    let fresh = lifted.filter { $0.status != .withheld } + next
    precondition(fresh.allSatisfy { $0.id > number }, "a number that is another decision's")
    for decision in decisions + lifted + next {
      let line = encoder.encode(.decision(decision))
      checkShown(String(decoding: line, as: UTF8.self))
      precondition((try? JSONSerialization.jsonObject(with: Data(line))) is [String: Any], "a line that is no JSON")
    }
  }

  /// What a compacted log keeps comes to the same.
  private static func compare(_ updater: PolicyUpdater) {
    var again = make(measures: 1024)
    _ = again.restore(updater.liveDecisions, at: time)
    precondition(again.measuresInForce == updater.measuresInForce, "a compacted log has other measures")
    precondition(again.pending == updater.pending, "a compacted log has others that wait")
    precondition(again.liveDecisions == updater.liveDecisions, "a compacted log comes to something else")
  }

  private static let alert = Event.alert(
    Alert(
      time: time, incarnation: guest, packetID: 0,
      rule: RuleMetadata(sid: 1, message: "m", classification: "c", priority: 1), flowID: 1, source: source,
      destination: IPAddress(v4: 0xC000_0201), sourcePort: 4000, destinationPort: 80, ipProtocol: 6,
      direction: .toServer, isEstablished: true))
}
