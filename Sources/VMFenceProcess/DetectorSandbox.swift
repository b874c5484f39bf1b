internal import CLinux
internal import Glibc
internal import VMFenceCore

/// What a detector gives up before it looks at the first packet. Irrevocable; the process has one thread.
///
/// - Its parent's death is its own.
/// - Root, if it had it: it becomes user and group 65534 (nobody), and with that loses every capability; no program it might
///   start could give one back.
/// - Memory: bounded. Core dumps, which would hold guests' packets: none. Open files: few.
/// - Files and TCP ports: all, by Landlock, where the kernel has it.
/// - System calls: all but those an inspector needs (see `vmfence_seccomp_detector`).
/// - Standard error: goes to /dev/null from the first packet on, unless kept for debugging.
enum DetectorSandbox {
  private static let nobody: UInt32 = 65534

  static func enter(_ options: DetectorProcessOptions, sharedBytes: Int) {
    if geteuid() == 0 { need("give up root", vmfence_become(nobody, nobody)) }
    // A change of user clears this, so it comes after.
    need("end with its parent", vmfence_die_with_parent())
    need("forbid tracing", vmfence_not_dumpable())
    limit(options, sharedBytes: sharedBytes)
    need("renounce new privileges", vmfence_no_new_privileges())
    if vmfence_landlock_nothing() < 0 {
      DetectorLog.write(
        "Landlock is not available (\(ErrorText.last())): files are forbidden by the system call filter alone; "
          + "Linux 5.13 or later with lsm=landlock has it")
    }
    need("filter system calls", vmfence_seccomp_detector(options.allowsExecutableMemory ? 1 : 0))
  }

  /// Nothing is written for people any more: the detector's word is not to be trusted from here on.
  static func leaveStandardError() { need("leave standard error", vmfence_replace_descriptor(0, 2)) }

  private static func limit(_ options: DetectorProcessOptions, sharedBytes: Int) {
    need("forbid core dumps", vmfence_limit(VMFENCE_LIMIT_CORE, 0))
    need("bound its open files", vmfence_limit(VMFENCE_LIMIT_OPEN_FILES, 64))
    let data = UInt64(max(options.memoryLimit, 16 << 20))
    need("bound its memory", vmfence_limit(VMFENCE_LIMIT_DATA, data))
    // Beside private memory: the rings, two rule images during a swap, the program and its libraries.
    need("bound its address space", vmfence_limit(VMFENCE_LIMIT_ADDRESS_SPACE, data + UInt64(sharedBytes) + (2 << 30)))
  }

  /// Without any of these a detector is not started: a sandbox that is not there must not look like one that is.
  private static func need(_ what: String, _ result: Int32) {
    guard result < 0 else { return }
    DetectorSession.refuse("cannot \(what): \(ErrorText.last())", code: DetectorExitCode.sandbox)
  }
}
