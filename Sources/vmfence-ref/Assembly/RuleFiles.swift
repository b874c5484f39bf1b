#if Daemon
internal import Glibc
import Foundation
import VMFenceCore
import VMFenceDetection

/// Reads rule files, and what goes with them.
enum RuleFiles {
  /// Files that one pattern may stand for.
  static let patternMaximum = 4096

  static func read(
    _ path: String, dialect: RuleDialect?, at place: SourcePlace? = nil
  ) throws(RuleLoading.Failure) -> RuleSource {
    do throws(UnreadableFile) { return try RuleSource.reading(path, dialect: dialect) } catch {
      throw RuleLoading.Failure(diagnostics: [
        Diagnostic(
          at: place, "the file `\(path.escapedForDisplay)` cannot be read: \(error.reason)",
          remedy: "check the path and its permissions")
      ])
    }
  }

  /// All files of all patterns (glob(7)), those of one pattern in the order of their names.
  static func read(
    all patterns: [ScenarioRules.File], dialect: RuleDialect?
  ) throws(RuleLoading.Failure) -> [RuleSource] {
    var known: [String: RuleSource] = [:]
    return try read(all: patterns, dialect: dialect, known: &known)
  }

  /// - `known`: those that were read already.
  static func read(
    all patterns: [ScenarioRules.File], dialect: RuleDialect?, known: inout [String: RuleSource]
  ) throws(RuleLoading.Failure) -> [RuleSource] {
    var sources: [RuleSource] = []
    for pattern in patterns {
      for path in try expand(pattern.path, at: pattern.place) {
        let source: RuleSource
        if let read = known[path] {
          source = read
        } else {
          source = try read(path, dialect: dialect, at: pattern.place)
        }
        known[path] = source
        sources.append(source)
      }
    }
    return sources
  }

  /// Whether a pattern stands for a path. The corresponding C function is `fnmatch(3)`.
  static func matches(_ pattern: String, _ path: String) -> Bool {
    if pattern == path { return true }
    // SAFETY: both strings live for the call.
    return unsafe fnmatch(pattern, path, FNM_PATHNAME | FNM_PERIOD) == 0
  }

  /// The files that a path with `*`, `?` or `[…]` stands for; a path without them is itself.
  static func expand(_ pattern: String, at place: SourcePlace?) throws(RuleLoading.Failure) -> [String] {
    guard pattern.contains(where: { "*?[".contains($0) }), !FileManager.default.fileExists(atPath: pattern) else {
      return [pattern]
    }
    // SAFETY: all zeros is what glob(3) expects, and what globfree(3) takes for nothing.
    var found = unsafe glob_t()
    // SAFETY: `found` is what glob(3) filled, or zeros; nothing of it is used later.
    defer { unsafe globfree(&found) }
    // SAFETY: the pattern lives for the call, which writes into `found` alone.
    let result = unsafe glob(pattern, GLOB_MARK, nil, &found)
    var paths: [String] = []
    if result == 0 {
      // SAFETY: glob(3) set it.
      let count = Int(unsafe found.gl_pathc)
      for index in 0..<min(count, patternMaximum + 1) {
        // SAFETY: glob(3) gives `gl_pathc` strings in `gl_pathv`, which live until globfree(3).
        if let path = unsafe found.gl_pathv[index] { paths.append(unsafe String(cString: path)) }
      }
    }
    paths.removeAll { $0.hasSuffix("/") }
    guard !paths.isEmpty, paths.count <= patternMaximum else {
      throw RuleLoading.Failure(diagnostics: [
        Diagnostic(
          at: place,
          paths.isEmpty
            ? "no file is called `\(pattern.escapedForDisplay)`"
            : "`\(pattern.escapedForDisplay)` stands for more than \(patternMaximum) files",
          remedy: "check the path; `*`, `?` and `[…]` stand for names of files")
      ])
    }
    return paths
  }
}
#endif
