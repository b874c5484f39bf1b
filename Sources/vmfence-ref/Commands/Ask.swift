#if Daemon
import ArgumentParser
import Foundation
import VMFenceControl
import VMFenceCore

/// What all verbs that ask a daemon have.
struct ControlOptions: ParsableArguments {
  @Option(help: "The daemon's control socket; VMFENCE_SOCKET when not given, and /run/vmfence/control.sock.")
  var socket: String?

  @Flag(help: "Print the daemon's answer as JSON.")
  var json = false

  var path: String { socket ?? ProcessInfo.processInfo.environment["VMFENCE_SOCKET"] ?? "/run/vmfence/control.sock" }

  func client() throws -> ControlClient {
    do throws(ControlFailure) { return try ControlClient(path: path) } catch {
      throw Self.end(error)
    }
  }

  /// Asks, and prints the answer: as JSON, or as `show` has it.
  func ask<Result: Codable>(_ request: ControlRequest, _ show: (Result) -> [String]) throws {
    let client = try client()
    do throws(ControlFailure) {
      let result = try client.ask(request, Result.self)
      if json {
        Terminal.output.print(json: result, .prettyPrinted)
      } else {
        show(result).forEach { Terminal.output.print($0) }
      }
    } catch {
      throw Self.end(error)
    }
  }

  /// Prints what went wrong, and gives the exit code that fits.
  static func end(_ failure: ControlFailure) -> ExitCode {
    print(failure)
    return exit(for: failure)
  }

  static func exit(for failure: ControlFailure) -> ExitCode {
    switch failure.cause {
    case nil: Exit.badData
    case .unreachable: Exit.unavailable
    case .permission: Exit.noPermission
    case .busy: Exit.temporary
    }
  }

  static func print(_ failure: ControlFailure) {
    (failure.diagnostics ?? []).forEach { Terminal.error.print($0.escapedForDisplay) }
    Terminal.error.print([
      Diagnostic(.error, failure.message.escapedForDisplay, remedy: failure.remedy.escapedForDisplay)
    ])
  }
}

/// `vmfence-ref status`
struct Status: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "How the daemon does.",
    discussion: """
      What it carries out measures with, what waits, what was lost, and what is wrong now.

      EXAMPLES
        vmfence-ref status
        vmfence-ref status --json | jq .problems
      """)
  @OptionGroup var control: ControlOptions

  private static func listed(_ figures: [String: UInt64]) -> String {
    figures.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", ")
  }

  func run() throws {
    try control.ask(ControlRequest(.status)) { (status: DaemonStatus) in
      let lostByDomain = Dictionary(
        status.eventsLostByDomain.map { ($0.key.escapedForDisplay, $0.value) }, uniquingKeysWith: &+)
      let unwritten =
        status.eventsUnwritten == 0 ? "" : ", of which the event file did not take \(status.eventsUnwritten)"
      let ofDomains =
        lostByDomain.isEmpty
        ? ""
        : "\(unwritten.isEmpty ? ", of which" : ", and") of domains with too many of their own: \(Self.listed(lostByDomain))"
      let stopped = status.stopped.filter { $0.value > 0 }
      var lines: [String] = [
        "vmfence \(status.version) on \(status.node), up \(Duration.seconds(status.uptime).display)",
        "measures: \(status.measures) in force by \(status.firewall)\(status.isDryRun ? " (dry run)" : ""), "
          + "\(status.pending) pending, \(status.desired) not taken yet",
        "flows of packets that rules refused: \(Self.listed(status.flows))",
        "stopped by the packet filter: \(stopped.isEmpty ? "nothing" : Self.listed(stopped))",
        "lost: \(status.captureDrops) frames by captures, \(status.eventsLost) events\(unwritten)\(ofDomains)",
        "limits of the inspection reached: \(status.limitHits.isEmpty ? "none" : Self.listed(status.limitHits))",
        "history: \(Self.listed(status.history))",
        "policy: \(Self.listed(status.policy))",
      ]
      if status.clockOffset != 0 {
        lines.append("the system's clock was set by \(status.clockOffset) s since the start")
      }
      if !status.needRules.isEmpty {
        lines.append("without rules, not guarded: " + status.needRules.joined(separator: ", ").escapedForDisplay)
      }
      if !status.frozen.isEmpty {
        lines.append("paused, a request to a disk waits: " + status.frozen.joined(separator: ", ").escapedForDisplay)
      }
      return lines + status.problems.map { "problem: \($0.escapedForDisplay)" }
    }
  }
}

/// `vmfence-ref domains`
struct Domains: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "The domains and their detectors.",
    discussion: """
      DROPS are packets that no detector inspected, LIMITS how often a bound made the inspection less than it should be, LOST events that were not
      told since too many of the domain waited, or the event file could not be written; --json has more.

      EXAMPLES
        vmfence-ref domains
        vmfence-ref domains --json | jq '.[] | select(.drops > 0)'
      """)
  @OptionGroup var control: ControlOptions

  func run() throws {
    try control.ask(ControlRequest(.domains)) { (domains: [DomainStatus]) in
      var table = TextTable(
        header: [
          "DOMAIN", "DOMID", "STATE", "SERVICE", "TENANT", "PACKETS", "ALERTS", "DROPS", "LIMITS", "LOST", "MEASURES",
          "RULES",
        ],
        rightAligned: [1, 5, 6, 7, 8, 9, 10, 11])
      for domain in domains {
        table.add([
          domain.name.escapedForDisplay, "\(domain.domid)", domain.state, (domain.service ?? "-").escapedForDisplay,
          (domain.tenant ?? "-").escapedForDisplay, "\(domain.packets)", "\(domain.alerts)", "\(domain.drops)",
          "\(domain.limitHits)", "\(domain.eventsLost)", "\(domain.measures)", "\(domain.rules)",
        ])
      }
      return table.lines()
    }
  }
}

/// `vmfence-ref alerts`
struct Alerts: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "The last alerts, or all that come.",
    discussion: """
      The last ones come from the history in the daemon's state directory, so those of earlier runs are among them. With --json, or --all,
      events are EVE JSON, one a line.

      EXAMPLES
        vmfence-ref alerts --limit 100
        vmfence-ref alerts --domain web --address 203.0.113.7
        vmfence-ref alerts --follow --json | jq .alert.signature
        vmfence-ref alerts --follow --all
      """)
  @OptionGroup var control: ControlOptions

  @Flag(help: "Go on with what comes.")
  var follow = false

  @Flag(help: "With --follow: every event, not only alerts.")
  var all = false

  @Option(help: "How many of the last ones, 1 to 200000.")
  var limit = 20

  @Option(help: "Of this domain only, by name or UUID; not with --follow.")
  var domain: String?

  @Option(help: "Only what this address sent or received; not with --follow.")
  var address: String?

  func validate() throws {
    guard (1...200_000).contains(limit) else { throw ValidationError("--limit is from 1 to 200000") }
    guard !follow || domain == nil && address == nil else {
      throw ValidationError("--follow tells of everything that comes: leave --domain and --address out")
    }
    guard follow || !all else { throw ValidationError("--all is for --follow") }
  }

  func run() throws {
    let client = try control.client()
    do throws(ControlFailure) {
      let request = ControlRequest(.alerts, domain: domain, address: address, limit: limit)
      if control.json {
        let last = try client.ask(request, [JSONValue].self)
        if !(follow && all) { last.forEach { Terminal.output.print(json: $0) } }
      } else {
        let last = try client.ask(request, [EVEAlert].self)
        if !(follow && all) { last.forEach(show) }
        if last.isEmpty, !follow { Terminal.error.print("no alerts") }
      }
      guard follow, !Terminal.isOutputGone else { return }
      try client.follow(all: all) { line in
        if control.json || all {
          Terminal.output.print(String(decoding: line, as: UTF8.self))
        } else if let alert = try? JSONDecoder().decode(EVEAlert.self, from: Data(line)) {
          show(alert)
        } else {
          Terminal.error.print(String(decoding: line, as: UTF8.self).escapedForDisplay)
        }
        return !Terminal.isOutputGone
      }
    } catch {
      throw ControlOptions.end(error)
    }
  }

  private func show(_ alert: EVEAlert) { Terminal.output.print(alert.line.escapedForDisplay) }
}

/// Any JSON, handed on with all that is in it.
enum JSONValue: Codable {
  case null
  case bool(Bool)
  case integer(Int64)
  case natural(UInt64)
  case number(Double)
  case text(String)
  case list([JSONValue])
  case object([String: JSONValue])

  init(from decoder: any Decoder) throws {
    let value = try decoder.singleValueContainer()
    if value.decodeNil() {
      self = .null
    } else if let bool = try? value.decode(Bool.self) {
      self = .bool(bool)
    } else if let integer = try? value.decode(Int64.self) {
      self = .integer(integer)
    } else if let natural = try? value.decode(UInt64.self) {
      self = .natural(natural)
    } else if let number = try? value.decode(Double.self) {
      self = .number(number)
    } else if let text = try? value.decode(String.self) {
      self = .text(text)
    } else if let list = try? value.decode([JSONValue].self) {
      self = .list(list)
    } else {
      self = .object(try value.decode([String: JSONValue].self))
    }
  }

  func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    switch self {
    case .null: try container.encodeNil()
    case .bool(let value): try container.encode(value)
    case .integer(let value): try container.encode(value)
    case .natural(let value): try container.encode(value)
    case .number(let value): try container.encode(value)
    case .text(let value): try container.encode(value)
    case .list(let value): try container.encode(value)
    case .object(let value): try container.encode(value)
    }
  }
}

/// What is shown of an EVE alert.
struct EVEAlert: Codable {
  struct Rule: Codable {
    var gid: Int
    var signatureID: Int
    var signature: String
    var category: String?
    var severity: Int

    enum CodingKeys: String, CodingKey {
      case gid, signature, category, severity
      case signatureID = "signature_id"
    }
  }
  struct Ours: Codable {
    struct VM: Codable {
      var name: String?
      var uuid: String?
    }
    var vm: VM?
  }
  /// On one line, for people; not escaped.
  var line: String {
    func end(_ address: String, _ port: Int?) -> String {
      port.map { address.contains(":") ? "[\(address)]:\($0)" : "\(address):\($0)" } ?? address
    }
    return "\(timestamp) \(vmfence?.vm?.name ?? "-") [\(alert.gid):\(alert.signatureID)] \(alert.signature) "
      + "(priority \(alert.severity)) \(proto) \(end(sourceAddress, sourcePort)) -> "
      + end(destinationAddress, destinationPort)
  }

  var timestamp: String
  var sourceAddress: String
  var sourcePort: Int?
  var destinationAddress: String
  var destinationPort: Int?
  var proto: String
  var alert: Rule
  var vmfence: Ours?

  enum CodingKeys: String, CodingKey {
    case timestamp, proto, alert, vmfence
    case sourceAddress = "src_ip"
    case sourcePort = "src_port"
    case destinationAddress = "dest_ip"
    case destinationPort = "dest_port"
  }
}

/// `vmfence-ref why`
struct Why: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "What stands between a domain and an address: which rule, which decision, until when.",
    discussion: """
      Besides what stands there now: what stood there before, and the last alerts, as far as the history goes.

      EXAMPLES
        vmfence-ref why web 203.0.113.7
        vmfence-ref why web 2001:db8::7 --json | jq .isBlocked
      """)
  @OptionGroup var control: ControlOptions

  @Argument(help: "The domain's name or UUID.")
  var domain: String

  @Argument(help: "An address.")
  var address: String

  func run() throws {
    try control.ask(ControlRequest(.why, domain: domain, address: address)) { (found: Explanation) in
      var lines: [String] = []
      if found.decisions.isEmpty {
        lines.append("nothing stands between \(found.domain) and \(found.address)".escapedForDisplay)
      }
      for decision in found.decisions {
        lines.append(
          "\(decision.measure) \(decision.network ?? "") \(decision.domain.map { "for \($0)" } ?? "for the whole host"), "
            .escapedForDisplay
            + "by decision \(decision.id) of policy rule `\(decision.policy)` (\(decision.trigger))".escapedForDisplay)
        lines.append("  because \(decision.reason)".escapedForDisplay)
        lines.append(
          "  since \(decision.since)" + (decision.expires.map { ", until \($0)" } ?? ", until it is taken back"))
      }
      if let obstacle = found.neverBlocked { lines.append("never blocked: \(obstacle)".escapedForDisplay) }
      lines += found.ladders.map { "ladder of \($0)".escapedForDisplay }
      lines += found.past.map { decision in
        "before: \(decision.measure) \(decision.network ?? ""), \(decision.status), decision \(decision.id) at \(decision.since), "
          .escapedForDisplay + "because \(decision.reason)".escapedForDisplay
      }
      return lines + found.alerts.map { "alert: \($0)".escapedForDisplay }
    }
  }
}
#endif
