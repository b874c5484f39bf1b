internal import CLinux
package import VMFenceCore

/// Parts of root's power, by the kernel's numbers (linux/capability.h).
package enum Capability: UInt64, Sendable, CaseIterable {
  case overridesFileAccess = 1
  case readsEveryFile = 2
  case signalsEveryProcess = 5
  case changesGroup = 6
  case changesUser = 7
  case administersNetwork = 12
  case opensPacketSockets = 13

  /// Gives up all others for good, and for every program that is started from here on.
  ///
  /// To be called while the process has one thread: a capability is a thread's.
  ///
  /// - Throws: `failed`.
  package static func keep(only kept: Set<Capability>) throws(DetectorError) {
    guard vmfence_keep_capabilities(mask(of: kept)) == -1 else { return }
    throw failure()
  }

  /// The same, but for the one thread that starts programs: what these are to have, it keeps besides.
  ///
  /// No other thread can use these, nor get them back by starting a program itself. Whoever makes this process execute what he wants is not stopped by that: he can have a
  /// program started.
  ///
  /// To be called while the process has one thread.
  ///
  /// - Throws: `failed`.
  package static func keep(only kept: Set<Capability>, toStart started: Set<Capability>) throws(DetectorError) {
    let (all, passed) = (mask(of: kept.union(started)), mask(of: started))
    let result = SpawnThread.run {
      vmfence_keep_capabilities(all) == 0 && vmfence_pass_capabilities(passed) == 0 ? 0 : 1
    }
    guard result == 0 else { throw failure() }
    try keep(only: kept)
  }

  static func mask(of capabilities: Set<Capability>) -> UInt64 { capabilities.reduce(0) { $0 | 1 << $1.rawValue } }

  private static func failure() -> DetectorError {
    DetectorError(
      .failed, "cannot give up capabilities: \(ErrorText.last())", remedy: "a kernel of Linux 5.4 or later")
  }
}
