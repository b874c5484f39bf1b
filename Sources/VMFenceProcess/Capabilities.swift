internal import CLinux
internal import Glibc
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

  /// Gives up all others for good.
  ///
  /// To be called while the process has one thread: a capability is a thread's.
  ///
  /// - `kept`: what this thread and those that it starts have from here on, and programs that they start.
  /// - `started`: what only the programs of this project have besides that are started from here on (`HelperProcess`, `ProcessDetectorBackend`). The one thread that starts
  ///   them has it in reserve, where no call of its own uses it: so a program gets it where root's programs get no more than root had (no_new_privs(2)), too.
  /// - Throws: `failed`.
  package static func keep(
    only kept: Set<Capability>, toStart started: Set<Capability> = []
  ) throws(DetectorError) {
    let (own, all, passed) = (mask(of: kept), mask(of: kept.union(started)), mask(of: started))
    if all != own {
      // Before this thread gives them up, from which that one has its own.
      let number = SpawnThread.run {
        vmfence_keep_capabilities(all, own) == 0 && vmfence_pass_capabilities(passed) == 0 ? 0 : errno
      }
      guard number == 0 else { throw failure(ErrorText.text(number)) }
    }
    guard vmfence_keep_capabilities(own, own) == 0 else { throw failure(ErrorText.last()) }
  }

  static func mask(of capabilities: Set<Capability>) -> UInt64 { capabilities.reduce(0) { $0 | 1 << $1.rawValue } }

  private static func failure(_ reason: String) -> DetectorError {
    DetectorError(.failed, "cannot give up capabilities: \(reason)", remedy: "a kernel of Linux 5.4 or later")
  }
}
