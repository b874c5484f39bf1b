import Testing
import VMFenceControl

@Suite("What a disk's process keeps for whoever follows it next")
struct DiskEventBacklogTests {
  @Test func linesAreKeptUntilTheyAreAcknowledged() {
    var backlog = DiskEventBacklog()
    for byte in UInt8(1)...5 { backlog.append([byte]) }
    #expect(backlog.first == 1 && backlog.end == 6 && backlog[1] == [1] && backlog[5] == [5])
    #expect(backlog[0] == nil && backlog[6] == nil && backlog[.max] == nil)
    backlog.remove(through: 3)
    #expect(backlog.first == 4 && backlog[3] == nil && backlog[4] == [4])
    backlog.remove(through: .max)
    #expect(backlog.first == 6 && backlog.end == 6)
    backlog.append([6])
    #expect(backlog[6] == [6] && backlog.end == 7)
  }

  @Test func theOldestGiveWay() {
    var backlog = DiskEventBacklog()
    let count = UInt64(3 * DiskEventBacklog.countLimit + 7)
    for number in 1...count { backlog.append([UInt8(truncatingIfNeeded: number)]) }
    #expect(backlog.end == count + 1 && backlog.end - backlog.first == UInt64(DiskEventBacklog.countLimit))
    #expect((backlog.first..<backlog.end).allSatisfy { backlog[$0] == [UInt8(truncatingIfNeeded: $0)] })
  }

  @Test func bytesAreBoundedAndTheNewestIsKept() {
    var backlog = DiskEventBacklog()
    let half = [UInt8](repeating: 1, count: DiskEventBacklog.byteLimit / 2)
    for _ in 0..<3 { backlog.append(half) }
    #expect(backlog.first == 2 && backlog.end == 4)
    backlog.append(half + half + half)
    #expect(backlog.first == 4 && backlog.end == 5)
    backlog.append([2])
    #expect(backlog.first == 5 && backlog[5] == [2])
  }
}
