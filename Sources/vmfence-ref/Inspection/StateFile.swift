#if Daemon
import ArgumentParser
import Foundation
import VMFenceCore

/// A file with what an engine remembered.
enum StateFile {
  /// Bytes of such a file at the most.
  static let limit = 1 << 30

  static func read(_ path: String) throws -> [UInt8] {
    do throws(UnreadableFile) { return try WholeFile.read(path, atMost: limit) } catch {
      Terminal.error.print([
        Diagnostic(
          .error, "the saved state `\(path.escapedForDisplay)` cannot be read: \(error.reason)",
          remedy: "name a file that --save-state wrote")
      ])
      throw Exit.noInput
    }
  }

  /// Whole or not at all.
  static func write(_ bytes: [UInt8], to path: String) throws {
    do { try OutputFile.replace(path, with: Data(bytes)) } catch {
      Terminal.error.print([
        Diagnostic(
          .error, "the state cannot be saved to `\(path.escapedForDisplay)`: \(error.localizedDescription)",
          remedy: "check that its folder exists and may be written")
      ])
      throw Exit.cannotCreate
    }
  }
}
#endif
