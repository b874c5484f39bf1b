import Glibc

/// Whether something comes true within a minute. Looks every 2 ms, and keeps its thread.
public func comesTrue(_ isSo: () throws -> Bool) rethrows -> Bool {
  let deadline = ContinuousClock.now + .seconds(60)
  while try !isSo() {
    guard ContinuousClock.now < deadline else { return false }
    usleep(2000)
  }
  return true
}

/// The same for a task, which gives its thread to others meanwhile: on a host with one processor they all share it.
public func comesTrueSuspending(
  isolation: isolated (any Actor)? = #isolation, _ isSo: () async throws -> Bool
) async rethrows -> Bool {
  let deadline = ContinuousClock.now + .seconds(60)
  while try await !isSo() {
    guard ContinuousClock.now < deadline else { return false }
    try? await Task.sleep(for: .milliseconds(2))
  }
  return true
}
