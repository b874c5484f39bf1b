#if Daemon
import Foundation
import VMFenceBlock
import VMFenceControl
import VMFenceCore
import VMFenceIntegrity

/// What the loop needs of an observer besides its verdicts.
protocol DiskWatcher: BlockObserver, ~Copyable {
  mutating func advance(to time: Timestamp)
  mutating func finish(at time: Timestamp)
  mutating func drainEvents() -> [FileEvent]
  mutating func drainKeptContents() -> [KeptContents]
  mutating func expect(_ patterns: [String], from: Timestamp, until: Timestamp) throws(IntegrityError)
  func expected(at time: Timestamp) -> [(patterns: [String], until: Timestamp)]
  var heldRequest: IntegrityMonitor.HeldRequest? { get }
  mutating func decide(_ verdict: BlockVerdict) -> Bool
  var counters: [(name: String, value: UInt64)] { get }
}

extension DiskMonitor: DiskWatcher {
  var counters: [(name: String, value: UInt64)] {
    let statistics = statistics
    return [
      ("monitor_hits", statistics.hits), ("monitor_denied", statistics.denied), ("monitor_gaps", statistics.gaps),
      ("monitor_resyncs", statistics.resyncs), ("monitor_damages", statistics.damages),
      ("monitor_lost_events", statistics.lostEvents), ("monitor_held", statistics.held),
      ("monitor_fast_commits", statistics.fastCommits),
      ("monitor_lost_contents", statistics.lostContents),
    ]
  }
}

/// Watches nothing and lets everything pass.
struct PassingObserver: DiskWatcher, ~Copyable {
  mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict { .allow }
  mutating func observeGap(at time: Timestamp, reason: String) {}
  mutating func advance(to time: Timestamp) {}
  mutating func finish(at time: Timestamp) {}
  mutating func drainEvents() -> [FileEvent] { [] }
  mutating func drainKeptContents() -> [KeptContents] { [] }
  mutating func expect(_ patterns: [String], from: Timestamp, until: Timestamp) throws(IntegrityError) {
    throw IntegrityError(.badPattern, "nothing is watched on this disk", remedy: "protect something first")
  }
  func expected(at time: Timestamp) -> [(patterns: [String], until: Timestamp)] { [] }
  var heldRequest: IntegrityMonitor.HeldRequest? { nil }
  mutating func decide(_ verdict: BlockVerdict) -> Bool { false }
  var counters: [(name: String, value: UInt64)] { [] }
}

/// Serves until the end, and tells what the watcher sees within a few milliseconds.
struct DiskService {
  /// How long an event may wait while requests come, and for as long after the last as the monitor holds changes back.
  private static let busyInterval = Duration.milliseconds(5)
  private static let idleInterval = Duration.milliseconds(500)
  private static let idleAfter = Duration.seconds(5)
  private static let statisticsInterval = Duration.seconds(60)

  let clock: SystemClock
  let output: EventOutput
  let incarnation: Incarnation
  var desk: ControlDesk?
  var keeper: ContentsKeeper?

  func run<Watcher: DiskWatcher & ~Copyable>(_ server: inout NBDServer, _ watcher: inout Watcher) throws {
    let start = clock.now
    var lastRequest = start
    var lastStatistics = start
    output.write(watcher.drainEvents(), at: start)
    do throws(BlockSourceError) {
      while true {
        let before = clock.now
        let isIdle = before - lastRequest >= Self.idleAfter
        // The first request after a rest ends it: what it changes is told as soon as at any other time.
        let outcome = try server.deliver(
          limit: isIdle ? 1 : .max, until: before + (isIdle ? Self.idleInterval : Self.busyInterval), to: &watcher)
        let now = clock.now
        if outcome.requests > 0 { lastRequest = now }
        watcher.advance(to: now)
        desk?.serve(at: now) { answer($0, server.statistics, &watcher, at: now) }
        if outcome.isAtEnd { watcher.finish(at: now) }
        keeper?.keep(watcher.drainKeptContents(), at: now, output, incarnation)
        output.write(watcher.drainEvents(), at: now)
        if outcome.isAtEnd || now - lastStatistics >= Self.statisticsInterval {
          lastStatistics = now
          output.write(statistics(server.statistics, watcher.counters, at: now, since: start))
        }
        if outcome.isAtEnd { return }
      }
    } catch {
      throw VMFenceDisk.end(71, error.description)
    }
  }

  /// What an operator asks.
  private func answer<Watcher: DiskWatcher & ~Copyable>(
    _ request: DiskControlRequest, _ statistics: NBDStatistics, _ watcher: inout Watcher, at now: Timestamp
  ) -> Result<DiskControlStatus, ControlFailure> {
    switch request.verb {
    case .status: break
    case .expect:
      guard let paths = request.paths, !paths.isEmpty, let duration = request.duration, duration > 0,
        duration <= DiskControlRequest.durationLimit
      else {
        return .failure(ControlFailure("`expect` needs `paths`, and a `duration` of at most seven days in seconds"))
      }
      do throws(IntegrityError) { try watcher.expect(paths, from: now, until: now + .seconds(duration)) } catch {
        return .failure(ControlFailure(error))
      }
    case .decide:
      guard let verdict = request.verdict, let held = watcher.heldRequest, held.sequence == request.request,
        watcher.decide(verdict == .allow ? .allow : .deny)
      else {
        return .failure(
          ControlFailure("no such request waits for a decision", remedy: "`status` says which does, by its number"))
      }
    }
    let windows = watcher.expected(at: now).map {
      DiskControlStatus.Window(paths: $0.patterns, remaining: ($0.until - now).wholeSeconds)
    }
    let held = watcher.heldRequest.flatMap { held in
      held.decision != nil
        ? nil
        : DiskControlStatus.Held(
          request: held.sequence, paths: held.paths.map { String(decoding: $0, as: UTF8.self).escapedForDisplay },
          waiting: (now - held.since).wholeSeconds, remaining: (held.deadline - now).wholeSeconds)
    }
    return .success(
      DiskControlStatus(
        expected: windows, held: held,
        requests: statistics.reads + statistics.writes + statistics.otherRequests, denied: statistics.denied))
  }

  private func statistics(
    _ server: NBDStatistics, _ watcher: [(name: String, value: UInt64)], at now: Timestamp, since start: Timestamp
  ) -> EVEStatistics {
    EVEStatistics(
      time: now, uptime: now - start, incarnation: incarnation,
      counters: [
        ("disk_clients", server.clients), ("disk_refused_clients", server.refusedClients),
        ("disk_protocol_errors", server.protocolErrors), ("disk_reads", server.reads), ("disk_writes", server.writes),
        ("disk_other_requests", server.otherRequests), ("disk_bytes_read", server.bytesRead),
        ("disk_bytes_written", server.bytesWritten), ("disk_denied", server.denied),
        ("disk_refused_requests", server.refusedRequests), ("disk_failures", server.diskFailures),
        ("events_lost", output.lost), ("contents_kept", keeper?.kept ?? 0), ("contents_lost", keeper?.lost ?? 0),
      ] + watcher)
  }
}

extension Duration {
  /// In seconds, to the millisecond.
  fileprivate var wholeSeconds: Double { Double(wholeNanoseconds / 1_000_000) / 1000 }
}

/// SIGTERM and SIGINT end the service; a handler may ring an event descriptor.
enum Signals {
  // SAFETY: written once by the main thread, before the first request; read by handlers only.
  nonisolated(unsafe) static var stopper: NBDStopper?

  static func install() {
    signal(SIGPIPE, SIG_IGN)
    signal(SIGTERM, noteStop)
    signal(SIGINT, noteStop)
    // Whoever started this may have had them blocked.
    var ends = sigset_t()
    // SAFETY: the set is written, then read.
    unsafe sigemptyset(&ends)
    unsafe sigaddset(&ends, SIGTERM)
    unsafe sigaddset(&ends, SIGINT)
    unsafe pthread_sigmask(SIG_UNBLOCK, &ends, nil)
  }
}

private func noteStop(_: Int32) {
  // SAFETY: written once, before the first request; a signal before that ends nothing and must be sent again.
  unsafe Signals.stopper?.stop()
}
#endif
