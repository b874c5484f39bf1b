#if Daemon
import Synchronization
import VMFenceChannel
import VMFenceCore

// The policy channels of guests.

extension LiveRun {
  /// Says which guests can have a channel. Of one that ends it is closed: as long as its page is mapped here, Xen keeps the domain.
  func tellChannels(_ domains: [DomainDescription]) {
    channels?.update(
      domains.filter { !$0.runState.isFinal && $0.migration != .migratedAway }.map(\.incarnation))
  }

  /// What channels brought.
  func takeChannelNews(at now: Timestamp) async {
    guard let channels else { return }
    var hasDeclarations = false
    for news in channels.takeNews() {
      switch news {
      case .opened(let domain):
        logger.info("the guest \(directory.entry(for: domain)?.description.name ?? domain.description) takes policies")
      case .alert(let domain, let kind, let message):
        note(.platform(PlatformAlert(time: now, incarnation: domain, kind: kind, message: message)))
      case .declared(let uuid, let declaration):
        declarations.take(declaration, of: uuid)
        hasDeclarations = true
      case .holds(let uuid, let version): await guestPolicies.outbid(version, for: uuid)
      }
    }
    // Once, however many there were: writing them down and asking the hypervisor anew takes its time, and packets wait meanwhile.
    if hasDeclarations { await declared(at: now) }
    refreshPolicies()
  }

  private func declared(at now: Timestamp) async {
    declarations.shrink(keeping: Set(snapshot?.domains.map(\.incarnation.uuid) ?? []))
    declarationWriter?.write(declarations)
    useDeclarations()
    await refreshInventory(at: now)
  }

  /// A guest's service is what the configuration says; where it says nothing, what the guest declared, if there are rules for that.
  func useDeclarations() {
    domains.use(declared: declarations.services(among: host.configuration.rules.catalog.byService.keys))
  }

  /// Hands every guest with a channel the policy that it is to have. In a task of its own, since many measures take their time.
  func refreshPolicies() {
    guard let channels, policyRefresh.begin() else { return }
    let (policies, logger, refresh) = (guestPolicies, logger, policyRefresh)
    Task {
      repeat {
        for uuid in channels.openGuests {
          do throws(GuestPolicyError) { channels.offer(try await policies.current(of: uuid).policy) } catch {
            logger.error("no policy can be made for the guest \(uuid): \(error.message)")
          }
        }
      } while refresh.isWantedAgain()
    }
  }
}

/// One refresh at a time, and one more when something changed meanwhile. Safe to use from any thread.
final class PolicyRefresh: Sendable {
  private let state = Mutex((isUnderWay: false, isWanted: false))

  /// Whether the caller is to begin; otherwise the one under way goes around again.
  func begin() -> Bool {
    state.withLock { state in
      if state.isUnderWay { state.isWanted = true } else { (state.isUnderWay, state.isWanted) = (true, false) }
      return !state.isWanted
    }
  }

  func isWantedAgain() -> Bool {
    state.withLock { state in
      defer { state.isWanted = false }
      if !state.isWanted { state.isUnderWay = false }
      return state.isWanted
    }
  }
}
#endif
