#if Daemon
import Foundation
import VMFenceCore
import VMFenceIntegrity
import VMFenceStore

/// What a check found: a line each for people, or JSON lines.
struct BaselineReport {
  let baseline: Baseline
  let scan: BaselineScan
  let differences: [BaselineDifference]
  let announced: AnnouncedChanges

  init(_ baseline: Baseline, _ scan: BaselineScan, announced: AnnouncedChanges) {
    self.baseline = baseline
    self.scan = scan
    self.announced = announced
    differences = BaselineDifference.between(baseline.entries, scan.entries)
  }

  /// Those that nobody announced.
  var unexpected: Int { differences.count { !announced.covers($0.entry.path) } }

  func print(asJSON: Bool) {
    asJSON ? printJSON() : printText()
  }

  private func printText() {
    let output = Terminal.output
    let time = Date(timeIntervalSince1970: TimeInterval(baseline.time.nanoseconds / 1_000_000_000)).ISO8601Format()
    output.print(
      "\(baseline.disk.escapedForDisplay): baseline \(baseline.generation) of \(time), "
        + "\(baseline.entries.count) names; now \(scan.entries.count)")
    for difference in differences {
      let path = String(decoding: difference.entry.path, as: UTF8.self).escapedForDisplay
      let place = difference.entry.partition == 0 ? "" : "partition \(difference.entry.partition) "
      let mark = announced.covers(difference.entry.path) ? "  (announced)" : ""
      let word = difference.kind.rawValue.padding(toLength: 8, withPad: " ", startingAt: 0)
      output.print(output.styled(word, mark.isEmpty ? .red : .dim) + place + path + mark)
      for change in difference.changes {
        output.print("           \(change.attribute): \(short(change.old)) → \(short(change.new))")
      }
    }
    for damage in scan.damages.prefix(20) {
      output.print(output.styled("damage  ", .yellow) + damage.message.escapedForDisplay)
    }
    func count(_ kind: BaselineDifference.Kind) -> Int { differences.count { $0.kind == kind } }
    let summary =
      differences.isEmpty
      ? "nothing differs"
      : "\(count(.changed)) changed, \(count(.added)) added, \(count(.removed)) removed; "
        + "\(unexpected) of them not announced"
    output.print(summary + (scan.damageCount > 0 ? "; \(scan.damageCount) damages" : ""))
  }

  /// Hashes are compared, not read: the beginning does.
  private func short(_ value: String) -> String {
    value.isEmpty ? "none" : value.count == 64 ? String(value.prefix(16)) + "…" : value
  }

  private func printJSON() {
    for difference in differences {
      var line = JSONLine()
      line.object { json in
        json.member("record", "difference")
        json.member("kind", difference.kind.rawValue)
        if difference.entry.partition != 0 { json.member("partition", difference.entry.partition) }
        json.path("path", difference.entry.path)
        json.member("announced", announced.covers(difference.entry.path))
        if !difference.changes.isEmpty {
          json.array("changes", difference.changes) { json, change in
            json.object { json in
              json.member("attribute", change.attribute)
              json.member("old", change.old)
              json.member("new", change.new)
            }
          }
        }
      }
      Terminal.output.print(String(decoding: line.bytes, as: UTF8.self))
    }
    var line = JSONLine()
    line.object { json in
      json.member("record", "summary")
      json.member("disk", baseline.disk)
      json.member("generation", baseline.generation)
      json.member("baseline_files", baseline.entries.count)
      json.member("files", scan.entries.count)
      json.member("differences", differences.count)
      json.member("unexpected", unexpected)
      json.member("damages", scan.damageCount)
    }
    Terminal.output.print(String(decoding: line.bytes, as: UTF8.self))
  }
}

/// Changes that somebody said would come: patterns of paths of one disk, each until a time. Kept in the store.
struct AnnouncedChanges {
  private static let table = "announced"
  private let policy: ProtectionPolicy?

  /// Those in force at `time`.
  init(of disk: String, at time: Timestamp, in store: some StateStore) throws {
    var patterns: [String] = []
    let prefix = Array(disk.utf8) + [0]
    for record in try store.records(in: Self.table, from: prefix, to: Array(disk.utf8) + [1], limit: 4096) {
      guard record.value.count > 16 else { continue }
      let (from, until) = record.value.withRawSpan { ($0.u64(0), $0.u64(8)) }
      let now = UInt64(bitPattern: time.nanoseconds)
      if from <= now, now < until { patterns.append(String(decoding: record.value[16...], as: UTF8.self)) }
    }
    policy = patterns.isEmpty ? nil : try ProtectionPolicy(patterns.map { .init($0) })
  }

  /// Adds a window, and forgets those of this disk that are over.
  static func add(
    _ patterns: [String], of disk: String, from start: Timestamp, until end: Timestamp, to store: some StateStore
  ) throws {
    let prefix = Array(disk.utf8) + [0]
    var changes: [StateChange] = []
    for record in try store.records(in: table, from: prefix, to: Array(disk.utf8) + [1], limit: 4096) {
      let until = record.value.count > 16 ? record.value.withRawSpan { $0.u64(8) } : 0
      if until <= UInt64(bitPattern: start.nanoseconds) { changes.append(.remove(table: table, key: record.key)) }
    }
    for (index, pattern) in patterns.enumerated() {
      changes.append(
        .put(
          table: table, key: prefix + StateKey.time(start) + StateKey.number(UInt64(index)),
          value: StateKey.number(UInt64(bitPattern: start.nanoseconds))
            + StateKey.number(UInt64(bitPattern: end.nanoseconds)) + Array(pattern.utf8)))
    }
    try store.commit(changes)
  }

  func covers(_ path: [UInt8]) -> Bool { policy?.action(forPath: path) != nil }
}
#endif
