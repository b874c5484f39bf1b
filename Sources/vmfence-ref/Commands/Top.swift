#if Daemon
import ArgumentParser
import Foundation
import VMFenceConfiguration
import VMFenceControl
import VMFenceCore

/// `vmfence-ref top`
struct Top: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "The domains as they are, again and again: state, rates, drops, alerts, measures.",
    discussion: """
      Rates are over the time between two looks. Ends with Ctrl-C. Where there is no terminal, nothing is redrawn. LOST are events that were not
      told since too many of the domain waited.

      EXAMPLES
        vmfence-ref top --interval 5
        vmfence-ref top -n 1 --json
      """)

  @OptionGroup var control: ControlOptions

  @Option(help: "Seconds between two looks, 0.2 to 60.")
  var interval = 1.0

  @Option(name: [.customShort("n"), .long], help: "Looks after which it ends; 0: never.")
  var count = 0

  func validate() throws {
    guard (0.2...60).contains(interval), count >= 0 else { throw ValidationError("an interval from 0.2 to 60 seconds") }
  }

  private struct Look: Encodable {
    var status: DaemonStatus
    var domains: [DomainStatus]
  }

  func run() throws {
    let client = try control.client()
    let terminal = Terminal.output
    var before: (time: ContinuousClock.Instant, domains: [String: DomainStatus])?
    var looks = 0
    while true {
      do throws(ControlFailure) {
        let look = Look(
          status: try client.ask(ControlRequest(.status), DaemonStatus.self),
          domains: try client.ask(ControlRequest(.domains), [DomainStatus].self))
        let now = ContinuousClock.now
        if control.json {
          terminal.print(json: look)
        } else {
          // From the first line on, each line to its end, and what is below.
          if terminal.isTerminal { terminal.print("\u{1B}[H\u{1B}[J", end: "") }
          let elapsed = before.map { Double($0.time.duration(to: now).wholeNanoseconds) / 1e9 }
          lines(look, before?.domains ?? [:], elapsed, terminal).forEach { terminal.print($0) }
        }
        before = (now, Dictionary(look.domains.map { ($0.uuid, $0) }, uniquingKeysWith: { $1 }))
      } catch {
        throw ControlOptions.end(error)
      }
      looks += 1
      if looks == count || Terminal.isOutputGone { return }
      Thread.sleep(forTimeInterval: interval)
    }
  }

  private func lines(
    _ look: Look, _ before: [String: DomainStatus], _ elapsed: Double?, _ terminal: Terminal
  ) -> [String] {
    let status = look.status
    var table = TextTable(
      header: ["DOMAIN", "STATE", "PKT/S", "KBIT/S", "WAITING", "DROPS", "LIMITS", "ALERTS", "LOST", "MEASURES"],
      rightAligned: [2, 3, 4, 5, 6, 7, 8, 9])
    for domain in look.domains {
      func rate(_ path: KeyPath<DomainStatus, UInt64>, _ scale: Double) -> String {
        guard let elapsed, elapsed > 0, let old = before[domain.uuid] else { return "-" }
        let change = domain[keyPath: path] >= old[keyPath: path] ? domain[keyPath: path] - old[keyPath: path] : 0
        return String(format: "%.0f", Double(change) * scale / elapsed)
      }
      table.add([
        domain.name.escapedForDisplay, domain.state, rate(\.packets, 1), rate(\.bytes, 8 / 1000), "\(domain.waiting)",
        "\(domain.drops)", "\(domain.limitHits)", "\(domain.alerts)", "\(domain.eventsLost)", "\(domain.measures)",
      ])
    }
    let head =
      "\(status.node.escapedForDisplay): up \(Duration.seconds(status.uptime).display), \(look.domains.count) domains, "
      + "\(status.measures) measures, \(status.pending) pending, lost \(status.captureDrops) frames, "
      + "\(status.eventsLost) events"
    let rows = table.lines().enumerated().map { index, row -> (text: String, style: Terminal.Style?) in
      if index == 0 { return (row, .bold) }
      let domain = look.domains[index - 1]
      if domain.state == "unguarded" || domain.state == "orphaned" { return (row, .red) }
      return (row, domain.measures > 0 || domain.drops > 0 ? .yellow : nil)
    }
    let problems = status.problems.map { ($0.escapedForDisplay, Terminal.Style.red as Terminal.Style?) }
    return Self.fitting([(head, nil), ("", nil)] + rows, problems, into: terminal.size).map { text, style in
      style.map { terminal.styled(text, $0) } ?? text
    }
  }

  /// As many lines, and as much of each, as a terminal has room for above an empty one: a line that wraps, and one too many, would move the others away.
  /// What is wrong stands at the end and has half of the room at the most; how many are not shown is said.
  static func fitting<Style>(
    _ lines: [(text: String, style: Style?)], _ problems: [(text: String, style: Style?)],
    into size: (columns: Int, rows: Int)?
  ) -> [(text: String, style: Style?)] {
    guard let size else { return lines + problems }
    func cut(_ line: (text: String, style: Style?)) -> (text: String, style: Style?) {
      line.text.count <= size.columns ? line : (line.text.prefix(max(0, size.columns - 1)) + "…", line.style)
    }
    let rows = max(2, size.rows - 1)
    let shownProblems = min(problems.count, rows / 2)
    let room = rows - shownProblems
    var shown = lines
    if lines.count > room {
      shown =
        lines.prefix(room - 1) + [("… \(lines.count - room + 1) more: make the terminal higher, or see `domains`", nil)]
    }
    var wrong = Array(problems.prefix(shownProblems))
    if problems.count > shownProblems {
      wrong[shownProblems - 1].text = "… \(problems.count - shownProblems + 1) more problems: see `status`"
    }
    return (shown + wrong).map(cut)
  }
}
#endif
