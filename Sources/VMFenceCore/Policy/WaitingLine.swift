/// Who may go on, first come, first served. As long as the callers who wait.
struct WaitingLine {
  private var isTaken = false
  private var waiting: [CheckedContinuation<Void, Never>] = []

  mutating func tryEnter() -> Bool {
    if isTaken { return false }
    isTaken = true
    return true
  }

  mutating func wait(_ continuation: CheckedContinuation<Void, Never>) { waiting.append(continuation) }

  mutating func leave() {
    if waiting.isEmpty { isTaken = false } else { waiting.removeFirst().resume() }
  }
}
