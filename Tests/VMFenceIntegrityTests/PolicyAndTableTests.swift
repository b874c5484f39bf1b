import Testing
import VMFenceIntegrity

@Suite struct ProtectionPolicyTests {
  @Test(arguments: [
    ("/etc/passwd", "/etc/passwd", true), ("/etc/passwd", "/etc/passwd2", false), ("/etc/passwd", "/etc", false),
    ("/etc/*", "/etc/passwd", true), ("/etc/*", "/etc/ssh/sshd_config", false), ("/etc/*", "/etc", false),
    ("/etc/**", "/etc/ssh/sshd_config", true), ("/etc/**", "/etc/passwd", true), ("/etc/**", "/etc", false),
    ("/**/passwd", "/passwd", true), ("/**/passwd", "/a/b/c/passwd", true), ("/**/passwd", "/a/passwd/b", false),
    ("/a/**/b/**/c", "/a/b/c", true), ("/a/**/b/**/c", "/a/x/b/b/y/c", true), ("/a/**/b/**/c", "/a/x/c", false),
    ("/*.conf", "/x.conf", true), ("/*.conf", "/.conf", true), ("/*.conf", "/x.conf.d", false),
    ("/a?c", "/abc", true), ("/a?c", "/ac", false), ("/*a*b*", "/xxaxxbxx", true), ("/*a*b*", "/xxbxxaxx", false),
    ("/**", "/", false), ("/", "/", true), ("/", "/etc", false),
  ]) func patterns(pattern: String, path: String, isProtected: Bool) throws {
    let policy = try ProtectionPolicy([.init(pattern)])
    #expect((policy.action(forPath: Array(path.utf8)) != nil) == isProtected)
  }

  @Test func theStrongestActionCounts() throws {
    let policy = try ProtectionPolicy([.init("/etc/**"), .init("/etc/passwd", action: .denyData)])
    #expect(policy.action(forPath: Array("/etc/passwd".utf8)) == .denyData)
    #expect(policy.action(forPath: Array("/etc/group".utf8)) == .alert)
  }

  @Test(arguments: [
    "", "etc", "//etc", "/etc/", "/etc/../x", "/./x", "/a\0b", "/" + String(repeating: "a", count: 5000),
  ])
  func patternsThatCannotMatchAreRefused(pattern: String) {
    #expect(throws: IntegrityError.self) { try ProtectionPolicy([.init(pattern)]) }
  }

  @Test func manyStarsCostLittle() throws {
    let policy = try ProtectionPolicy([.init("/" + String(repeating: "*a", count: 100) + "b")])
    #expect(policy.action(forPath: Array(("/" + String(repeating: "a", count: 255)).utf8)) == nil)
    let deep = try ProtectionPolicy([.init(String(repeating: "/**/x", count: 40))])
    #expect(deep.action(forPath: Array(String(repeating: "/y", count: 100).utf8)) == nil)
  }
}

@Suite struct BlockTableTests {
  /// Against a set that does the same the slow way.
  @Test func insertionsAndRemovalsInAnyOrderKeepEveryUse() {
    var random = Random(state: 42)
    var table = BlockTable(limit: 500, hashKey: (1, 2))
    var model: [UInt64: Set<BlockUse>] = [:]
    var count = 0
    for _ in 0..<20_000 {
      let block = random.next() % 300
      let use = BlockUse(role: .data, inode: UInt32(random.next() % 4), index: UInt32(random.next() % 3))
      if random.next() % 2 == 0 {
        switch table.insert(block, use) {
        case .inserted:
          #expect(model[block, default: []].insert(use).inserted)
          count += 1
        case .present: #expect(model[block]?.contains(use) == true)
        case .full: #expect(count == 500)
        case .crowded: #expect(model[block]?.count == BlockTable.usesPerBlockLimit)
        }
      } else {
        if model[block]?.remove(use) != nil { count -= 1 }
        table.remove(block, use)
      }
      #expect(table.count == count)
    }
    for block in UInt64(0)..<310 {
      var uses: [(block: UInt64, use: BlockUse)] = []
      table.appendUses(of: block, to: &uses)
      #expect(Set(uses.map(\.use)) == model[block] ?? [] && table.contains(block) == !uses.isEmpty)
    }
    var all: [(block: UInt64, use: BlockUse)] = []
    table.appendUses(in: 0..<UInt64.max, to: &all)
    #expect(all.count == count)
  }

  @Test func stretchesOfBytesStaySortedAndApart() {
    var random = Random(state: 7)
    for _ in 0..<50 {
      var ranges = ByteRanges()
      var model = Set<UInt64>()
      for _ in 0..<40 {
        let start = random.next() % 500
        let end = start + random.next() % 20
        ranges.insert(start..<end)
        for byte in start..<end { model.insert(byte) }
      }
      #expect(Set(ranges.ranges.flatMap { Array($0) }) == model)
      for (a, b) in zip(ranges.ranges, ranges.ranges.dropFirst()) { #expect(a.upperBound < b.lowerBound) }
    }
  }
}
