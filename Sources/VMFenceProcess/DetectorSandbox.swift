internal import CLinux
internal import Glibc
internal import VMFenceCore

/// What a detector gives up before it looks at the first packet (`Sandbox`), and besides: standard error, which goes to /dev/null from the first packet on, unless
/// kept for debugging. Core dumps would hold guests' packets.
enum DetectorSandbox {
  /// Ends the process where a part of it cannot be had: without any of these a detector is not started.
  static func enter(_ options: DetectorProcessOptions, sharedBytes: Int) {
    let memory = UInt64(max(options.memoryLimit, 16 << 20))
    // Beside private memory: the rings, two rule images during a swap, the program and its libraries.
    let sandbox = Sandbox(openFiles: 64, memory: memory, addressSpace: memory + UInt64(sharedBytes) + (2 << 30))
    do throws(DetectorError) {
      guard let missing = try sandbox.enter({ vmfence_seccomp_detector(options.allowsExecutableMemory ? 1 : 0) }) else {
        return
      }
      DetectorLog.write(
        "Landlock is not available (\(missing)): files are forbidden by the system call filter alone; "
          + "Linux 5.13 or later with lsm=landlock has it")
    } catch { DetectorSession.refuse(error.message, code: DetectorExitCode.sandbox) }
  }

  /// Nothing is written for people any more: the detector's word is not to be trusted from here on.
  static func leaveStandardError() {
    do throws(DetectorError) { try Sandbox.need("leave standard error", vmfence_replace_descriptor(0, 2)) } catch {
      DetectorSession.refuse(error.message, code: DetectorExitCode.sandbox)
    }
  }
}
