#if Daemon
import VMFenceConfiguration
import VMFenceCore

// What a policy says that comes to nothing with the rest of a configuration. Warnings only: guests come, and are given services, while the daemon runs.

extension Policy {
  /// Services that rules are for and that nobody can have.
  ///
  /// - `known`: those with rule sets of their own, which guests may declare, and those of guests that are named.
  func unknownServices(known: Set<String>) -> [Diagnostic] {
    rules.flatMap { rule in
      rule.services.subtracting(known).sorted().map { service in
        let guess = known.nearest(to: service, within: 2).map { "did you mean `\($0.escapedForDisplay)`?" }
        return Diagnostic(
          .warning, at: rule.place,
          "rule '\(rule.name.escapedForDisplay)': nobody has the service '\(service.escapedForDisplay)'",
          remedy: guess ?? "give a guest this service, or rules to this service (`rules.services`)")
      }
    }
  }
}

extension HostConfiguration {
  /// The services that there are rules for or that guests are said to have, whatever those `have` that are in an inventory.
  func services(besides have: some Sequence<String>) -> Set<String> {
    Set(rules.catalog.byService.keys).union(guests.services).union(have)
  }

  /// Guests that may pretend something and that nobody is: a misspelt name would leave the guest that was meant without what it needs.
  ///
  /// - `inventory`: the names of all domains; nil where a hypervisor knows them: then those that the configuration names otherwise.
  func unknownSpoofingExceptions(inventory: [String]?) -> [Diagnostic] {
    let disks = disks.compactMap { if case .name(let name) = $0.guest { name } else { nil } }
    let known = Set(inventory ?? guests.names + disks + rules.catalog.byDomain.keys)
    // A hypervisor may have any guest, and here nothing is said of any.
    if inventory == nil, known.isEmpty { return [] }
    return firewall.antiSpoofingExceptions.keys.sorted().filter { !known.contains($0) }.map { name in
      let guess = known.nearest(to: name, within: 2).map { "did you mean `\($0.escapedForDisplay)`?" }
      return Diagnostic(
        .warning, at: spoofingExceptionPlaces[name],
        "firewall.anti-spoofing-exceptions: no guest here is called `\(name.escapedForDisplay)`",
        remedy: guess ?? "check the name; a guest that comes later and is called so has the exception")
    }
  }

  /// Measures of the policy that nothing on this host carries out.
  var measuresWithoutControl: [Diagnostic] {
    // Xen does both by itself, unless programs take its place.
    if domains == .xen, control.isEmpty { return [] }
    let acts: [(action: LadderStep.Action, program: CommandControl.Act, what: String)] = [
      (.pause, .pause, "pauses a domain"), (.shutDown, .shutDown, "shuts a domain down"),
    ]
    return policy.rules.flatMap { rule in
      acts.filter { act in control[act.program] == nil && rule.ladder.contains { $0.action == act.action } }
        .map { _, program, what in
          Diagnostic(
            .warning, at: rule.place,
            "rule '\(rule.name.escapedForDisplay)': nothing here \(what), so such a measure stays `desired`",
            remedy: "give `control` a program for `\(program.rawValue)`, or take the step out of the ladder")
        }
    }
  }
}
#endif
