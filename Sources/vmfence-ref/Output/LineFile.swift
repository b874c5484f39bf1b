#if Daemon
import ArgumentParser
import Foundation
import VMFenceCore

/// An output of lines: a file, made anew, or standard output under the name `-`. Buffered; an error is kept and thrown
/// by `close()`, so that a full disk is reported once and nothing pretends to be whole.
final class LineFile {
  private let path: String
  private let handle: FileHandle
  private var buffer = Data()
  private var problem: String?

  init(path: String) throws {
    self.path = path
    if path == "-" {
      handle = .standardOutput
      return
    }
    guard let handle = OutputFile.open(path) else {
      // SAFETY: strerror gives a terminated text that is copied at once; no other thread runs yet.
      let reason = unsafe String(cString: strerror(errno))
      Terminal.error.print([
        Diagnostic(
          .error, "the file `\(path.escapedForDisplay)` cannot be written: \(reason)",
          remedy: "check that its folder exists and may be written")
      ])
      throw Exit.cannotCreate
    }
    self.handle = handle
  }

  func write(_ line: [UInt8]) {
    buffer.append(contentsOf: line)
    buffer.append(0x0A)
    if buffer.count >= 1 << 16 { flush() }
  }

  func flush() {
    guard !buffer.isEmpty, problem == nil else { return }
    do { try handle.write(contentsOf: buffer) } catch { problem = "\(error.localizedDescription)" }
    buffer.removeAll(keepingCapacity: true)
  }

  func close() throws {
    flush()
    guard let problem else { return }
    Terminal.error.print([
      Diagnostic(
        .error, "writing `\(path.escapedForDisplay)` failed: \(problem)", remedy: "free space, or write elsewhere")
    ])
    throw Exit.cannotCreate
  }
}
#endif
