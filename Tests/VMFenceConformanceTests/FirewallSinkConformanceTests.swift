import Testing
import VMFenceConformance
import VMFenceCore
import VMFenceTestKit

/// A sink with one fault, to show that the suite sees it.
private struct FaultySink: FirewallSink {
  enum Fault: CaseIterable {
    case overwritesOnConflict, forgetsExpiry, keepsFirstExpiry, changesOnConflict, forgetsRemoval, keepsOnReplace,
      fixedGeneration, failsOnAbsentRemoval, losesDecision, acknowledgesNothing
  }

  let fault: Fault
  let inner: RecordingFirewallSink

  init(_ fault: Fault) {
    self.fault = fault
    inner = RecordingFirewallSink(acknowledgesAtOnce: fault != .acknowledgesNothing)
  }

  func apply(_ original: FirewallChange) async throws(FirewallError) -> UInt64 {
    var change = original
    let standing = try await inner.readBack(at: change.time).measures
    switch fault {
    case .overwritesOnConflict: change.from = inner.generation
    case .changesOnConflict:
      if change.from != inner.generation {
        for key in change.remove { inner.tamper(removing: key) }
      }
    case .keepsFirstExpiry:
      change.add = change.add.map { measure in standing.first { $0.key == measure.key } ?? measure }
    case .forgetsExpiry:
      change.add = change.add.map { measure in
        FirewallMeasure(scope: measure.key.scope, kind: measure.key.kind, expires: nil, decision: measure.decision)
      }
    case .losesDecision:
      change.add = change.add.map { measure in
        FirewallMeasure(scope: measure.key.scope, kind: measure.key.kind, expires: measure.expires, decision: 0)
      }
    case .forgetsRemoval: change.remove = []
    case .failsOnAbsentRemoval:
      if change.remove.contains(where: { key in !standing.contains { $0.key == key } }) {
        throw FirewallError(.failed, "no such element")
      }
    case .keepsOnReplace, .fixedGeneration, .acknowledgesNothing: break
    }
    let generation = try await inner.apply(change)
    return fault == .fixedGeneration ? change.from : generation
  }

  func replace(with measures: [FirewallMeasure], at time: Timestamp) async throws(FirewallError) -> UInt64 {
    let standing = try await inner.readBack(at: time).measures
    return try await inner.replace(with: fault == .keepsOnReplace ? standing + measures : measures, at: time)
  }

  func readBack(at time: Timestamp) async throws(FirewallError) -> FirewallState { try await inner.readBack(at: time) }
  func acknowledgements() async -> AsyncStream<FirewallAcknowledgement> { await inner.acknowledgements() }
}

@Suite("FirewallSink conformance")
struct FirewallSinkConformanceTests {
  @Test("the recording sink conforms")
  func recorder() async throws {
    try await FirewallSinkConformance().check { RecordingFirewallSink() }
  }

  @Test("a sink with a fault is found out", arguments: FaultySink.Fault.allCases)
  private func faults(fault: FaultySink.Fault) async throws {
    await withKnownIssue {
      try await FirewallSinkConformance().check { FaultySink(fault) }
    }
  }
}
