#if Daemon
import VMFenceCore
import VMFenceDetection

/// What detectors counted by themselves, with the words for it, which come from this side.
extension DomainReport {
  var inspectorFigures: [(name: String, value: UInt64)] {
    zip(SnortRules.inspectorCounters, inspector).map { ($0.name, $1) }
  }

  /// The bounds that made the inspection less than it should be, and how often; those that were not reached are left out.
  var limits: [(name: String, count: UInt64)] {
    zip(SnortRules.inspectorCounters, inspector).filter { $0.kind == .limit && $1 > 0 }.map { ($0.name, $1) }
  }
}
#endif
