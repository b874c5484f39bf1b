import Glibc
import Testing
import ToyEngine
import VMFenceCore

@Suite("A detector that is a thread")
struct ThreadDetectorTests {
  let backend = ThreadDetectorBackend<ToyInspector>()
  let small = DetectorChannelConfiguration(packetRingBytes: 4096, verdictRingBytes: 16384, snapLength: 1500)

  @Test("answers every packet once, in order, through a ring that wraps many times and is often full")
  func wrapsAndFills() throws {
    let channel = try backend.makeChannel(small)
    let handle = try backend.launch(
      rules: ToyRules([(.alert, 7), (.drop, 9)]), channel: channel, configuration: InspectorConfiguration())
    defer { handle.kill() }
    var noise = Noise(1)
    var expected: [Answer] = []
    var answers: [Answer] = []
    var refused = 0
    for id in 0..<3000 as Range<UInt64> {
      let length = Int.random(in: 0...1500, using: &noise)
      let contains7 = id % 5 == 0 && length > 0
      let contains9 = id % 7 == 0 && length > 1
      var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: id) & 1, count: length)
      if contains7 { bytes[0] = 7 }
      if contains9 { bytes[length - 1] = 9 }
      while channel.send(bytes, at: Int64(id), vlan: UInt16(id)) == .full {
        refused += 1
        channel.publish()
        _ = channel.waitForVerdicts(upTo: .seconds(5))
        answers += try channel.collectAnswers()
      }
      func text(_ rule: Int) -> String {
        let excerpt = bytes.prefix(64).map { String($0, radix: 16) }.joined(separator: " ")
        let low = String(id + 1, radix: 16)
        return
          "\(id) rule \(rule) flow \(id + 1) 10.0.0.1:\(length) > 2001:db8::\(low):\(id) proto 6 flags 9 vlan 7 layer \(id & 0xFF) [\(excerpt)]"
      }
      expected.append(
        Answer(
          id: id, generation: 1, verdict: contains9 ? .drop : .pass, rule: contains9 ? 1 : .max, overflow: 0,
          alerts: (contains7 ? [text(0)] : []) + (contains9 ? [text(1)] : [])))
    }
    answers += try channel.collectAll()
    #expect(answers.count == expected.count)
    for (answer, right) in zip(answers, expected) { try #require(answer == right) }
    #expect(refused > 0)
    #expect(channel.outstanding == 0)
    #expect(channel.counters.enqueued == 3000 && channel.counters.answered == 3000)
    #expect(channel.counters.refused == UInt64(refused))
  }

  @Test("counts alerts that do not fit into one packet's record")
  func alertOverflow() throws {
    let channel = try backend.makeChannel(small)
    let handle = try backend.launch(
      rules: ToyRules([(.flood, 1)]), channel: channel, configuration: InspectorConfiguration())
    defer { handle.kill() }
    for _ in 0..<10 { #expect(channel.send([1]) != .full) }
    let answers = try channel.collectAll()
    #expect(answers.map(\.alerts.count) == Array(repeating: 64, count: 10))
    #expect(answers.allSatisfy { $0.overflow == 36 })
    #expect(channel.counters.alertsLost == 360)
  }

  @Test("ends a wait for news with an alert, and not with packets that pass")
  func news() throws {
    let channel = try backend.makeChannel(small)
    let handle = try backend.launch(
      rules: ToyRules([(.alert, 7)]), channel: channel, configuration: InspectorConfiguration())
    defer { handle.kill() }
    #expect(channel.send([1]) != .full)
    channel.publish()
    #expect(channel.waitForVerdicts(upTo: .seconds(60)) == .verdicts)
    let waitsForNews = channel.beginWait(onlyForNews: true)
    #expect(waitsForNews && channel.endWait(), "a packet that passes is no news")
    let waitsForVerdicts = channel.beginWait()
    #expect(!waitsForVerdicts, "and is a verdict")
    // The detector rings for the alert, or its record is seen before the wait begins. A bell that it rang late for the first wait may end this one: then it is waited once more.
    #expect(channel.send([7]) != .full)
    channel.publish()
    var waits = 0
    while channel.beginWait(onlyForNews: true) {
      var bell = pollfd(fd: try #require(channel.pollDescriptor), events: Int16(POLLIN), revents: 0)
      // SAFETY: one element.
      try #require(unsafe poll(&bell, 1, 60_000) == 1)
      #expect(channel.endWait())
      waits += 1
    }
    #expect(waits <= 2)
    #expect(try channel.collectAnswers().map(\.alerts.count) == [0, 1])
    let waitsAgain = channel.beginWait(onlyForNews: true)
    #expect(waitsAgain && channel.endWait())
  }

  @Test("inspects the packets that waited while it was suspended")
  func suspends() throws {
    let channel = try backend.makeChannel(small)
    let handle = try backend.launch(
      rules: ToyRules([(.alert, 1)]), channel: channel, configuration: InspectorConfiguration())
    defer { handle.kill() }
    try handle.suspend()
    #expect(handle.status == .suspended)
    for _ in 0..<20 { #expect(channel.send([1]) != .full) }
    channel.publish()
    #expect(channel.waitForVerdicts(upTo: .milliseconds(50)) == .timedOut)
    #expect(channel.outstanding == 20)
    try handle.resume()
    #expect(try channel.collectAll().count == 20)
    #expect(handle.status == .running)
  }

  @Test("swaps rules exactly between the packets before and after, keeping its state")
  func swapsRules() throws {
    let channel = try backend.makeChannel(DetectorChannelConfiguration())
    let handle = try backend.launch(
      rules: ToyRules([(.alert, 1)]), channel: channel, configuration: InspectorConfiguration())
    defer { handle.kill() }
    for generation in 2...6 as ClosedRange<UInt32> {
      for _ in 0..<500 { #expect(channel.send([1, 2]) != .full) }
      #expect(try handle.replaceRules(with: ToyRules(generation % 2 == 0 ? [(.drop, 2)] : [(.alert, 1)])) == generation)
    }
    for _ in 0..<500 { #expect(channel.send([1, 2]) != .full) }
    let answers = try channel.collectAll()
    #expect(answers.map(\.generation) == (1...6).flatMap { Array(repeating: UInt32($0), count: 500) })
    for (index, answer) in answers.enumerated() {
      try #require(answer.verdict == (answer.generation % 2 == 0 ? .drop : .pass))
      try #require(answer.alerts[0].contains("flow \(index + 1) "))
    }
  }

  @Test("leaves what it has not answered to its successor")
  func succession() throws {
    let channel = try backend.makeChannel(small)
    var answers: [Answer] = []
    for round in 0..<20 as Range<UInt32> {
      let handle = try backend.launch(
        rules: ToyRules([(.alert, 1)]), channel: channel, configuration: InspectorConfiguration())
      #expect(channel.generation == round + 1)
      for _ in 0..<10 { #expect(channel.send([1]) != .full) }
      channel.publish()
      if round % 3 == 0 { answers += try channel.collectAnswers() }
      handle.kill()
      #expect(handle.status == .killed)
      // Sometimes what it had published is collected after its death, sometimes inspected again: once in any case.
      if round % 3 == 1 { answers += try channel.collectAnswers() }
      while channel.outstanding > 30 { _ = try channel.skipHeadPacket() }
    }
    let skipped = channel.counters.skipped
    let last = try backend.launch(
      rules: ToyRules([(.alert, 1)]), channel: channel, configuration: InspectorConfiguration())
    defer { last.kill() }
    answers += try channel.collectAll()
    #expect(UInt64(answers.count) + skipped == 200)
    #expect(zip(answers, answers.dropFirst()).allSatisfy { $0.id < $1.id })
    #expect(channel.lastAnsweredID == 199)
  }

  @Test("is refused a channel that has a detector")
  func oneDetectorPerChannel() throws {
    let channel = try backend.makeChannel(small)
    let rules = ToyRules([])
    let handle = try backend.launch(rules: rules, channel: channel, configuration: InspectorConfiguration())
    #expect(throws: DetectorError.self) {
      _ = try backend.launch(rules: rules, channel: channel, configuration: InspectorConfiguration())
    }
    handle.kill()
    handle.kill()
    #expect(throws: DetectorError.self) { try handle.suspend() }
    let second = try backend.launch(rules: rules, channel: channel, configuration: InspectorConfiguration())
    second.kill()
  }

  @Test("takes frames of 65 KB and cuts longer ones to the snap length")
  func largeFrames() throws {
    let channel = try backend.makeChannel(DetectorChannelConfiguration(packetRingBytes: 1 << 20))
    let handle = try backend.launch(
      rules: ToyRules([(.alert, 1)]), channel: channel, configuration: InspectorConfiguration())
    defer { handle.kill() }
    var answers: [Answer] = []
    for length in [65_535 + 18, 262_144, 262_145, 300_000] {
      var bytes = [UInt8](repeating: 0, count: length)
      bytes[min(length, 262_144) - 1] = 1
      #expect(channel.send(bytes) != .full)
      answers += try channel.collectAll()
    }
    #expect(answers.map(\.alerts.count) == [1, 1, 1, 1])
    #expect(channel.counters.cut == 2)
  }

  @Test(
    "is not made with rings of impossible sizes",
    arguments: [
      (0, 16384, 64), (4097, 16384, 64), (4096, 8192, 64), (4096, 16384, 0), (4096, 16384, 2009), (-4096, 16384, 1),
      (1 << 31, 16384, 1), (4096, 3 << 14, 1),
    ])
  func impossibleSizes(packet: Int, verdict: Int, snap: Int) {
    #expect(throws: DetectorError.self) {
      _ = try backend.makeChannel(
        DetectorChannelConfiguration(packetRingBytes: packet, verdictRingBytes: verdict, snapLength: snap))
    }
  }
}
