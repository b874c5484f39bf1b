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
    guard vmfence_keep_capabilities(kept.reduce(0) { $0 | 1 << $1.rawValue }) == -1 else { return }
    throw DetectorError(
      .failed, "cannot give up capabilities: \(ErrorText.last())", remedy: "a kernel of Linux 5.4 or later")
  }
}
