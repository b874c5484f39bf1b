#if Daemon
import Foundation
import VMFenceCore
import VMFenceDetection
import VMFenceIntegrity

/// Compares what was written to protected files with rules, in a thread of its own that is started before the system call filter: a guest
/// does not wait for it. What finds no room here waits in the monitor, which bounds and counts it.
final class ContentDesk: @unchecked Sendable {
  /// Contents that wait, in bytes: from so many on nothing is taken.
  private static let byteLimit = 8 << 20
  /// Matches that wait to be told; more are counted as lost.
  private static let matchLimit = 4096

  // Everything below is looked at with this lock held.
  private let changed = NSCondition()
  private var waiting: [FileContents] = []
  private var waitingBytes = 0
  private var isBusy = false
  private var matches: [FileEvent] = []
  private var counters = Counters()
  private var beginning: Result<Void, RuleCompilationError>?

  struct Counters {
    var files: UInt64 = 0
    var matches: UInt64 = 0
    var lostMatches: UInt64 = 0
  }

  /// Starts the thread, and waits until it is ready.
  ///
  /// - Throws: when the engine does not take the rules.
  init(_ rules: SnortRules) throws(RuleCompilationError) {
    let thread = Thread { [self] in work(rules) }
    thread.name = "contents"
    thread.start()
    try begun()
  }

  private func begun() throws(RuleCompilationError) {
    changed.lock()
    defer { changed.unlock() }
    while true {
      if let beginning { return try beginning.get() }
      changed.wait()
    }
  }

  /// Compiles the rules of some files; what is wrong with some of them is told, and the others are used.
  ///
  /// - Throws: when a file cannot be read, or nothing of it can be used.
  static func compile(_ paths: [String], tell: (Diagnostic) -> Void) throws(RuleCompilationError) -> SnortRules {
    var sources: [RuleSource] = []
    for path in paths {
      do throws(UnreadableFile) { sources.append(try RuleSource.reading(path)) } catch {
        throw RuleCompilationError(
          .inputOutput, "the rule file `\(path.escapedForDisplay)` cannot be read: \(error.reason)",
          remedy: "check the path and its permissions")
      }
    }
    var engine = SnortRuleEngine()
    // Nothing of sets is kept between runs: the sandbox is closed when they end.
    engine.readData = SnortRuleEngine.dataReader(stateFolder: nil)
    let compilation = try engine.compile(RuleCompilationRequest(sources: sources))
    for diagnostic in compilation.diagnostics where diagnostic.severity != .note { tell(diagnostic) }
    return compilation.rules
  }

  var hasRoom: Bool { locked { waitingBytes < Self.byteLimit } }

  /// Takes what is to be compared.
  func take(_ contents: FileContents) {
    locked {
      waiting.append(contents)
      waitingBytes += contents.bytes.count
      changed.broadcast()
    }
  }

  /// What was found since the last call.
  ///
  /// - `all`: waits until everything that was taken is compared.
  func drain(all: Bool = false) -> [FileEvent] {
    locked {
      while all, isBusy || !waiting.isEmpty { changed.wait() }
      defer { matches.removeAll() }
      return matches
    }
  }

  var statistics: Counters { locked { counters } }

  private func locked<Value>(_ body: () -> Value) -> Value {
    changed.lock()
    defer { changed.unlock() }
    return body()
  }

  private func begin(_ result: Result<Void, RuleCompilationError>) {
    locked {
      beginning = result
      changed.broadcast()
    }
  }

  private func work(_ rules: SnortRules) {
    do throws(RuleCompilationError) {
      var inspection = try ContentInspection<SnortInspector>(rules: rules)
      begin(.success(()))
      while true {
        let contents = next()
        let lostBefore = inspection.lostMatches
        let found = inspection.inspect(contents).map { contents.event(matching: $0) }
        let lost = inspection.lostMatches - lostBefore
        locked {
          counters.files += 1
          counters.matches += UInt64(found.count)
          let room = Self.matchLimit - matches.count
          matches += found.prefix(room)
          counters.lostMatches += lost + UInt64(max(0, found.count - room))
          isBusy = false
          changed.broadcast()
        }
      }
    } catch { begin(.failure(error)) }
  }

  private func next() -> FileContents {
    locked {
      while waiting.isEmpty { changed.wait() }
      isBusy = true
      let contents = waiting.removeFirst()
      waitingBytes -= contents.bytes.count
      return contents
    }
  }
}
#endif
