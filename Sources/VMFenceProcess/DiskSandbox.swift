internal import CLinux
internal import Glibc
public import VMFenceCore

/// What a process on the block path gives up before it serves the first request: it parses what a guest wrote, and holds
/// the guest's disk. Irrevocable, in two steps, because threads are started between them.
///
/// Both are for a process that has opened all it needs: the disk, its socket, its outputs. It outlives whoever started it.
public enum DiskSandbox {
  /// While the process has one thread: root, new privileges, core dumps and tracing, all files by name and all TCP ports
  /// (Landlock, where the kernel has it).
  ///
  /// `user`, `group`: whom it becomes if it is root.
  /// - Returns: why Landlock is not in force; nil when it is. The system call filter forbids opening files all the same.
  /// - Throws: `failed`: without these nothing must be served.
  public static func giveUp(user: UInt32, group: UInt32) throws(DetectorError) -> String? {
    try Sandbox(user: user, group: group, endsWithParent: false).giveUp()
  }

  /// When all threads run: every system call but those that serving needs, for all of them (`vmfence_seccomp_disk`).
  ///
  /// - Throws: `failed`.
  public static func filterSystemCalls() throws(DetectorError) {
    try Sandbox.need("filter system calls", vmfence_seccomp_disk())
  }
}
