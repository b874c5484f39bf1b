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
