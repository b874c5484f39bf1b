#if Daemon
import Foundation
import Synchronization

/// The signals that a daemon obeys, noted where a handler may (an atomic store) and looked at by the loop.
enum Signals {
  fileprivate static let stopRequested = Atomic(false)
  fileprivate static let reloadRequested = Atomic(false)

  /// From here on a reload is asked for, and ends nothing.
  static func installReload() { signal(SIGHUP, noteReload) }

  static func install() {
    signal(SIGTERM, noteStop)
    signal(SIGINT, noteStop)
    installReload()
    signal(SIGPIPE, SIG_IGN)
  }

  static var isStopRequested: Bool { stopRequested.load(ordering: .acquiring) }

  /// Whether a reload was asked for since the last call.
  static func takeReload() -> Bool { reloadRequested.exchange(false, ordering: .acquiringAndReleasing) }
}

private func noteStop(_: Int32) { Signals.stopRequested.store(true, ordering: .releasing) }
private func noteReload(_: Int32) { Signals.reloadRequested.store(true, ordering: .releasing) }
#endif
