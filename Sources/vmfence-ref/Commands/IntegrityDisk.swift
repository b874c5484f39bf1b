#if Daemon
import ArgumentParser
import Foundation
import VMFenceBlock
import VMFenceControl
import VMFenceCore
import VMFenceIntegrity

/// How the process of a disk is reached.
struct DiskProcessOptions: ParsableArguments {
  @Option(help: "The control socket of the disk's process; /run/vmfence-disk/NAME.control when not given.")
  var control: String?

  private func path(_ name: String) -> String { control ?? "/run/vmfence-disk/\(name).control" }

  /// - Returns: nil when no socket was named and none is at the usual place.
  func tell(_ name: String, _ request: DiskControlRequest) throws -> DiskControlStatus? {
    if control == nil, !FileManager.default.fileExists(atPath: path(name)) { return nil }
    return try ask(name, request)
  }

  func ask(_ name: String, _ request: DiskControlRequest) throws -> DiskControlStatus {
    do throws(ControlFailure) {
      return try ControlClient(path: path(name)).ask(request, DiskControlStatus.self)
    } catch {
      var told = error
      if error.cause == .unreachable {
        told.message = error.message.replacing("the daemon", with: "the disk's process")
        told.remedy = "it runs as vmfence-disk@\(name), or name its control socket with --control"
      }
      Terminal.error.print([
        Diagnostic(
          .error, at: SourcePlace(file: path(name)), told.message.escapedForDisplay,
          remedy: told.remedy.escapedForDisplay)
      ])
      throw ControlOptions.exit(for: error)
    }
  }
}

/// `vmfence-ref integrity held`
struct IntegrityHeld: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "held",
    abstract: "Show how a disk's process stands: what waits for a decision, what is announced.",
    discussion: """
      EXIT CODES
        0   nothing waits
        1   a request does, and the guest with it
        69  the process cannot be reached

      EXAMPLES
        vmfence-ref integrity held web
      """)

  @Argument(help: "The name of the disk's process.")
  var disk: String

  @Flag(help: "JSON.")
  var json = false

  @OptionGroup var process: DiskProcessOptions

  func run() throws {
    let status = try process.ask(disk, DiskControlRequest(.status))
    if json {
      Terminal.output.print(json: status)
    } else {
      Terminal.output.print("requests: \(status.requests), refused: \(status.denied)")
      for window in status.expected {
        Terminal.output.print(
          "announced for \(window.shownRemaining) s more: \(window.paths.joined(separator: " ").escapedForDisplay)")
      }
      for limit in status.limits { Terminal.output.print("note: \(limit.escapedForDisplay)") }
      if let held = status.held {
        Terminal.output.print(
          "request \(held.request) has waited \(held.shownWaiting) s, and the whole disk with it; decided by itself in "
            + "\(held.shownRemaining) s. It would change: \(held.paths.joined(separator: " ").escapedForDisplay)")
      } else {
        Terminal.output.print("nothing waits for a decision")
      }
    }
    if status.held != nil { throw ExitCode(1) }
  }
}

/// `vmfence-ref integrity decide`
struct IntegrityDecide: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "decide",
    abstract: "Let a held request pass, or fail.",
    discussion: """
      What fails is an input/output error in the guest. If it was the commit block of its journal, its file system becomes read-only.

      EXAMPLES
        vmfence-ref integrity held web
        vmfence-ref integrity decide web 4711 deny
      """)

  @Argument(help: "The name of the disk's process.")
  var disk: String

  @Argument(help: "The number of the request, as `held` and its event say it.")
  var request: UInt64

  @Argument(help: "allow or deny.")
  var verdict: Verdict

  @OptionGroup var process: DiskProcessOptions

  enum Verdict: String, ExpressibleByArgument, CaseIterable { case allow, deny }

  func run() throws {
    _ = try process.ask(
      disk, DiskControlRequest(.decide, request: request, verdict: verdict == .allow ? .allow : .deny))
    Terminal.output.print("request \(request): \(verdict == .allow ? "passes" : "fails")")
  }
}

/// `vmfence-ref integrity rollback`
struct IntegrityRollback: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rollback",
    abstract: "List what was kept of protected files, and give back what one contained.",
    discussion: """
      Contents only: not names, owners, modes. Without --path, what was kept is listed. With it, the file's contents before a change
      (--before, its number in the list; the first of this file when not given) go to --out, or with --in-place back onto the disk: only
      while no guest uses it, after a clean shutdown, and only where the file is as long as it was.

      EXIT CODES
        0   done
        65  what was kept is damaged, or cannot go back in place
        66  something cannot be read
        73  something cannot be written

      EXAMPLES
        vmfence-ref integrity rollback web.kept
        vmfence-ref integrity rollback web.kept --path /etc/passwd --image /dev/vg0/web --before 3 --out passwd.old
        vmfence-ref integrity rollback web.kept --path /boot/vmlinuz --image /dev/vg0/web --in-place
      """)

  @Argument(help: "The file of kept contents (vmfence-disk --keep).")
  var kept: String

  @Option(help: "The file's path in the guest.")
  var path: String?

  @Option(help: "The raw image or block device that has the file as it is now.")
  var image: String?

  @Option(help: "The number of a change in the list.")
  var before: Int?

  @Option(help: "Where the contents go; - for standard output.")
  var out: String?

  @Flag(name: .customLong("in-place"), help: "Write them back onto the disk.")
  var inPlace = false

  func validate() throws {
    guard path != nil else {
      if before != nil || out != nil || inPlace { throw ValidationError("name the file: --path") }
      return
    }
    guard image != nil else { throw ValidationError("name the disk that has the file now: --image") }
    guard (out != nil) != inPlace else { throw ValidationError("either --out or --in-place") }
  }

  func run() throws {
    guard let path, let image else { return try list() }
    let rollback: Rollback
    do throws(BlockSourceError) {
      rollback = try Rollback(kept, path: path, before: before)
    } catch { throw failure(error, error.code == .inputOutput ? Exit.noInput : Exit.badData) }
    var parts: [(offset: UInt64, bytes: [UInt8])] = []
    let contents: [UInt8]
    do throws(IntegrityError) {
      let file = try rollback.current(on: FileDiskReader(path: image))
      contents = try rollback.undo(file?.contents ?? [])
      if inPlace { parts = try rollback.placed(contents, on: file) }
    } catch { throw failure(error, error.exit) }
    if inPlace {
      try write(parts, to: image)
    } else if let out {
      let handle = out == "-" ? FileHandle.standardOutput : try create(out)
      do { try handle.write(contentsOf: Data(contents)) } catch { throw OutputFile.failure(out, error) }
    }
    Terminal.error.print("\(path.escapedForDisplay): \(rollback.changes.count) changes taken back")
  }

  private func list() throws {
    var number = 0
    let problem: BlockSourceError?
    do throws(BlockSourceError) {
      problem = try KeptFile.read(kept) { item in
        number += 1
        let what = item.isWhole ? "all of it" : item.bytes.isEmpty ? "its length" : "from \(item.offset) on"
        Terminal.output.print(
          "\(number)  \(item.time)  request \(item.sequence) on \(item.disk.escapedForDisplay)  "
            + "\(String(decoding: item.path, as: UTF8.self).escapedForDisplay)  \(item.bytes.count) of \(item.size) bytes, \(what)"
        )
        return true
      }
    } catch { throw failure(error, Exit.noInput) }
    if let problem { throw failure(problem, Exit.badData) }
  }

  private func create(_ path: String) throws -> FileHandle {
    guard let handle = OutputFile.open(path, permissions: 0o600) else {
      throw failure(
        BlockSourceError(.inputOutput, "the file cannot be written", at: SourcePlace(file: path)), Exit.cannotCreate)
    }
    return handle
  }

  private func write(_ parts: [(offset: UInt64, bytes: [UInt8])], to image: String) throws {
    do throws(BlockSourceError) {
      let disk = try DiskFile(path: image)
      for part in parts { try disk.write(part.bytes, at: part.offset) }
    } catch { throw failure(error, error.code == .permissionDenied ? Exit.noPermission : Exit.cannotCreate) }
  }
}
#endif
