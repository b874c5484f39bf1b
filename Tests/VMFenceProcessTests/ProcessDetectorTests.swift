import Glibc
import TestSupport
import Testing
import ToyEngine
import VMFenceCore
import VMFenceProcess

@Suite("A detector that is a process", .serialized)
struct ProcessDetectorTests {
  let backend: ProcessDetectorBackend<ToyRules>
  let small = DetectorChannelConfiguration(packetRingBytes: 8192, verdictRingBytes: 16384, snapLength: 2048)
  let inspector = InspectorConfiguration()

  init() throws {
    backend = try ProcessDetectorBackend(
      executable: ProcessDetectorBackend<ToyRules>.besideThisProgram("test-detector"))
  }

  /// Sends frames of a repeatable noise, waiting when the ring is full, and collects every answer.
  private func exchange(
    _ channel: DetectorChannel, count: Int, during: (Int) throws -> Void = { _ in }
  ) throws -> [Answer] {
    var noise = Noise(5)
    var answers: [Answer] = []
    for index in 0..<count {
      let length = Int.random(in: 0...2048, using: &noise)
      let bytes = (0..<length).map { _ in UInt8.random(in: 0...255, using: &noise) & 0x3F }
      while channel.send(bytes, at: Int64(index)) == .full {
        channel.publish()
        try #require(channel.waitForVerdicts(upTo: waitLimit) == .verdicts)
        answers += try channel.collectAnswers()
      }
      try during(index)
    }
    return answers + (try channel.collectAll())
  }

  @Test("says exactly what a thread says of the same packets")
  func sameAsThread() throws {
    let rules = ToyRules([(.alert, 7), (.drop, 9), (.flood, 11)])
    let channel = try backend.makeChannel(small)
    let process = try backend.launch(rules: rules, channel: channel, configuration: inspector)
    defer { process.kill() }
    let ofProcess = try exchange(channel, count: 400)
    let threads = ThreadDetectorBackend<ToyInspector>()
    let other = try threads.makeChannel(small)
    let thread = try threads.launch(rules: rules, channel: other, configuration: inspector)
    defer { thread.kill() }
    let ofThread = try exchange(other, count: 400)
    #expect(ofProcess.count == 400)
    #expect(ofProcess == ofThread)
    #expect(channel.counters.answered == 400)
  }

  @Test("killed in the middle of a stream, again and again, loses nothing and doubles nothing")
  func killedMidStream() throws {
    let channel = try backend.makeChannel(small)
    let rules = ToyRules([(.alert, 7)])
    var current = try backend.launch(rules: rules, channel: channel, configuration: inspector)
    var kills = 0
    let answers = try exchange(channel, count: 3000) { index in
      guard index % 211 == 100 else { return }
      let process = try #require(current as? ProcessDetector<ToyRules>)
      #expect(kill(process.processID, SIGKILL) == 0)
      try eventually("the detector's status") { current.status == .crashed(signal: SIGKILL) }
      current.kill()
      current = try backend.launch(rules: rules, channel: channel, configuration: inspector)
      kills += 1
    }
    current.kill()
    #expect(kills > 10)
    #expect(answers.map(\.id) == Array(0..<3000))
  }

  @Test("that crashes names the packet; skipping it lets the next detector go on at once")
  func poisonPacket() throws {
    let channel = try backend.makeChannel(small)
    let rules = ToyRules([(.alert, 1), (.crash, 2)])
    for byte in [1, 1, 1, 2, 1, 1] as [UInt8] { #expect(channel.send([byte, 0], at: Int64(byte)) != .full) }
    channel.publish()
    var answers: [Answer] = []
    for attempt in 0..<2 {
      let process = try backend.launch(rules: rules, channel: channel, configuration: inspector)
      try eventually("the detector's status") { process.status == .crashed(signal: SIGABRT) }
      answers += try channel.collectAnswers()
      process.kill()
      #expect(process.status == .crashed(signal: SIGABRT))
      #expect(try channel.headPacket()?.id == 3, "attempt \(attempt)")
    }
    let evidence = try #require(try channel.skipHeadPacket())
    #expect(evidence.id == 3 && evidence.bytes == [2, 0] && evidence.frame.timestamp.nanoseconds == 2)
    let process = try backend.launch(rules: rules, channel: channel, configuration: inspector)
    defer { process.kill() }
    answers += try channel.collectAll()
    #expect(answers.map(\.id) == [0, 1, 2, 4, 5])
    #expect(channel.counters.skipped == 1 && channel.counters.answered == 5)
  }

  @Test("that hangs can be suspended, named its packet, and killed")
  func hang() throws {
    let channel = try backend.makeChannel(small)
    let process = try backend.launch(rules: ToyRules([(.hang, 2)]), channel: channel, configuration: inspector)
    for byte in [1, 2, 1] as [UInt8] { #expect(channel.send([byte]) != .full) }
    var answers: [Answer] = []
    channel.publish()
    while answers.isEmpty, channel.waitForVerdicts(upTo: waitLimit) == .verdicts {
      answers += try channel.collectAnswers()
    }
    #expect(channel.waitForVerdicts(upTo: .milliseconds(20)) == .timedOut)
    try process.suspend()
    #expect(process.status == .suspended)
    process.kill()
    #expect(process.status == .killed)
    #expect(answers.map(\.id) == [0])
    #expect(try channel.headPacket()?.bytes == [2])
    #expect(channel.waitForVerdicts(upTo: .seconds(10)) == .gone)
  }

  @Test("suspended, it runs not at all; resumed, it inspects what has waited")
  func suspends() throws {
    let channel = try backend.makeChannel(DetectorChannelConfiguration())
    let process = try backend.launch(rules: ToyRules([(.alert, 1)]), channel: channel, configuration: inspector)
    defer { process.kill() }
    for round in 0..<20 {
      try process.suspend()
      try process.suspend()
      #expect(process.status == .suspended)
      for _ in 0..<50 { #expect(channel.send([1]) != .full) }
      channel.publish()
      #expect(channel.waitForVerdicts(upTo: .milliseconds(5)) == .timedOut)
      try process.resume()
      #expect(process.status == .running)
      #expect(try channel.collectAll().count == 50, "round \(round)")
    }
  }

  @Test("swaps rules exactly between the packets before and after, also those that came while it was suspended")
  func swapsRules() throws {
    let channel = try backend.makeChannel(DetectorChannelConfiguration())
    let process = try backend.launch(rules: ToyRules([(.alert, 1)]), channel: channel, configuration: inspector)
    defer { process.kill() }
    try process.suspend()
    for generation in 2...40 as ClosedRange<UInt32> {
      if generation == 20 { try process.resume() }
      for _ in 0..<100 { #expect(channel.send([1, 2]) != .full) }
      channel.publish()
      #expect(
        try process.replaceRules(with: ToyRules(generation % 2 == 0 ? [(.drop, 2)] : [(.alert, 1)])) == generation)
    }
    for _ in 0..<100 { #expect(channel.send([1, 2]) != .full) }
    let answers = try channel.collectAll()
    #expect(answers.map(\.generation) == (1...40).flatMap { Array(repeating: UInt32($0), count: 100) })
    for (index, answer) in answers.enumerated() {
      try #require(answer.verdict == (answer.generation % 2 == 0 ? .drop : .pass))
      try #require(answer.alerts[0].contains("flow \(index + 1) "))
    }
  }

  @Test("takes frames of 65 KB and more")
  func largeFrames() throws {
    let channel = try backend.makeChannel(DetectorChannelConfiguration(packetRingBytes: 1 << 20))
    let process = try backend.launch(rules: ToyRules([(.alert, 1)]), channel: channel, configuration: inspector)
    defer { process.kill() }
    var answers: [Answer] = []
    for length in [65_535 + 18, 262_144, 262_145, 65_553, 262_144] {
      var bytes = [UInt8](repeating: 0, count: length)
      bytes[min(length, 262_144) - 1] = 1
      #expect(channel.send(bytes) != .full)
      answers += try channel.collectAll()
    }
    #expect(answers.map(\.alerts.count) == [1, 1, 1, 1, 1])
    #expect(channel.counters.cut == 1)
  }

  @Test("leaves no process and no descriptor behind")
  func leavesNothing() throws {
    let rules = ToyRules([(.alert, 1)])
    func cycle() throws {
      let channel = try backend.makeChannel(small)
      let process = try backend.launch(rules: rules, channel: channel, configuration: inspector)
      _ = channel.send([1])
      #expect(try channel.collectAll().count == 1)
      process.kill()
      let id = try #require(process as? ProcessDetector<ToyRules>).processID
      #expect(kill(id, 0) == -1 && errno == ESRCH)
    }
    try cycle()
    // Other suites open and close descriptors at the same time: at no leak, some look finds no more than before, and some that these have opened for good.
    let before = openDescriptors()
    for _ in 0..<60 { try cycle() }
    try eventually("descriptors are closed") { openDescriptors() <= before + 40 }
  }

  @Test("is refused when the program is not there or not a detector")
  func badPrograms() throws {
    #expect(throws: DetectorError.self) { try ProcessDetectorBackend<ToyRules>(executable: "/nonexistent/detector") }
    let wrong = try ProcessDetectorBackend<ToyRules>(executable: "/bin/true")
    let channel = try wrong.makeChannel(small)
    let process = try wrong.launch(rules: ToyRules([]), channel: channel, configuration: inspector)
    try eventually("the detector's status") { process.status == .exited(code: 0) }
    process.kill()
  }

  @Test("refuses to be started by hand, with a message")
  func startedByHand() throws {
    var pid: pid_t = 0
    let path = try ProcessDetectorBackend<ToyRules>.besideThisProgram("test-detector")
    // SAFETY: an empty argument list and environment.
    #expect(unsafe posix_spawn(&pid, path, nil, nil, [nil], [nil]) == 0)
    var status: Int32 = 0
    // SAFETY: a child of ours.
    #expect(unsafe waitpid(pid, &status, 0) == pid)
    #expect(status >> 8 & 0xFF == 64)
  }
}

func openDescriptors() -> Int {
  (0..<2048 as Range<Int32>).count { fcntl($0, F_GETFD) != -1 }
}
