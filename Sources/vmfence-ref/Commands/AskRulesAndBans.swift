#if Daemon
import ArgumentParser
import Foundation
import VMFenceControl
import VMFenceConfiguration
import VMFenceCore

/// `vmfence-ref rules`
struct Rules: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "The rules of a domain.",
    discussion: """
      EXAMPLES
        vmfence-ref rules show web
        vmfence-ref rules set web /etc/vmfence/rules/web.rules local.rules
        vmfence-ref rules set web                        as configured again
        vmfence-ref rules guest web --output web.policy  then, in the guest: vmfence-guest apply web.policy
      """, subcommands: [Show.self, Set.self, Guest.self], defaultSubcommand: Show.self)

  struct Show: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Which rules a domain has.")
    @OptionGroup var control: ControlOptions
    @Argument(help: "The domain's name or UUID.") var domain: String

    func run() throws { try control.ask(ControlRequest(.rulesShow, domain: domain), Rules.lines) }
  }

  struct Set: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Give a domain rules of its own (event e2); without files, those of the configuration again.",
      discussion: """
        They are added to what all domains and its service have, kept in the state directory, and in force when they compile; a detector
        that runs swaps to them between two packets.
        """)
    @OptionGroup var control: ControlOptions
    @Argument(help: "The domain's name or UUID.") var domain: String
    @Argument(help: "Rule files.") var files: [String] = []

    func run() throws {
      let folder = FileManager.default.currentDirectoryPath
      let paths = files.map { $0.hasPrefix("/") ? $0 : folder + "/" + $0 }
      try control.ask(ControlRequest(.rulesSet, domain: domain, files: paths), Rules.lines)
    }
  }

  struct Guest: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "The policy that a domain is to enforce itself, from the measures in force.",
      discussion: """
        Its version rises with each change; with the digest it names one policy. The host enforces the same measures whether or not the
        guest does.

        EXAMPLES
          vmfence-ref rules guest web
          vmfence-ref rules guest web --output web.policy    then, in the guest: vmfence-guest apply web.policy
          vmfence-ref rules guest web --json | jq '.version, .sha256'
        """)
    @OptionGroup var control: ControlOptions
    @Argument(help: "The domain's name or UUID.") var domain: String
    @Option(help: "Write the policy into this file, as `vmfence-guest apply` takes it.") var output: String?

    func run() throws {
      var policy: Data?
      try control.ask(ControlRequest(.guestPolicy, domain: domain)) { (status: GuestPolicyStatus) in
        policy = Data(base64Encoded: status.encoded)
        return status.lines
      }
      guard let output, let policy else { return }
      do { try OutputFile.replace(output, with: policy) } catch { throw OutputFile.failure(output, error) }
    }
  }

  private static func lines(_ status: RulesStatus) -> [String] {
    [
      "\(status.domain): \(status.state), \(status.rules) rules\(status.isAssigned ? ", set at run time" : "")"
        .escapedForDisplay
    ]
      + (status.files.isEmpty
        ? ["  none: it is not guarded; give it some: vmfence-ref rules set \(status.domain) FILE".escapedForDisplay]
        : status.files.map { "  \($0)".escapedForDisplay })
      + (status.kept ?? []).map { "  \($0)".escapedForDisplay }
  }
}

/// `vmfence-ref bans`
struct Bans: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Measures in force.",
    discussion: """
      EXAMPLES
        vmfence-ref bans list --domain web
        vmfence-ref bans list --past --limit 50          those that are over, too
        vmfence-ref bans add 203.0.113.0/24 --for 4h     for all guests of the host
        vmfence-ref bans add 2001:db8::7 --domain web --for 1d
        vmfence-ref bans delete 203.0.113.0/24
      """, subcommands: [List.self, Add.self, Delete.self], defaultSubcommand: List.self)

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "List blocks, rate limits and quarantines.")
    @OptionGroup var control: ControlOptions
    @Option(help: "Of this domain only.") var domain: String?
    @Option(help: "How many, the youngest, 1 to 200000.") var limit: Int?
    @Flag(help: "Those that are over or were withheld, too, as far as the history goes.") var past = false

    func validate() throws {
      guard (1...200_000).contains(limit ?? 1) else { throw ValidationError("--limit is from 1 to 200000") }
    }

    func run() throws {
      try control.ask(ControlRequest(.bans, domain: domain, limit: limit, all: past), DecisionStatus.table)
    }
  }

  struct Add: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Block an address or network.")
    @OptionGroup var control: ControlOptions
    @Argument(help: "192.0.2.7 or 2001:db8::/48, for example.") var network: String
    @Option(help: "For this domain only; otherwise for all of the host.") var domain: String?
    @Option(name: .customLong("for"), help: "For how long: 10m, 4h, 1d.") var duration: String

    func validate() throws {
      guard let time = Duration(configuration: duration), time > .zero else {
        throw ValidationError("--for: `\(duration)` is not a duration with its unit, such as 10m, 4h or 1d")
      }
    }

    func run() throws {
      let time = Duration(configuration: duration) ?? .zero
      try control.ask(
        ControlRequest(.banAdd, domain: domain, network: network, duration: Double(time.wholeNanoseconds) / 1e9),
        DecisionStatus.table)
    }
  }

  struct Delete: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Take a block back before its time.")
    @OptionGroup var control: ControlOptions
    @Argument(help: "As `bans list` shows it.") var network: String
    @Option(help: "Of this domain only.") var domain: String?

    func run() throws {
      try control.ask(ControlRequest(.banDelete, domain: domain, network: network), DecisionStatus.table)
    }
  }
}

/// `vmfence-ref pending`
struct Pending: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Measures that wait for an administrator: pausing and shutting down.",
    discussion: """
      EXAMPLES
        vmfence-ref pending list
        vmfence-ref pending approve 42
        vmfence-ref pending deny 42
      """,
    subcommands: [List.self, Approve.self, Deny.self], defaultSubcommand: List.self)

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "List them.")
    @OptionGroup var control: ControlOptions
    func run() throws { try control.ask(ControlRequest(.pending), DecisionStatus.table) }
  }

  struct Approve: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Carry one out.")
    @OptionGroup var control: ControlOptions
    @Argument(help: "The decision's number.") var number: UInt64
    func run() throws {
      try control.ask(ControlRequest(.approve, id: number)) { DecisionStatus.table([$0]) }
    }
  }

  struct Deny: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Refuse one.")
    @OptionGroup var control: ControlOptions
    @Argument(help: "The decision's number.") var number: UInt64
    func run() throws {
      try control.ask(ControlRequest(.deny, id: number)) { DecisionStatus.table([$0]) }
    }
  }
}

extension GuestPolicyStatus {
  fileprivate var lines: [String] {
    var table = TextTable(header: ["DECISION", "MEASURE", "NETWORK", "REMAINING", "COMMENT"], rightAligned: [0, 3])
    for measure in measures {
      table.add([
        "\(measure.decision)", measure.kind + (measure.packetsPerSecond.map { " \($0)/s" } ?? ""),
        measure.network ?? "-", measure.remaining.map { Duration.seconds($0).display } ?? "-",
        measure.comment.escapedForDisplay,
      ])
    }
    var lines = ["policy \(version) for \(domain) (\(uuid)), made at \(issued)".escapedForDisplay, "sha256 \(sha256)"]
    lines += measures.isEmpty ? ["it has no measures"] : table.lines()
    lines += exceptions.map { "in quarantine, \($0) is let through" }
    if allowsDHCP { lines.append("in quarantine, DHCP is let through") }
    if omitted > 0 { lines.append("\(omitted) more found no room in it; the host enforces them") }
    return lines
  }
}

extension DecisionStatus {
  fileprivate static func table(_ decisions: [DecisionStatus]) -> [String] {
    var table = TextTable(
      header: ["DECISION", "MEASURE", "NETWORK", "DOMAIN", "STATUS", "REMAINING", "POLICY", "REASON"],
      rightAligned: [0, 5])
    for decision in decisions {
      table.add([
        "\(decision.id)", decision.measure, decision.network ?? "-", (decision.domain ?? "(host)").escapedForDisplay,
        decision.status, decision.remaining.map { Duration.seconds($0).display } ?? "-",
        decision.policy.escapedForDisplay, decision.reason.escapedForDisplay,
      ])
    }
    return table.lines()
  }
}
#endif
