import Foundation
import Testing
import VMFenceControl

@Suite("What a disk's process says of itself")
struct DiskMessagesTests {
  @Test(
    "a time that is none is shown as the nearest that is one",
    arguments: [("0", 0), ("7.9", 7), ("-1", 0), ("-1e300", 0), ("1e18", 1_000_000_000), ("1e300", 1_000_000_000)])
  func times(said: String, shown: Int) throws {
    let line = """
      {"expected":[{"paths":[],"remaining":\(said)}],"limits":[],"requests":0,"denied":0,
      "held":{"request":1,"paths":[],"waiting":\(said),"remaining":\(said)}}
      """
    let status = try JSONDecoder().decode(DiskControlStatus.self, from: Data(line.utf8))
    let held = try #require(status.held)
    #expect(status.expected.map(\.shownRemaining) == [shown])
    #expect(held.shownRemaining == shown && held.shownWaiting == shown)
  }
}
