import Synchronization
import TestSupport
import Testing

@Suite("Waiting in tests")
struct WaitingTests {
  @Test("what comes true only behind the limit has come true: the machine may have stood still")
  func behindLimit() async throws {
    var looks = 0
    func isSo() -> Bool {
      looks += 1
      return looks == 2
    }
    #expect(comesTrue(within: .zero, isSo) && looks == 2)
    looks = 0
    #expect(await comesTrueSuspending(within: .zero) { isSo() } && looks == 2)
    looks = 0
    try eventually("the second look", within: .zero, isSo)
    #expect(looks == 2)
  }

  @Test("what never comes true is looked at once more, and no oftener")
  func never() async {
    var looks = 0
    func isSo() -> Bool {
      looks += 1
      return false
    }
    #expect(!comesTrue(within: .zero, isSo) && looks == 2)
    #expect(await !comesTrueSuspending(within: .zero) { isSo() } && looks == 4)
  }

  @Test("a failure is at the line that waits, and says what was waited for")
  func failure() throws {
    let line = #line + 2
    try withKnownIssue {
      try eventually("the impossible", within: .zero, saying: { "it sleeps" }) { false }
    } matching: { issue in
      let text = issue.comments.map(\.rawValue).joined()
      return issue.sourceLocation?.line == line && text.contains("waited in vain: the impossible\nit sleeps")
    }
  }

  @Test("a task that is cancelled waits no longer")
  func cancelled() async {
    let looks = Atomic(0)
    let waiting = Task {
      await comesTrueSuspending {
        looks.add(1, ordering: .relaxed)
        return false
      }
    }
    waiting.cancel()
    #expect(await !waiting.value && looks.load(ordering: .relaxed) < 100)
  }
}
