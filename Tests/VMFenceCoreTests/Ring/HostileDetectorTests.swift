import Glibc
import Synchronization
import TestSupport
import Testing
import ToyEngine
import VMFenceCore

/// The detector's side of the shared memory in the hands of an attacker.
struct Forger: Sendable {
  let up: SharedRegion
  let down: SharedRegion
  static let ring = RingLayout.controlBytes

  init(_ channel: DetectorChannel) {
    up = channel.up
    down = channel.down
  }

  func set<Value: BitwiseCopyable & FixedWidthInteger>(_ value: Value, at offset: Int) {
    up.area(0, count: up.byteCount).store(value, at: offset)
  }

  func header(
    id: UInt64, verdict: UInt8 = 0, rule: UInt32 = .max, alerts: UInt8 = 0, overflow: UInt16 = 0, at offset: Int = ring
  ) {
    set(id, at: offset)
    set(UInt64(rule) | UInt64(verdict) << 32 | UInt64(alerts) << 40 | UInt64(overflow) << 48, at: offset + 8)
  }

  /// A sound alert in the first record; its fields are then falsified.
  func alert(at offset: Int = ring + 16) {
    for index in 0..<24 { set(0 as UInt64, at: offset + index * 8) }
    set(0x44 as UInt8, at: offset + 60)
  }

  func tail(_ position: UInt64) { set(position, at: RingLayout.verdictTail) }
}

@Suite("A channel whose detector is hostile")
struct HostileDetectorTests {
  /// A channel with `packets` published and an attacker in place of a detector.
  private func attacked(packets: Int) throws -> (DetectorChannel, Forger) {
    let channel = try ThreadDetectorBackend<ToyInspector>().makeChannel(
      DetectorChannelConfiguration(packetRingBytes: 4096, verdictRingBytes: 16384, snapLength: 1500))
    _ = try DetectorSocket.pair().attach(to: channel, ruleCount: 5)
    for _ in 0..<packets { #expect(channel.send([1, 2, 3]) != .full) }
    channel.publish()
    return (channel, Forger(channel))
  }

  @Test("accepts what is sound, so that the forgeries below are told from it")
  func sound() throws {
    let (channel, forger) = try attacked(packets: 3)
    forger.header(id: 0, verdict: 1, rule: 4, alerts: 1, overflow: 9)
    forger.alert()
    forger.header(id: 1, at: Forger.ring + 208)
    forger.tail(224)
    let answers = try channel.collectAnswers()
    #expect(answers.map(\.id) == [0, 1])
    #expect(answers[0].verdict == .drop && answers[0].rule == 4 && answers[0].overflow == 9)
    #expect(answers[0].alerts.count == 1 && channel.outstanding == 1)
  }

  @Test("of a packet that is refused the head is kept, and no verdict of a time has another's")
  func refusedHeads() throws {
    let (channel, forger) = try attacked(packets: 0)
    channel.keepRefused()
    #expect(channel.send([7, 8, 9]) != .full && channel.enqueueTime(Timestamp(seconds: 1)))
    #expect(channel.send([4]) != .full)
    channel.publish()
    forger.header(id: 0, verdict: 2)
    forger.header(id: 1, at: Forger.ring + 16)
    forger.header(id: 2, verdict: 1, at: Forger.ring + 32)
    forger.tail(48)
    var heads: [[UInt8]?] = []
    try channel.collect { _, _ in heads.append(channel.refused?.head) }
    #expect(heads == [[7, 8, 9], nil, [4]])
  }

  static let forgeries: [(name: String, forge: @Sendable (Forger) -> Void)] = [
    ("an index that is not a multiple of a record's unit", { $0.tail(8) }),
    ("an index a ring's length ahead", { $0.tail(16384 + 16) }),
    ("the highest index", { $0.tail(.max & ~15) }),
    (
      "a verdict that does not exist",
      {
        $0.header(id: 0, verdict: 3); $0.tail(16)
      }
    ),
    (
      "another packet's verdict",
      {
        $0.header(id: 1); $0.tail(16)
      }
    ),
    (
      "the verdict of a packet that was never there",
      {
        $0.header(id: .max); $0.tail(16)
      }
    ),
    (
      "a verdict twice",
      {
        $0.header(id: 0); $0.header(id: 0, at: Forger.ring + 16); $0.tail(32)
      }
    ),
    (
      "more verdicts than packets",
      {
        for id in 0..<4 as Range<UInt64> { $0.header(id: id, at: Forger.ring + Int(id) * 16) }
        $0.tail(64)
      }
    ),
    (
      "a rule that does not exist",
      {
        $0.header(id: 0, verdict: 1, rule: 5); $0.tail(16)
      }
    ),
    (
      "more alerts than a record holds",
      {
        $0.header(id: 0, alerts: 65); $0.tail(16384)
      }
    ),
    (
      "alerts that were not published",
      {
        $0.header(id: 0, alerts: 1); $0.tail(32)
      }
    ),
    ("an alert of a rule that does not exist", { $0.forgeAlert { $0.set(5 as UInt32, at: $1 + 48) } }),
    ("an alert with an unknown flag", { $0.forgeAlert { $0.set(64 as UInt8, at: $1 + 59) } }),
    ("an alert with an impossible VLAN", { $0.forgeAlert { $0.set(4096 as UInt16, at: $1 + 56) } }),
    ("an alert from an unknown address family", { $0.forgeAlert { $0.set(0x45 as UInt8, at: $1 + 60) } }),
    ("an alert to an unknown address family", { $0.forgeAlert { $0.set(0x04 as UInt8, at: $1 + 60) } }),
    ("an IPv4 address of more than 32 bits", { $0.forgeAlert { $0.set(1 << 32 as UInt64, at: $1 + 24) } }),
    ("an IPv4 address with a high half", { $0.forgeAlert { $0.set(1 as UInt64, at: $1 + 32) } }),
    ("captures that are too long", { $0.forgeAlert { $0.set(64 as UInt8, at: $1 + 128) } }),
    ("an excerpt that is too long", { $0.forgeAlert { $0.set(65 as UInt8, at: $1 + 62) } }),
    (
      "a tagged packet that nobody asked for",
      {
        $0.header(id: 0, alerts: 128); $0.tail(16)
      }
    ),
    (
      "an anomaly that nobody asked for",
      {
        $0.header(id: 0, verdict: 1 << 2); $0.tail(32)
      }
    ),
    (
      "more anomalies than a record holds",
      {
        $0.header(id: 0, verdict: 33 << 2); $0.tail(16384)
      }
    ),
    (
      "anomalies that were not published",
      {
        $0.header(id: 0, verdict: 2 << 2); $0.tail(32)
      }
    ),
    ("an alert from an unknown origin", { $0.forgeAlert { $0.set(200 as UInt8, at: $1 + 63) } }),
  ]

  @Test("takes a refusal that no rule of the set gave: settings refuse, too, and so did the rules before")
  func refusalWithoutRule() throws {
    let (channel, forger) = try attacked(packets: 1)
    forger.header(id: 0, verdict: 1)
    forger.tail(16)
    let verdicts = try channel.collectAnswers()
    #expect(verdicts.map(\.verdict) == [.drop])
    #expect(verdicts.map(\.rule) == [.max])
    #expect(channel.counters.violations == 0)
  }

  @Test(
    "takes anomalies behind alerts, and none of a kind that does not exist", arguments: [0, 1, 2, 1 << 16] as [UInt64])
  func anomalies(kind: UInt64) throws {
    let channel = try ThreadDetectorBackend<ToyInspector>().makeChannel(
      DetectorChannelConfiguration(packetRingBytes: 4096, verdictRingBytes: 16384, snapLength: 1500))
    channel.keepNotes(PacketNoteConfiguration(notes: [.anomalies, .tagged]))
    _ = try DetectorSocket.pair().attach(to: channel, ruleCount: 5)
    #expect(channel.send([1, 2, 3]) != .full)
    channel.publish()
    let forger = Forger(channel)
    forger.header(id: 0, verdict: 1 << 2 | 1, rule: 4, alerts: 1 | 128)
    forger.alert()
    forger.set(77 as UInt64, at: Forger.ring + 208)
    forger.set(kind << 8 | 5, at: Forger.ring + 216)
    forger.tail(224)
    var notes: [PacketNote?] = []
    func collect() throws { try channel.collect { _, _ in notes.append(channel.noted) } }
    guard kind <= 1 else {
      #expect(throws: DetectorError.self) { try collect() }
      return
    }
    try collect()
    #expect(notes.count == 1 && notes[0]?.isTagged == true && notes[0]?.head == [1, 2, 3])
    #expect(
      notes[0]?.anomalies == [PacketAnomaly(kind: kind == 0 ? .decode : .stream, number: 5, flowID: 77, layer: 0)])
  }

  @Test("takes alerts about a time, and no refusal of it", arguments: [0, 1, 2] as [UInt8])
  func refusalOfTime(verdict: UInt8) throws {
    let (channel, forger) = try attacked(packets: 0)
    #expect(channel.enqueueTime(Timestamp(seconds: 9)))
    channel.publish()
    forger.header(id: 0, verdict: verdict, rule: verdict == 0 ? .max : 1, alerts: 1)
    forger.alert()
    forger.tail(208)
    if verdict == 0 {
      #expect(try channel.collectAnswers().map(\.alerts.count) == [1])
    } else {
      let error = #expect(throws: DetectorError.self) { try channel.collectAnswers() }
      #expect(error?.code == .violation)
    }
  }

  @Test("says that it was violated, and goes on after a new detector", arguments: forgeries.indices)
  func violation(index: Int) throws {
    let (channel, forger) = try attacked(packets: 3)
    Self.forgeries[index].forge(forger)
    let error = #expect(throws: DetectorError.self, "\(Self.forgeries[index].name)") { try channel.collectAnswers() }
    #expect(error?.code == .violation)
    // It stays violated until another detector is attached.
    #expect(throws: DetectorError.self) { try channel.collectAnswers() }
    #expect(channel.counters.violations == 1)
    // The same packets, in the same order, for whoever comes next.
    let next = channel.lastAnsweredID.map { $0 + 1 } ?? 0
    channel.detach()
    let handle = try ThreadDetectorBackend<ToyInspector>().launch(
      rules: ToyRules([]), channel: channel, configuration: InspectorConfiguration())
    defer { handle.kill() }
    #expect(try channel.collectAll().map(\.id) == Array(next..<3))
  }

  @Test("says that it was violated when an index goes back")
  func indexGoesBack() throws {
    let (channel, forger) = try attacked(packets: 3)
    forger.header(id: 0)
    forger.tail(16)
    #expect(try channel.collectAnswers().count == 1)
    forger.tail(0)
    #expect(throws: DetectorError.self) { try channel.collectAnswers() }
  }

  @Test("survives storms on every shared word, and ends each in a violation", arguments: [false, true])
  func storm(alsoItsOwnWords: Bool) throws {
    for round in 0..<40 as Range<UInt64> {
      let (channel, forger) = try attacked(packets: 3)
      let attacker = Attacker(forger, seed: round + 1, alsoDown: alsoItsOwnWords)
      attacker.start()
      var ended = false
      // By the clock: the attacker's thread may begin late.
      let deadline = ContinuousClock.now + waitLimit
      while !ended, ContinuousClock.now < deadline {
        if channel.send([1, 2, 3]) == .full, channel.beginWait() { channel.endWait() }
        channel.publish()
        do { try channel.collect { _, _ in } } catch { ended = true }
      }
      #expect(ended, "round \(round)")
      channel.detach()
      _ = try? channel.headPacket()
      _ = try? channel.skipHeadPacket()
      attacker.finish()
    }
  }
}

extension Forger {
  /// Publishes one record with one sound alert that `falsify` has changed.
  func forgeAlert(_ falsify: (Forger, Int) -> Void) {
    header(id: 0, alerts: 1)
    alert()
    falsify(self, Forger.ring + 16)
    tail(208)
  }
}

/// A thread that writes noise until it is told to finish.
final class Attacker: Sendable {
  private let forger: Forger
  private let seed: UInt64
  private let alsoDown: Bool
  private let stop = Atomic<Bool>(false)
  private let thread = Mutex<pthread_t>(0)

  init(_ forger: Forger, seed: UInt64, alsoDown: Bool) {
    self.forger = forger
    self.seed = seed
    self.alsoDown = alsoDown
  }

  func start() {
    var handle = pthread_t()
    // SAFETY: the thread takes over the reference; `finish` joins it.
    let error = unsafe pthread_create(
      &handle, nil,
      { context in
        // SAFETY: the reference given below.
        unsafe Unmanaged<Attacker>.fromOpaque(context!).takeRetainedValue().run()
        return nil
      }, Unmanaged.passRetained(self).toOpaque())
    precondition(error == 0)
    thread.withLock { $0 = handle }
  }

  func finish() {
    stop.store(true, ordering: .relaxed)
    _ = pthread_join(thread.withLock { $0 }, nil)
  }

  private func run() {
    var noise = Noise(seed)
    let up = forger.up.area(0, count: forger.up.byteCount)
    let down = forger.down.area(0, count: forger.down.byteCount)
    while !stop.load(ordering: .relaxed) {
      let value = noise.next()
      // Mostly small numbers near sound ones: plain noise is found out at once.
      let word = value % 3 == 0 ? value : value % 3 == 1 ? (value >> 32) & 0x3FF0 : (value >> 40) & 7
      switch (value >> 8) % 8 {
      case 0: up.store((word & 0x3F) &* 16, at: RingLayout.verdictTail)
      case 1: up.store(word, at: RingLayout.detectorSleep)
      case 2...5: up.store(word, at: RingLayout.controlBytes + Int((value >> 16) % 2047) * 8)
      default:
        if alsoDown { down.store(word, at: Int((value >> 16) % 1023) * 8) }
      }
    }
  }
}
