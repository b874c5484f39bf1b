#if Daemon
import Synchronization
import VMFenceCore
import VMFenceNftables

/// What the packet filter stops, by its counters. They are read beside the loop, since a kernel with many changes under way lets one wait.
final class DropWatch: Sendable {
  private static let interval: Duration = .seconds(10)

  private struct Contents {
    var counts: TrafficCounts?
    /// How many elements measures had when that was known last, and when that was.
    var elements: (count: Int, time: Timestamp)?
    /// Not looked at by the loop yet.
    var isNew = false
    var isReading = false
    var next: Timestamp?
    var problem: String?
  }

  private let contents = Mutex(Contents())

  /// Nothing is read where nothing carries measures out.
  func read(_ firewall: HostFirewall, at now: Timestamp) {
    let isDue = contents.withLock { contents in
      guard !contents.isReading, contents.next.map({ now >= $0 }) ?? true else { return false }
      contents.isReading = true
      contents.next = now + Self.interval
      return true
    }
    guard isDue else { return }
    Task {
      var (counts, problem) = (TrafficCounts?.none, String?.none)
      do throws(FirewallError) { counts = try await firewall.trafficCounts() } catch {
        problem = error.message
      }
      contents.withLock { contents in
        contents.isReading = false
        contents.problem = problem
        guard problem == nil else { return }
        contents.counts = counts
        contents.isNew = counts != nil
        if let count = counts?.elements { contents.elements = (count, now) }
      }
    }
  }

  /// As they were read last.
  var counts: TrafficCounts? { contents.withLock { $0.counts } }

  /// How many elements measures had in the kernel when that was known last, and when that was; nil: it never was.
  var elements: (count: Int, time: Timestamp)? { contents.withLock { $0.elements } }

  /// Why they are not read now.
  var problem: String? { contents.withLock { $0.problem } }

  /// nil when they were not read since the last call.
  func takeNew() -> TrafficCounts? {
    contents.withLock { contents in
      guard contents.isNew else { return nil }
      contents.isNew = false
      return contents.counts
    }
  }
}

extension LiveRun {
  /// Looks at what the packet filter stops, and tells of what guests may not send.
  func noteStopped(at now: Timestamp) {
    drops.read(firewall, at: now)
    guard let counts = drops.takeNew() else { return }
    var domains: [String: DomainDescription] = [:]
    for domain in snapshot?.domains ?? [] { for port in domain.ports { domains[port.interface] = domain } }
    for alert in spoofingAlerts.alerts(counts, domains, at: now) { note(.platform(alert)) }
  }
}
#endif
