#if Daemon
import ArgumentParser
import Foundation
import VMFenceCore

/// Files that an operator names for what a command gives out. What is no regular file (a device, a pipe) is written to
/// as it stands: Foundation's `createFile` and `.atomic` would put a regular file in its place, `/dev/null` included.
enum OutputFile {
  /// Opens a file for writing, made anew and emptied; nil, with `errno` set, where that fails.
  static func open(_ path: String, permissions: mode_t = 0o640) -> FileHandle? {
    // SAFETY: the text outlives the call; the descriptor that comes of it belongs to the handle alone.
    let descriptor = unsafe Glibc.open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, permissions)
    return descriptor < 0 ? nil : FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
  }

  /// Refuses to write where something else is read or written: a capture would be emptied before it is inspected.
  ///
  /// - `outputs`: options with their files, `-` among them.
  static func check(_ outputs: [(option: String, path: String?)], apartFrom inputs: [String]) throws(ValidationError) {
    var taken = inputs
    for case (let option, let path?) in outputs where path != "-" {
      guard !taken.contains(where: { $0 != "-" && FileIdentity.isSame($0, path) }) else {
        throw ValidationError(
          "\(option): '\(path.escapedForDisplay)' is read or written otherwise, too, and would be lost: name another file"
        )
      }
      taken.append(path)
    }
  }

  /// Replaces a regular file whole or not at all.
  static func replace(_ path: String, with data: Data) throws {
    var state = stat()
    // SAFETY: both outlive the call.
    let isOther = unsafe stat(path, &state) == 0 && state.st_mode & S_IFMT != S_IFREG
    try data.write(to: URL(filePath: path), options: isOther ? [] : .atomic)
  }

  /// Says that a file cannot be written, and gives the exit code that fits.
  static func failure(_ path: String, _ error: any Error) -> ExitCode {
    // Foundation's own words name neither the folder nor the disk.
    let system = (error as NSError).userInfo[NSUnderlyingErrorKey] as? POSIXError
    let reason = system.map { describeError($0.code.rawValue) } ?? error.localizedDescription
    Terminal.error.print([
      Diagnostic(
        .error, "the file `\(path)` cannot be written: \(reason)".escapedForDisplay,
        remedy: "name a file in a folder that you may write, where there is space")
    ])
    return Exit.cannotCreate
  }
}
#endif
