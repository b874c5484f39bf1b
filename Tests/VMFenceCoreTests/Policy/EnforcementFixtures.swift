import Synchronization
import VMFenceCore
import VMFenceTestKit

/// Notes what is to be done with domains, and does it unless it is told to fail.
final class RecordingControl: HypervisorControl {
  let calls = Mutex<[String]>([])
  let failure = Mutex<ProbeError?>(nil)
  /// What shuts down waits until this ends.
  let obedience: AsyncStream<Void>
  let obey: AsyncStream<Void>.Continuation

  init(isDisobedient: Bool = false) {
    (obedience, obey) = AsyncStream.makeStream()
    if !isDisobedient { obey.finish() }
  }

  private func call(_ text: String) throws(ProbeError) {
    if let error = failure.withLock({ $0 }) { throw error }
    calls.withLock { $0.append(text) }
  }

  func pause(_ domain: Incarnation) async throws(ProbeError) { try call("pause \(domain.domainID)") }
  func resume(_ domain: Incarnation) async throws(ProbeError) { try call("resume \(domain.domainID)") }
  func shutDown(_ domain: Incarnation) async throws(ProbeError) {
    for await _ in obedience {}
    try call("shutDown \(domain.domainID)")
  }
}

/// Refuses changes with one of some measures in them.
struct FussyFirewall: FirewallSink {
  let inner: RecordingFirewallSink
  var refused: Set<FirewallMeasureKind>

  func apply(_ change: FirewallChange) async throws(FirewallError) -> UInt64 {
    if change.add.contains(where: { refused.contains($0.key.kind) }) { throw FirewallError(.unsupported, "cannot") }
    return try await inner.apply(change)
  }

  func replace(with measures: [FirewallMeasure], at time: Timestamp) async throws(FirewallError) -> UInt64 {
    try await inner.replace(with: measures, at: time)
  }

  func readBack(at time: Timestamp) async throws(FirewallError) -> FirewallState { try await inner.readBack(at: time) }
  func acknowledgements() async -> AsyncStream<FirewallAcknowledgement> { await inner.acknowledgements() }
}
