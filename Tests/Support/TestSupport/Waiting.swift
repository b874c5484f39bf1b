import Glibc
import Testing

/// How long a test waits, unless it says otherwise. A machine that is busy with other tests takes its time, and only a test that fails waits so long.
public let waitLimit: Duration = .seconds(120)

/// Whether something comes true within `limit`. Keeps its thread meanwhile.
public func comesTrue(within limit: Duration = waitLimit, _ isSo: () throws -> Bool) rethrows -> Bool {
  var looks = Looks(within: limit)
  while try !isSo() {
    guard let pause = looks.pause() else { return false }
    usleep(UInt32(pause / .microseconds(1)))
    looks.hasPaused()
  }
  return true
}

/// The same for a task, which gives its thread to others meanwhile: on a host with one processor they all share it. A task that is cancelled waits no longer.
public func comesTrueSuspending(
  within limit: Duration = waitLimit, isolation: isolated (any Actor)? = #isolation, _ isSo: () async throws -> Bool
) async rethrows -> Bool {
  var looks = Looks(within: limit)
  while try await !isSo() {
    guard let pause = looks.pause(), (try? await Task.sleep(for: pause)) != nil else { return false }
    looks.hasPaused()
  }
  return true
}

/// Waits until something is so, `limit` at the most. Keeps its thread meanwhile.
///
/// - Parameters:
///   - what: what is waited for, as the failure names it.
///   - saying: what the failure shows besides, such as what a process has said.
/// - Throws: `ExpectationFailedError`, at the line that waits, when it never comes true; whatever `isSo` throws.
public func eventually(
  _ what: String, within limit: Duration = waitLimit, saying: () -> String = { "" },
  sourceLocation: SourceLocation = #_sourceLocation, _ isSo: () throws -> Bool
) throws {
  let hasComeTrue = try comesTrue(within: limit, isSo)
  try #require(hasComeTrue, "waited in vain: \(what)\n\(saying())", sourceLocation: sourceLocation)
}

/// When to look again.
private struct Looks {
  private let limit: Duration
  /// Moved on by what pauses took beyond their time.
  private var begin = ContinuousClock.now
  private var wakeUp = ContinuousClock.now
  private var isLast = false

  init(within limit: Duration) { self.limit = limit }

  /// How long to wait before the next look; nil when there is none.
  ///
  /// From 2 to 50 ms, the longer the longer it has taken. Behind the limit there is one more look, after a second: if the machine stood still over it, those
  /// who are waited for have had no time either.
  mutating func pause() -> Duration? {
    guard !isLast else { return nil }
    let now = ContinuousClock.now
    isLast = now - begin >= limit
    let pause = isLast ? .seconds(1) : min(max((now - begin) / 8, .milliseconds(2)), .milliseconds(50))
    wakeUp = now + pause
    return pause
  }

  /// To be called after each pause. Where thousands of tests share two threads, one that gives its thread away has it again when all others have had their turn, which is minutes
  /// later at worst; as long those wait that are waited for. Such time does not count, nor what a machine stands still.
  mutating func hasPaused() { begin += max(.zero, ContinuousClock.now - wakeUp) }
}
