#if Daemon
import Logging
import VMFenceCore
import VMFenceNftables

/// Has the packet filter cut the flows of packets that rules refused, and says in their alerts whether it did.
final class FlowCuts {
  struct Counters {
    /// Flows that were cut.
    var cut: UInt64 = 0
    /// Connections that were reset at both ends.
    var reset: UInt64 = 0
    /// Connections that should have been reset and were not.
    var notReset: UInt64 = 0
    /// Refused packets whose flows were not cut.
    var notCut: UInt64 = 0
  }

  /// How often a failure is told.
  private static let pace = Duration.seconds(10)

  private var refusals: FlowRefusals?
  private(set) var counters = Counters()
  private var toldFailures: UInt64 = 0
  private var toldLost: UInt64 = 0
  private var lastTold: Timestamp?
  private var lastProblem = ""

  /// Cuts nothing where nothing carries measures out.
  init(_ firewall: HostFirewall, logger: Logger) {
    guard case .nftables(let sink) = firewall else { return }
    if let problem = sink.resetProblem {
      logger.warning("\(problem): flows of rules that reject are cut, and their ends not told")
    }
    if let problem = sink.portProblem { logger.warning("\(problem)") }
    refusals = FlowRefusals(sink)
  }

  /// Acts on refused packets, unless measures are only imagined.
  ///
  /// - `lost`: refused packets that nobody took, since the start.
  /// - Returns: those whose flows are cut now.
  func act(on packets: [RefusedPacket], lost: UInt64, isDryRun: Bool) async -> Set<RefusedPacket.Name> {
    guard refusals != nil, !isDryRun else { return [] }
    if lost > toldLost {
      counters.notCut &+= lost - toldLost
      lastProblem = "there were too many at once"
      toldLost = lost
    }
    guard !packets.isEmpty else { return [] }
    do throws(FirewallError) {
      guard let outcome = try await refusals?.act(on: packets) else { return [] }
      counters.cut &+= UInt64(outcome.cut)
      counters.reset &+= UInt64(outcome.reset)
      counters.notReset &+= UInt64(outcome.notReset)
      counters.notCut &+= UInt64(outcome.withoutFlow + outcome.notCut)
      if outcome.withoutFlow > 0 { lastProblem = "packets without ports say of no flow" }
      if outcome.notCut > 0 {
        lastProblem = "so many are cut already (\(NftablesSink.flowShare) of a guest at the most); block their sources"
      }
      return outcome.packets
    } catch {
      counters.notCut &+= UInt64(packets.count { $0.verdict != .pass })
      lastProblem = error.message
      return []
    }
  }

  /// What is to be told of failures, not too often.
  func newFailures(at now: Timestamp) -> PlatformAlert? {
    guard counters.notCut > toldFailures, lastTold.map({ now - $0 >= Self.pace }) ?? true else { return nil }
    defer { (toldFailures, lastTold) = (counters.notCut, now) }
    return PlatformAlert(
      time: now, incarnation: nil, kind: .enforcementFailed,
      message: "flows of packets that rules refused were not cut: \(lastProblem.escapedForDisplay)", severity: 2,
      count: counters.notCut - toldFailures)
  }
}

extension Event {
  /// Marks an alert whose packet's flow was cut.
  mutating func noteCut(_ packets: Set<RefusedPacket.Name>) {
    guard case .alert(var alert) = self, alert.verdict != .pass,
      packets.contains(.init(alert.incarnation, alert.packetID))
    else { return }
    alert.isFlowCut = true
    self = .alert(alert)
  }
}
#endif
