import Synchronization
import Testing
import VMFenceCore
import VMFenceIntegrity

/// Patterns as their documentation says what they mean, and no quicker than that: each for itself, a state for each of its components.
private struct SlowPolicy {
  let rules: [(rule: ProtectionPolicy.Rule, components: [[UInt8]], isExcluding: Bool)]

  struct State: Hashable {
    var rule: Int
    var matched: Int
  }

  init(_ rules: [ProtectionPolicy.Rule]) {
    self.rules = rules.map { rule in
      let isExcluding = rule.pattern.hasPrefix("!")
      let components = rule.pattern.utf8.dropFirst(isExcluding ? 2 : 1).split(separator: 0x2F).map(Array.init)
      return (rule, components, isExcluding)
    }
  }

  private func isComplete(_ state: State) -> Bool { state.matched == rules[state.rule].components.count }

  private func add(_ state: State, to states: inout Set<State>) {
    states.insert(state)
    let components = rules[state.rule].components
    guard state.matched + 1 < components.count, components[state.matched] == Array("**".utf8) else { return }
    add(State(rule: state.rule, matched: state.matched + 1), to: &states)
  }

  var root: Set<State> {
    var states: Set<State> = []
    for index in rules.indices { add(State(rule: index, matched: 0), to: &states) }
    return states
  }

  func advance(_ states: Set<State>, by name: [UInt8]) -> Set<State> {
    var next: Set<State> = []
    for state in states where !isComplete(state) {
      let component = rules[state.rule].components[state.matched]
      let further = State(rule: state.rule, matched: state.matched + 1)
      if component == Array("**".utf8) {
        add(state, to: &next)
        if isComplete(further) { next.insert(further) }
      } else if Self.matches(component[...], name[...]) {
        add(further, to: &next)
      }
    }
    if next.contains(where: { rules[$0.rule].isExcluding && isComplete($0) }) { return [] }
    return next.contains { !rules[$0.rule].isExcluding } ? next : []
  }

  func protection(_ states: Set<State>) -> Said? {
    let found = states.filter(isComplete).map { rules[$0.rule].rule }
    guard let action = found.map(\.action).max(), let severity = found.map(\.severity).min() else { return nil }
    return Said(
      action: action, attributes: found.reduce([]) { $0.union($1.attributes) }, severity: severity,
      followsObject: found.contains(where: \.followsObject))
  }

  func reachesBelow(_ states: Set<State>) -> Bool {
    states.contains { !rules[$0.rule].isExcluding && !isComplete($0) }
  }

  /// On a mismatch the last star is tried again.
  static func matches(_ pattern: ArraySlice<UInt8>, _ name: ArraySlice<UInt8>) -> Bool {
    var (p, n) = (pattern.startIndex, name.startIndex)
    var star: (p: Int, n: Int)?
    while n < name.endIndex {
      if p < pattern.endIndex, pattern[p] == 0x2A {
        star = (p, n)
        p += 1
      } else if p < pattern.endIndex, pattern[p] == 0x3F || pattern[p] == name[n] {
        p += 1
        n += 1
      } else if let last = star {
        star?.n += 1
        (p, n) = (last.p + 1, last.n + 1)
      } else {
        return false
      }
    }
    return pattern[p...].allSatisfy { $0 == 0x2A }
  }
}

private struct Said: Equatable {
  var action: ProtectionPolicy.Action
  var attributes: FileAttributes
  var severity: Int
  var followsObject: Bool
}

@Suite struct PatternTests {
  private static func text(_ random: inout Random, _ letters: [UInt8], upTo count: Int) -> [UInt8] {
    (0...Int(random.next() % UInt64(count))).map { _ in letters[Int(random.next() % UInt64(letters.count))] }
  }

  /// Few letters, so that parts nearly match; lengths around those at which another way of searching is taken.
  @Test func aComponentMatchesAsTheSlowWaySays() {
    var random = Random(state: 99)
    var matches = 0
    for round in 0..<20_000 {
      let longest = [6, 12, 70, 150][round % 4]
      var pattern: [UInt8] = []
      for _ in 0...random.next() % 4 {
        let part = Self.text(&random, Array((round % 3 == 0 ? "aab?" : "ab").utf8), upTo: longest)
        pattern += (random.next() % 3 == 0 ? [0x2A] : []) + part + (random.next() % 3 == 0 ? [0x2A, 0x2A] : [0x2A])
      }
      if round % 5 == 0 { pattern.removeLast() }
      // Half of the names are made of the pattern.
      var name = Self.text(&random, Array("aab\u{FF}".utf8), upTo: 250)
      if round % 2 == 0 {
        name = pattern.flatMap { $0 == 0x2A ? Self.text(&random, Array("ab".utf8), upTo: 3) : [$0 == 0x3F ? 0x61 : $0] }
        if random.next() % 3 == 0 { name[Int(random.next() % UInt64(name.count))] = 0x63 }
      }
      var steps = 0
      let isMatch = NamePattern(pattern).matches(name, steps: &steps)
      matches += isMatch ? 1 : 0
      #expect(isMatch == SlowPolicy.matches(pattern[...], name[...]), "\(pattern) \(name)")
    }
    #expect((4000..<16_000).contains(matches), "both are tried: \(matches)")
  }

  /// Patterns of which a part nearly matches everywhere, and the longest names: what is looked at is in proportion to the name.
  @Test(arguments: [
    "*aaaaaaab*", "*\(String(repeating: "a", count: 60))b*", "*\(String(repeating: "a", count: 120))b*",
    "\(String(repeating: "*a", count: 100))b", "*\(String(repeating: "a?", count: 50))b*a", "*?a*?a*?a?????????b*",
  ])
  func aNameIsLookedAtOnce(pattern: String) {
    let pattern = NamePattern(Array(pattern.utf8))
    for count in [1, 100, 254, 255] {
      var steps = 0
      let name = [UInt8](repeating: 0x61, count: count)
      #expect(!pattern.matches(name, steps: &steps))
      // A part of more than 64 bytes costs a step for each 64; and the ends.
      #expect(steps <= 2 * count + 2 * 128, "\(steps) for \(count) bytes")
    }
  }

  private static let components = [
    "a", "b", "ab", "*", "**", "**", "?", "a*", "*b", "a?b*", "***", "*a*b*", "?*", "é", "*aaaaaaaaab*",
  ]

  private static func rule(_ random: inout Random) -> ProtectionPolicy.Rule {
    let parts = (0...random.next() % 4).map { _ in components[Int(random.next() % UInt64(components.count))] }
    return .init(
      (random.next() % 6 == 0 ? "!/" : "/") + (random.next() % 20 == 0 ? "a" : parts.joined(separator: "/")),
      action: ProtectionPolicy.Action.allCases[Int(random.next() % 5)],
      attributes: FileAttributes(rawValue: 1 << UInt32(random.next() % 8)),
      severity: 1 + Int(random.next() % 4), followsObject: random.next() % 4 == 0)
  }

  /// All that is said of paths, and of which two the same is said of all that is below (a directory that moves between these is followed on).
  @Test func allPatternsTogetherSayWhatEachSaysForItself() throws {
    var random = Random(state: 4711)
    var (protected, alike) = (0, 0)
    for _ in 0..<1500 {
      let rules = (0...random.next() % 6).map { _ in Self.rule(&random) } + (random.next() % 9 == 0 ? [.init("/")] : [])
      let (fast, slow) = (try ProtectionPolicy(rules), SlowPolicy(rules))
      var all: [(fast: ProtectionPolicy.Frontier, slow: Set<SlowPolicy.State>)] = []
      for _ in 0..<12 {
        let names = (0..<random.next() % 5).map { _ in Self.text(&random, Array("ab".utf8), upTo: 2) }
        var (new, old) = (fast.rootFrontier, slow.root)
        for name in names {
          new = fast.advance(new, by: name)
          old = slow.advance(old, by: name)
        }
        let expected = slow.protection(old)
        let said = fast.protection(forPath: names.flatMap { [0x2F] + $0 }).map {
          Said(
            action: $0.action, attributes: $0.attributes, severity: $0.severity, followsObject: $0.followsObject)
        }
        #expect(said == expected, "\(rules) \(names)")
        #expect(fast.reachesBelow(new) == slow.reachesBelow(old), "\(rules) \(names)")
        // At the root, rules that take out leave nothing to look at.
        if !names.isEmpty { #expect(new.isEmpty == old.isEmpty, "\(rules) \(names)") }
        for other in all where !names.isEmpty {
          #expect((other.fast == new) == (other.slow == old), "\(rules) \(names)")
          alike += other.slow == old && !old.isEmpty ? 1 : 0
        }
        if !names.isEmpty { all.append((new, old)) }
        protected += expected == nil ? 0 : 1
      }
    }
    #expect(protected > 2000 && alike > 2000, "both are tried: \(protected), \(alike)")
  }

  @Test func whatIsTakenOutAtTheRootIsAll() throws {
    let policy = try ProtectionPolicy([.init("/"), .init("/etc/**"), .init("!/")])
    for path in ["/", "/etc/passwd"] { #expect(policy.action(forPath: Array(path.utf8)) == nil) }
  }

  private final class AttentiveDisk: DiskReader {
    let memory: MemoryDisk
    let calls = Atomic<Int>(0)
    var byteCount: UInt64 { memory.byteCount }

    init(_ bytes: [UInt8]) { memory = MemoryDisk(bytes) }

    func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
      try memory.read(at: offset, into: &buffer)
    }

    func attend() { calls.add(1, ordering: .relaxed) }
  }

  /// Of names that match nothing nothing is read, and there can be a million of them: who waits is seen to with each.
  @Test(arguments: [0, 1] as [UInt64]) func whoWaitsIsSeenToWithEachName(partition: UInt64) throws {
    var image = TinyDisk()
    image.putNames(14, [(".", 12), ("..", 2)] + (0..<50).map { ("n\($0)", UInt32(13)) })
    let disk = AttentiveDisk([UInt8](repeating: 0, count: Int(partition) * 1024) + image.bytes)
    let reader = try PartitionReader(disk, start: partition * 1024, byteCount: disk.byteCount - partition * 1024)
    let monitor = try MonitorSupport.monitor(reader, ["/etc/passwd"])
    #expect(monitor.protectedFiles.isEmpty && disk.calls.load(ordering: .relaxed) >= 50)
  }

  /// One block of a directory can take a million names away.
  @Test func whoWaitsIsSeenToWithEachNameThatGoes() throws {
    var image = TinyDisk()
    image.putNames(14, [(".", 12), ("..", 2)] + (0..<50).map { ("n\($0)", UInt32(13)) })
    let disk = AttentiveDisk(image.bytes)
    var monitor = try MonitorSupport.monitor(disk, ["/etc/**"])
    #expect(monitor.protectedFiles.count == 50)
    let before = disk.calls.load(ordering: .relaxed)
    image.putNames(14, [(".", 12), ("..", 2)])
    let request = BlockRequest(
      sequence: 1, timestamp: Timestamp(seconds: 1), operation: .write, offset: 14 * 1024, length: 1024)
    #expect(image.block(14).withRawSpan { monitor.observe(request, data: $0) } == .allow)
    disk.memory.write(image.block(14), at: 14 * 1024)
    monitor.finish(at: Timestamp(seconds: 9))
    let told = monitor.drainEvents()
    #expect(told.count { $0.operation == .unlink } == 50, "\(told)")
    // When it is found to have gone, when it is given up, and when it is told.
    #expect(disk.calls.load(ordering: .relaxed) - before >= 150)
  }
}
