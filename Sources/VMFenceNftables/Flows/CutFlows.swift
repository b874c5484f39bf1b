import VMFenceCore

/// The flows that are cut, by their `identity`, and until when on the kernel's clock. Bounded, in all and for each domain.
struct CutFlows {
  private var ends: [FlowCut: UInt64] = [:]
  private var counts: [DomainUUID: Int] = [:]
  /// When those that have ended were looked for last.
  private var lastLook: UInt64 = 0

  var count: Int { ends.count }

  subscript(_ identity: FlowCut) -> UInt64? { ends[identity] }

  mutating func set(_ identity: FlowCut, until end: UInt64) {
    if ends.updateValue(end, forKey: identity) == nil { counts[identity.domain, default: 0] += 1 }
  }

  mutating func removeAll() { (ends, counts) = ([:], [:]) }

  /// Takes those out of `new` for which there is no room, and returns them.
  mutating func takeExcess(from new: inout [FlowCut: FlowCut], at now: UInt64) -> [FlowCut] {
    if ends.count + new.count > NftablesSink.flowShare { forgetEnded(at: now) }
    var left: [FlowCut] = []
    var (total, added) = (ends.count, counts)
    for (identity, flow) in new where ends[identity] == nil {
      let count = added[identity.domain, default: 0]
      if total < NftablesSink.flowCapacity, count < NftablesSink.flowShare {
        total += 1
        added[identity.domain] = count + 1
      } else {
        left.append(flow)
      }
    }
    for flow in left { new[flow.identity] = nil }
    return left
  }

  /// Looks at all of them, so not more than once a second.
  private mutating func forgetEnded(at now: UInt64) {
    guard lastLook == 0 || now >= lastLook + 1_000_000_000 else { return }
    lastLook = now
    ends = ends.filter { now < $0.value }
    counts = ends.keys.reduce(into: [:]) { $0[$1.domain, default: 0] += 1 }
  }
}
