#if Daemon
import Foundation
import VMFenceCore

// The host's interfaces, addresses and routes: looked at when the kernel has told of them, not all of them again and again.

/// What the loop knows of the host's interfaces.
struct InterfaceWatch: ~Copyable {
  var links = HostLinks()
  /// The host's addresses and routes may be others.
  var addressesAreStale = true
  /// When news are taken again that could not be taken, and what was told of that.
  var retry: Timestamp?
  var toldProblem = ""
}

extension LiveRun {
  /// How long nothing is asked of a kernel that gives no news.
  private static var newsPause: Duration { .seconds(1) }

  /// Takes the kernel's news. Has the firewall told of the ports again when an interface of theirs came, went, or was made anew: what is done at a port by itself went with it.
  func noteInterfaces(at now: Timestamp) {
    if let retry = interfaces.retry, now < retry { return }
    do throws(NetlinkError) {
      let changed = try interfaces.links.take(at: .now)
      if interfaces.retry != nil { logger.notice("the kernel's news of interfaces come again") }
      interfaces.retry = nil
      interfaces.toldProblem = ""
      guard let changed else { return }
      interfaces.addressesAreStale = true
      // Until it is captured nobody inspects what comes there: that is not left to the next look at all.
      if captures.follow(changed) { forgetTable() }
      guard !changed.isEmpty, let domains = snapshot?.domains else { return }
      if domains.contains(where: { $0.ports.contains { changed.contains($0.interface) } }) { portsAreStale = true }
    } catch {
      // Nobody knows what came or went meanwhile.
      interfaces.retry = now + Self.newsPause
      interfaces.addressesAreStale = true
      portsAreStale = true
      let problem = error.reason
      if problem != interfaces.toldProblem { logger.error("the kernel's news of interfaces cannot be had: \(problem)") }
      interfaces.toldProblem = problem
    }
  }

  /// nil when the kernel's news come.
  var interfaceProblem: String? {
    interfaces.toldProblem.isEmpty
      ? nil : "the kernel's news of interfaces cannot be had: \(interfaces.toldProblem)"
  }

  /// Whether a port's interface is there, and is the one of which news were taken.
  func isKnown(interface name: String) -> Bool {
    let number = Captures.number(of: name)
    return number != 0 && interfaces.links.number(of: name) == number
  }

  /// Looks at the host's own addresses, gateways and name servers, and has the policy know them.
  func refreshNeverBlock(at now: Timestamp, isFirst: Bool = false) async {
    var addresses = hostAddresses
    if interfaces.addressesAreStale { addresses = .read() } else { addresses.readNameServers() }
    interfaces.addressesAreStale = false
    guard isFirst || addresses != hostAddresses else { return }
    hostAddresses = addresses
    // No guest may speak as one of them.
    portsAreStale = true
    do throws(PolicyError) { try await apply(host.configuration.policy, at: now) } catch {
      logger.log([error.diagnostic])
    }
  }
}

extension NetlinkError {
  fileprivate var reason: String {
    switch self {
    case .malformed(let what): "they are damaged: \(what)"
    case .refused(let number, let words): words.isEmpty ? describeError(number) : words.escapedForDisplay
    case .socket(let number, let action): "cannot \(action): \(describeError(number))"
    case .held, .interrupted: "\(self)"
    }
  }
}
#endif
