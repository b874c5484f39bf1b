import Foundation
import Testing
import VMFenceCore

@Suite("A bell wakes whoever waits")
struct BellTests {
  @Test("a ring before the wait is heard, once")
  func before() {
    let bell = Bell()
    bell.ring()
    bell.ring()
    #expect(bell.wait(upTo: .seconds(60)))
    #expect(!bell.wait(upTo: .milliseconds(1)))
    #expect(!bell.wait(upTo: .zero) && !bell.wait(upTo: .seconds(-5)))
  }

  @Test("a ring from another thread ends the wait")
  func during() {
    let (bell, back) = (Bell(), Bell())
    Thread {
      for _ in 0..<1000 {
        bell.ring()
        _ = back.wait(upTo: .seconds(60))
      }
    }.start()
    for _ in 0..<1000 {
      #expect(bell.wait(upTo: .seconds(60)))
      back.ring()
    }
  }
}
