#if Daemon
import ArgumentParser
import Foundation
import VMFenceCore
import VMFenceProcess

@main
struct VMFenceRef: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmfence-ref",
    abstract: "Out-of-guest intrusion prevention for virtual machines: the reference daemon of VMFence.",
    discussion: """
      EXAMPLES
        vmfence-ref replay Examples/quickstart/scenario.yaml --eve out.json
        vmfence-ref inspect --capture web.pcap --rules web.rules --eve -
        vmfence-ref check Examples/quickstart/scenario.yaml
        vmfence-ref check --live host.yaml
        vmfence-ref run --config host.yaml --eve /var/log/vmfence/eve.json
        vmfence-ref integrity list disk.img
        vmfence-ref dfa --format mermaid

      A DAEMON THAT RUNS (over its control socket: --socket PATH or VMFENCE_SOCKET; --json on each)
        vmfence-ref status
        vmfence-ref alerts --follow
        vmfence-ref why web 203.0.113.7
        vmfence-ref bans add 203.0.113.0/24 --for 4h
        vmfence-ref rules set web local.rules
        vmfence-ref pending approve 42

      EXIT CODES
        0   done, and nothing was wrong
        1   something differs (integrity check), or waits for a decision (integrity held)
        64  the command line is wrong
        65  what was read is wrong: a scenario, rules, a capture, an image (each place is named)
        66  a file that was named on the command line cannot be read
        69  something that is needed is missing (a library, a program, the hypervisor)
        70  a defect of VMFence itself
        73  an output cannot be written
        75  it was not so in time (barrier)
        77  a permission is missing (the message names it)
      """,
    version: VMFenceVersion.text,
    subcommands: [
      Replay.self, Inspect.self, Check.self, Run.self, Integrity.self, Lifecycle.self, Status.self, Domains.self,
      Top.self, Alerts.self,
      Rules.self, Bans.self, Why.self, Pending.self, Declared.self, Barrier.self,
    ])
}

extension VMFenceRef {
  /// What a daemon holds, of all that root may do. Outside of its unit, which says the same, it gives up the rest before anything else happens: each remaining one is needed
  /// again and again, and capabilities belong to threads, so none can be given up later.
  ///
  /// - What it starts is stopped, resumed and killed when it is nobody.
  /// - Files of others: configuration that is read again, and, outside of the unit, events and state in folders of theirs.
  private static let daemonsPowers: Set<Capability> = [
    .signalsEveryProcess, .readsEveryFile, .overridesFileAccess,
  ]

  /// What only programs that it starts hold: they become nobody; `vmfence-firewall` has the packet filter, and `vmfence-capture` packet sockets.
  private static let othersPowers: Set<Capability> = [
    .changesUser, .changesGroup, .administersNetwork, .opensPacketSockets,
  ]

  static func main() async {
    if CommandLine.arguments.dropFirst().first == "run" {
      do throws(DetectorError) { try Capability.keep(only: daemonsPowers, toStart: othersPowers) } catch {
        Terminal.error.print([error.diagnostic])
        exit(withError: Exit.internalError)
      }
    }
    switch mistyped(Array(CommandLine.arguments.dropFirst())) {
    case .verb(let mistake): exit(withError: mistake)
    case .option(let text):
      Terminal.error.print(text)
      exit(withError: ExitCode.validationFailure)
    case nil: break
    }
    await main(nil)
    if let problem = Terminal.outputProblem {
      if !problem.message.isEmpty {
        Terminal.error.print([Diagnostic(.error, problem.message, remedy: "free space, or write elsewhere")])
      }
      exit(withError: problem.code)
    }
  }
}

extension VMFenceRef {
  private enum Mistyped {
    case verb(ValidationError)
    /// What is said of it, with the command's usage.
    case option(String)
  }

  /// What was mistyped in a command line that means nothing: a verb, which the argument parser does not guess, or an option, of which it says nothing when another is missing.
  ///
  /// - Returns: nil for a command line that means something, and where nothing is found.
  private static func mistyped(_ words: [String]) -> Mistyped? {
    do { _ = try parseAsRoot(words) } catch {
      guard exitCode(for: error) == .validationFailure else { return nil }
      var command: any ParsableCommand.Type = self
      var path = _commandName
      for word in words where !word.hasPrefix("-") {
        let verbs = command.configuration.subcommands
        if verbs.isEmpty { break }
        guard let next = verbs.first(where: { $0._commandName == word }) else {
          return verbs.map { $0._commandName }.nearest(to: word, within: 2).map {
            .verb(ValidationError("There is no '\(word.escapedForDisplay)' here. Did you mean '\($0)'?"))
          }
        }
        command = next
        path += " " + word
      }
      let options = [self, command].map { KnownOptions(help: helpMessage(for: $0, includeHidden: true)) }
      return options[0].union(options[1]).mistake(in: words).map {
        .option("Error: \($0)\nUsage: \(usageString(for: command))\n  See '\(path) --help' for more information.")
      }
    }
    return nil
  }
}

/// How a command ends when it cannot do what it was asked to: the values of sysexits.h.
enum Exit {
  static let badData = ExitCode(65)
  static let noInput = ExitCode(66)
  static let unavailable = ExitCode(69)
  static let internalError = ExitCode(70)
  static let cannotCreate = ExitCode(73)
  static let temporary = ExitCode(75)
  static let noPermission = ExitCode(77)
}

extension ParsableCommand {
  /// Prints an error that VMFence's parts threw and gives the exit code that fits.
  func failure(_ error: any DescribedError, _ code: ExitCode) -> ExitCode {
    Terminal.error.print([Diagnostic(.error, at: error.place, error.message, remedy: error.remedy)])
    return code
  }
}
#endif
