internal import Glibc
import VMFenceCore

/// What one rule of the set in force has cost.
public struct RuleCost: Hashable, Sendable {
  /// In the compiled rules.
  public var ruleIndex: Int
  /// How often its options were compared with a packet or a window of a stream: its head fitted, and what is searched for first was
  /// found.
  public var checks: UInt64
  public var matches: UInt64
  /// Time of all checks, of those that matched, and of the longest one.
  public var time: Duration
  public var timeOfMatches: Duration
  public var longest: Duration
}

/// Counts what each rule costs, when that is asked for (`profiling.rules.enabled`). The clock is read twice for each check then, which is
/// itself a good part of what a cheap check seems to cost; what all rules share (decoding, streams, the search) is in none.
struct RuleProfile: ~Copyable {
  private struct Entry {
    var checks: UInt64 = 0
    var matches: UInt64 = 0
    var nanoseconds: Int64 = 0
    var ofMatches: Int64 = 0
    var longest: Int64 = 0
  }

  /// Empty: nothing is counted.
  private var entries: [Entry]

  init(ruleCount: Int) { entries = Array(repeating: Entry(), count: ruleCount) }

  /// When a check begins; 0 when nothing is counted.
  @inline(__always)
  func start() -> Int64 { entries.isEmpty ? 0 : Self.now() }

  @inline(__always)
  mutating func note(_ rule: Int, since start: Int64, _ isMatch: Bool) {
    if !entries.isEmpty { count(rule, Self.now() - start, isMatch) }
  }

  private mutating func count(_ rule: Int, _ time: Int64, _ isMatch: Bool) {
    entries[rule].checks &+= 1
    entries[rule].nanoseconds &+= time
    entries[rule].longest = max(entries[rule].longest, time)
    guard isMatch else { return }
    entries[rule].matches &+= 1
    entries[rule].ofMatches &+= time
  }

  /// The corresponding C function is `clock_gettime(2)` with `CLOCK_MONOTONIC`.
  private static func now() -> Int64 {
    var time = timespec()
    // SAFETY: it writes one timespec.
    unsafe _ = clock_gettime(CLOCK_MONOTONIC, &time)
    return Int64(time.tv_sec) &* 1_000_000_000 &+ Int64(time.tv_nsec)
  }

  /// Of the rules that were checked at all, the costliest first.
  var costs: [RuleCost] {
    entries.indices.filter { entries[$0].checks > 0 }
      .sorted { (entries[$0].nanoseconds, $1) > (entries[$1].nanoseconds, $0) }
      .map { index in
        let entry = entries[index]
        return RuleCost(
          ruleIndex: index, checks: entry.checks, matches: entry.matches, time: .nanoseconds(entry.nanoseconds),
          timeOfMatches: .nanoseconds(entry.ofMatches), longest: .nanoseconds(entry.longest))
      }
  }
}
