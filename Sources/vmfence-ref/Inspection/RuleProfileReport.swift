#if Daemon
import Foundation
import VMFenceCore
import VMFenceDetection

/// What each rule cost, over all captures of a run: as people read it and as JSON.
struct RuleProfileReport {
  private struct Row: Encodable {
    var gid: UInt32
    var sid: UInt32
    var rev: UInt32
    var checks: UInt64
    var matches: UInt64
    /// Nanoseconds.
    var timeNs: Int64
    var timeMatchesNs: Int64
    var timeMaxNs: Int64
    /// Of the time of all rules.
    var percent: Double
  }

  private struct Document: Encodable {
    var sort = "time_ns"
    var rules: [Row]
  }

  private let rules: SnortRules
  private var costs: [Int: RuleCost] = [:]

  init(_ rules: SnortRules) { self.rules = rules }

  mutating func add(_ found: [RuleCost]) {
    for cost in found {
      guard var sum = costs[cost.ruleIndex] else {
        costs[cost.ruleIndex] = cost
        continue
      }
      sum.checks += cost.checks
      sum.matches += cost.matches
      sum.time += cost.time
      sum.timeOfMatches += cost.timeOfMatches
      sum.longest = max(sum.longest, cost.longest)
      costs[cost.ruleIndex] = sum
    }
  }

  private var rows: [Row] {
    let all = max(1, costs.values.reduce(0) { $0 + $1.time.wholeNanoseconds })
    return costs.values
      .sorted { ($0.time, $1.ruleIndex) > ($1.time, $0.ruleIndex) }
      .map { cost in
        let rule = rules.metadata(at: cost.ruleIndex)
        return Row(
          gid: rule.gid, sid: rule.sid, rev: rule.revision, checks: cost.checks, matches: cost.matches,
          timeNs: cost.time.wholeNanoseconds, timeMatchesNs: cost.timeOfMatches.wholeNanoseconds,
          timeMaxNs: cost.longest.wholeNanoseconds,
          percent: (Double(cost.time.wholeNanoseconds) / Double(all) * 10_000).rounded() / 100)
      }
  }

  /// Times in microseconds.
  var table: String {
    let heads = [
      "#", "gid", "sid", "rev", "checks", "matches", "time", "avg/check", "avg/match", "avg/non-match", "max", "%",
    ]
    var lines = [heads]
    for (index, row) in rows.enumerated() {
      func microseconds(_ time: Int64, over count: UInt64 = 1) -> String {
        count == 0 ? "0.0" : String(format: "%.1f", Double(time) / 1000 / Double(count))
      }
      lines.append([
        "\(index + 1)", "\(row.gid)", "\(row.sid)", "\(row.rev)", "\(row.checks)", "\(row.matches)",
        microseconds(row.timeNs), microseconds(row.timeNs, over: row.checks),
        microseconds(row.timeMatchesNs, over: row.matches),
        microseconds(row.timeNs - row.timeMatchesNs, over: row.checks - row.matches), microseconds(row.timeMaxNs),
        String(format: "%.2f", row.percent),
      ])
    }
    let widths = heads.indices.map { column in lines.map { $0[column].count }.max() ?? 0 }
    let body = lines.map { line in
      zip(line, widths).map { String(repeating: " ", count: $1 - $0.count) + $0 }.joined(separator: "  ")
    }
    return "rule profile, times in microseconds, sorted by time\n" + body.joined(separator: "\n")
  }

  func write(to path: String) throws {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    let data = try encoder.encode(Document(rules: rows))
    if path == "-" {
      Terminal.output.print(String(decoding: data, as: UTF8.self))
    } else {
      do { try OutputFile.replace(path, with: data + Data("\n".utf8)) } catch {
        throw OutputFile.failure(path, error)
      }
    }
  }
}
#endif
