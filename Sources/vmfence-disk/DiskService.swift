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
  var hasEvents: Bool { get }
  var nextSettling: Timestamp? { get }
  mutating func drainEvents() -> [FileEvent]
  mutating func drainKeptContents() -> [KeptContents]
  mutating func expect(_ patterns: [String], from: Timestamp, until: Timestamp) throws(IntegrityError)
  func expected(at time: Timestamp) -> [(patterns: [String], until: Timestamp)]
  mutating func nextContents() -> FileContents?
  var refusesFastCommits: Bool { get }
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
      ("monitor_refused_fast_commits", statistics.refusedFastCommits),
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
  var hasEvents: Bool { false }
  var nextSettling: Timestamp? { nil }
  mutating func drainEvents() -> [FileEvent] { [] }
  mutating func drainKeptContents() -> [KeptContents] { [] }
  mutating func expect(_ patterns: [String], from: Timestamp, until: Timestamp) throws(IntegrityError) {
    throw IntegrityError(.badPattern, "nothing is watched on this disk", remedy: "protect something first")
  }
  func expected(at time: Timestamp) -> [(patterns: [String], until: Timestamp)] { [] }
  mutating func nextContents() -> FileContents? { nil }
  var refusesFastCommits: Bool { false }
  var heldRequest: IntegrityMonitor.HeldRequest? { nil }
  mutating func decide(_ verdict: BlockVerdict) -> Bool { false }
  var counters: [(name: String, value: UInt64)] { [] }
}

/// Serves until the end, and tells what the watcher sees within a few milliseconds.
struct DiskService {
  /// How often it is looked at everything else while requests come. Events, and changes that the monitor holds back, are not waited for
  /// so long.
  private static let busyInterval = Duration.milliseconds(20)
  private static let idleInterval = Duration.milliseconds(500)
  private static let idleAfter = Duration.seconds(5)
  private static let statisticsInterval = Duration.seconds(60)

  private static let fastCommitLimit =
    "the file system has fast commits, which are not read: they are refused where metadata are judged (freeze, deny-metadata), and "
    + "the guest's kernel commits in full instead"

  let clock: SteadyClock
  let output: EventOutput
  let incarnation: Incarnation
  var desk: ControlDesk?
  var keeper: ContentsKeeper?
  var contents: ContentDesk?
  var windows: WindowFile?

  func run<Watcher: DiskWatcher & ~Copyable>(_ server: inout NBDServer, _ watcher: inout Watcher) throws {
    let start = clock.now
    var lastRequest = start
    var lastStatistics = start
    var told = Told()
    reopenWindows(&watcher, at: start)
    tell(watcher.drainEvents(), at: start)
    do throws(BlockSourceError) {
      while true {
        _ = clock.look()
        output.offset = clock.offset
        let before = clock.now
        let isIdle = before - lastRequest >= Self.idleAfter
        // The first request after a rest ends it: what it changes is told as soon as at any other time.
        var end = before + (isIdle ? Self.idleInterval : Self.busyInterval)
        if let settling = watcher.nextSettling { end = max(before, min(end, settling)) }
        let outcome = try server.deliver(limit: isIdle ? 1 : .max, until: end, to: &watcher) {
          $0.hasEvents || $0.nextSettling.map { $0 < end } ?? false
        }
        let now = clock.now
        if outcome.requests > 0 { lastRequest = now }
        watcher.advance(to: now)
        serveDesk(&watcher, server.statistics, &told, at: now)
        if outcome.isAtEnd { watcher.finish(at: now) }
        keeper?.keep(watcher.drainKeptContents(), at: now, output, incarnation)
        tell(watcher.drainEvents(), at: now)
        compareContents(&watcher, all: outcome.isAtEnd, at: now)
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

  /// What those who follow were told last, and whether a limit was.
  private struct Told {
    var held: (request: UInt64, isDecided: Bool)?
    var limit = false
  }

  private func serveDesk<Watcher: DiskWatcher & ~Copyable>(
    _ watcher: inout Watcher, _ statistics: NBDStatistics, _ told: inout Told, at now: Timestamp
  ) {
    desk?.serve(at: now) { answer($0, statistics, &watcher, at: now) }
    let held = watcher.heldRequest.map { ($0.sequence, $0.decision != nil) }
    if held?.0 != told.held?.request || held?.1 != told.held?.isDecided {
      told.held = held
      desk?.tell(status(statistics, &watcher, at: now))
    }
    // Fast commits may be turned on at any time.
    if watcher.refusesFastCommits, !told.limit {
      VMFenceDisk.log(Self.fastCommitLimit)
      output.write(
        PlatformAlert(
          time: now, incarnation: incarnation, kind: .integrityLimit, message: Self.fastCommitLimit, severity: 2))
    }
    told.limit = watcher.refusesFastCommits
  }

  private func compareContents<Watcher: DiskWatcher & ~Copyable>(
    _ watcher: inout Watcher, all: Bool, at now: Timestamp
  ) {
    guard let contents else { return }
    while all || contents.hasRoom, let next = watcher.nextContents() { contents.take(next) }
    tell(contents.drain(all: all), at: now)
  }

  private func tell(_ events: [FileEvent], at now: Timestamp) {
    output.write(events, at: now)
    desk?.tell(events, shiftedBy: output.offset)
  }

  /// Windows that a process before this one was told of.
  private func reopenWindows<Watcher: DiskWatcher & ~Copyable>(_ watcher: inout Watcher, at now: Timestamp) {
    for (paths, remaining) in windows?.remaining(at: now) ?? [] {
      // Of a disk on which nothing is watched any more, nothing is expected.
      try? watcher.expect(paths, from: now, until: now + remaining)
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
      if let failure = expect(paths, for: .seconds(duration), &watcher, at: now) { return .failure(failure) }
    case .follow, .acknowledge: break
    case .decide:
      guard let verdict = request.verdict, let held = watcher.heldRequest, held.sequence == request.request,
        watcher.decide(verdict == .allow ? .allow : .deny)
      else {
        return .failure(
          ControlFailure("no such request waits for a decision", remedy: "`status` says which does, by its number"))
      }
    }
    return .success(status(statistics, &watcher, at: now))
  }

  /// Opens a window once it is written down.
  private func expect<Watcher: DiskWatcher & ~Copyable>(
    _ paths: [String], for duration: Duration, _ watcher: inout Watcher, at now: Timestamp
  ) -> ControlFailure? {
    let open = Self.windows(watcher, at: now)
    let all = open + [DiskControlStatus.Window(paths: paths, remaining: duration.wholeSeconds)]
    guard WindowFile.fits(all) else {
      return ControlFailure(
        "the windows that are open have too many paths together", remedy: "announce fewer patterns in more general form"
      )
    }
    if let windows, !windows.write(all, at: now + output.offset) {
      return ControlFailure(
        "the window cannot be written to \(windows.path.escapedForDisplay), and was not opened",
        remedy: "see what is wrong with its disk")
    }
    do throws(IntegrityError) {
      try watcher.expect(paths, from: now, until: now + duration)
      return nil
    } catch {
      _ = windows?.write(open, at: now + output.offset)
      return ControlFailure(error)
    }
  }

  private static func windows<Watcher: DiskWatcher & ~Copyable>(
    _ watcher: borrowing Watcher, at now: Timestamp
  ) -> [DiskControlStatus.Window] {
    watcher.expected(at: now).map { .init(paths: $0.patterns, remaining: ($0.until - now).wholeSeconds) }
  }

  /// A path, of which a guest chooses the length, in what is told of it: an answer must not become longer than its socket takes.
  private static let shownBytes = 512

  private func status<Watcher: DiskWatcher & ~Copyable>(
    _ statistics: NBDStatistics, _ watcher: inout Watcher, at now: Timestamp
  ) -> DiskControlStatus {
    let held = watcher.heldRequest.flatMap { held in
      held.decision != nil
        ? nil
        : DiskControlStatus.Held(
          request: held.sequence,
          paths: held.paths.map { path in
            String(decoding: path.prefix(Self.shownBytes), as: UTF8.self).escapedForDisplay
              + (path.count > Self.shownBytes ? "…" : "")
          },
          waiting: (now - held.since).wholeSeconds, remaining: (held.deadline - now).wholeSeconds)
    }
    return DiskControlStatus(
      expected: Self.windows(watcher, at: now), held: held,
      requests: statistics.reads + statistics.writes + statistics.otherRequests, denied: statistics.denied,
      limits: watcher.refusesFastCommits ? [Self.fastCommitLimit] : [])
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
        ("disk_bytes_written", server.bytesWritten), ("disk_bytes_written_behind", server.bytesWrittenBehind),
        ("disk_denied", server.denied),
        ("disk_refused_requests", server.refusedRequests), ("disk_failures", server.diskFailures),
        ("events_lost", output.lost), ("contents_compared", contents?.statistics.files ?? 0),
        ("contents_matched", contents?.statistics.matches ?? 0),
        ("contents_lost_matches", contents?.statistics.lostMatches ?? 0), ("contents_kept", keeper?.kept ?? 0),
        ("contents_lost", keeper?.lost ?? 0),
      ] + watcher)
  }
}

extension Duration {
  /// In seconds, to the millisecond.
  fileprivate var wholeSeconds: Double { Double(wholeNanoseconds / 1_000_000) / 1000 }
}

/// SIGTERM and SIGINT end the service; a handler may ring an event descriptor. Those that come between `install` and `listen` wait.
enum Signals {
  // SAFETY: written once by the main thread, before the first request; read by handlers only.
  nonisolated(unsafe) fileprivate static var stopper: NBDStopper?

  static func install() {
    signal(SIGPIPE, SIG_IGN)
    signal(SIGTERM, noteStop)
    signal(SIGINT, noteStop)
    mask(SIG_BLOCK)
  }

  /// Lets them end what the stopper is of. Whoever started this may have had them blocked.
  static func listen(_ stopper: NBDStopper) {
    // SAFETY: written once, here, while no handler runs.
    unsafe Self.stopper = stopper
    mask(SIG_UNBLOCK)
  }

  /// Of this thread, and of those that it starts later.
  private static func mask(_ how: Int32) {
    var ends = sigset_t()
    // SAFETY: the set is written, then read.
    unsafe sigemptyset(&ends)
    unsafe sigaddset(&ends, SIGTERM)
    unsafe sigaddset(&ends, SIGINT)
    unsafe pthread_sigmask(how, &ends, nil)
  }
}

private func noteStop(_: Int32) {
  // SAFETY: written once, before the signals that this handles are let through.
  unsafe Signals.stopper?.stop()
}
#endif
