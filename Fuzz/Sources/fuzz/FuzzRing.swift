@testable import VMFenceCore

// The rings between the supervisor and a detector that has been taken over: frames go in, and the hand that writes verdicts writes what it likes, wherever
// it can. The input is one operation after the other: a byte that says which, and its operands.
// Checked besides "no trap": each frame has its verdict once, in order, with the time and port that it came with, or is given back as the one that was
// skipped; rules, lengths and lists are within their bounds; after what no sound detector writes nothing more is taken, until another detector begins; what
// was counted never goes back.

private let configuration = DetectorChannelConfiguration(
  packetRingBytes: 4096, verdictRingBytes: 16384, snapLength: 512, stateBytes: 4096)

private let counters = [
  InspectorCounter("total", "A total."), InspectorCounter("limit", .limit, "A limit."),
  InspectorCounter("level", .level, "A level."),
]

func fuzzRing(_ input: RawSpan) {
  guard input.byteCount > 1 else { return }
  do throws(DetectorError) {
    var attack = try Attack(Array(input.copiedBytes()))
    while !attack.isAtEnd { try attack.step() }
    try attack.finish()
  } catch { fatalError(error.message) }
}

/// The supervisor's end, what it ought to show, and the hand that writes into the other.
private struct Attack: ~Copyable {
  /// What was put into the ring and has no verdict yet.
  private struct Sent {
    var frame: FrameMetadata
    var bytes: [UInt8]
    var isFrame: Bool
  }

  private let input: [UInt8]
  private var position = 0
  private let channel: DetectorChannel
  private let up: SharedArea
  private var socket: DetectorSocket?
  private var waiting: [Sent] = []
  /// The number of the first of them.
  private var first: UInt64 = 0
  private var isBroken = false
  private var ruleCount = 0
  private var notes: PacketNotes = []
  /// Where the hand writes the next record.
  private var tail: UInt64 = 0
  private var written: UInt64 = 0
  private var shown: [UInt64] = [0, 0]
  private var time = Timestamp.zero

  init(_ input: [UInt8]) throws(DetectorError) {
    self.input = input
    channel = try DetectorChannel(
      configuration: configuration,
      down: .anonymous(byteCount: DetectorChannel.downBytes(configuration)),
      up: .anonymous(byteCount: DetectorChannel.upBytes(configuration)))
    up = channel.up.area(0, count: channel.up.byteCount)
    socket = nil
  }

  var isAtEnd: Bool { position >= input.count }

  private mutating func byte() -> UInt8 {
    defer { position += 1 }
    return position < input.count ? input[position] : 0
  }
  private mutating func number() -> UInt64 { (0..<8).reduce(0) { result, _ in result << 8 | UInt64(byte()) } }
  private mutating func bytes(_ count: Int) -> [UInt8] { (0..<count).map { _ in byte() } }

  mutating func step() throws(DetectorError) {
    switch byte() % 14 {
    case 0, 1: enqueue()
    case 2: tell()
    case 3: channel.publish()
    case 4: collect()
    case 5: writeRecord()
    case 6:
      // A word of what the hand may write, or one of its indices.
      let offset = Int(byte()) << 8 | Int(byte())
      up.store(number(), at: offset * 8 % (up.count - 7) & ~7)
    case 7: up.store(UInt64(byte()) * 16, at: [0, 8, 128, 256, 264, 272, 1024, 1032][Int(byte()) % 8])
    case 8: try attach()
    case 9: detach()
    case 10: try skip()
    case 11: remember()
    case 12: look()
    default: change()
    }
  }

  // MARK: The supervisor

  private mutating func enqueue() {
    let content = bytes(Int(byte()) * 4)
    time = time + .milliseconds(Int(byte()))
    let frame = FrameMetadata(
      timestamp: time, port: PortID(UInt32(byte())), direction: FrameDirection(rawValue: byte() % 3) ?? .unknown,
      originalLength: UInt32(content.count))
    switch content.withRawSpan({ channel.enqueue(frame, $0) }) {
    case .full: break
    case .queued(let id):
      precondition(id == first + UInt64(waiting.count), "a number is missing")
      waiting.append(Sent(frame: frame, bytes: Array(content.prefix(configuration.snapLength)), isFrame: true))
    }
  }

  private mutating func tell() {
    let isTold = byte() % 2 == 0 ? channel.enqueueTime(time) : channel.enqueueEnd(at: time)
    guard isTold else { return }
    let frame = FrameMetadata(timestamp: time, port: PortID(0), originalLength: 0)
    waiting.append(Sent(frame: frame, bytes: [], isFrame: false))
  }

  private mutating func collect() {
    let (channel, rules, notes, wasBroken) = (channel, ruleCount, notes, isBroken)
    var (left, id) = (waiting[...], first)
    do throws(DetectorError) {
      let count = try channel.collect { verdict, alerts in
        guard let sent = left.popFirst() else { fatalError("a verdict for what was never sent") }
        precondition(!wasBroken && verdict.id == id, "a verdict out of its order")
        id += 1
        precondition(verdict.timestamp == sent.frame.timestamp && verdict.port == sent.frame.port, "of another frame")
        precondition(verdict.isOfTime != sent.isFrame, "a verdict of time")
        precondition(sent.isFrame || verdict.verdict == .pass, "a time that is refused")
        precondition(verdict.rule == .max || verdict.rule < rules, "a rule that does not exist")
        precondition(alerts.count <= InspectionOutput.capacity && verdict.overflow <= 0xFFFF, "too many alerts")
        for index in alerts.indices { Self.check(alerts[index], rules: rules) }
        if let refused = channel.refused {
          precondition(refused.frame == sent.frame && refused.head == Array(sent.bytes.prefix(RefusedPacket.headBytes)))
        }
        if let noted = channel.noted { Self.check(noted, sent.bytes, notes) }
      }
      precondition(!wasBroken && UInt64(count) == id - first, "another count")
    } catch {
      isBroken = true
      Self.check(error)
    }
    precondition(UInt64(waiting.count - left.count) == id - first)
    (waiting, first) = (Array(left), id)
    precondition(channel.outstanding == waiting.count, "packets are lost")
  }

  private static func check(_ error: DetectorError) {
    precondition(error.code == .violation, "another error")
    precondition(!error.message.unicodeScalars.contains(where: \.actsOnDisplay), "text that is not escaped")
  }

  private static func check(_ alert: AlertRecord, rules: Int) {
    precondition(alert.ruleIndex < rules, "an alert of a rule that does not exist")
    precondition(Int(alert.excerptLength) <= AlertRecord.excerptCapacity, "a long excerpt")
    precondition(Int(alert.captureLength) <= AlertRecord.captureCapacity && alert.vlan < 4096, "a long capture")
    let incarnation = Incarnation(uuid: DomainUUID(high: 1, low: 2), domainID: DomainID(3))
    _ = Alert(alert, rule: RuleMetadata(sid: 1), incarnation: incarnation, packetID: 4, verdict: .pass)
  }

  private static func check(_ note: PacketNote, _ bytes: [UInt8], _ notes: PacketNotes) {
    precondition(note.anomalies.count <= InspectionOutput.anomalyCapacity, "too many anomalies")
    precondition(note.anomalies.isEmpty || notes.contains(.anomalies), "anomalies that nobody asked for")
    precondition(!note.isTagged || notes.contains(.tagged), "a tag that nobody asked for")
    guard note.frame != nil else { return }
    precondition(note.head == Array(bytes.prefix(NotedPacket.headBytes)) && note.capturedLength == bytes.count)
  }

  private mutating func attach() throws(DetectorError) {
    detach()
    if byte() % 4 == 0 { _ = channel.offerState(bytes(Int(byte())), at: time) }
    ruleCount = Int(byte()) % 8
    socket = try DetectorSocket.pair().attach(to: channel, ruleCount: ruleCount)
    (isBroken, tail, written) = (false, 0, first)
  }

  private mutating func detach() {
    channel.detach()
    socket = nil
  }

  private mutating func skip() throws(DetectorError) {
    detach()
    collect()
    // What was not published yet is no packet for a detector: it is published when one begins.
    guard let head = try channel.headPacket() else { return }
    guard let skipped = try channel.skipHeadPacket(), let sent = waiting.first else { fatalError("nothing to skip") }
    precondition(skipped.id == first && head.id == first && skipped.frame == sent.frame, "another packet")
    precondition(skipped.bytes == sent.bytes, "other bytes")
    waiting.removeFirst()
    first += 1
  }

  private mutating func remember() {
    switch byte() % 4 {
    case 0: _ = channel.askForState(at: time)
    case 1: channel.forgetState()
    default: break
    }
    precondition((channel.takeState()?.count ?? 0) <= configuration.stateBytes, "a state longer than its room")
    if let last = channel.lastState { precondition((1...configuration.stateBytes).contains(last.bytes.count)) }
    _ = (channel.tookOverState, channel.isStateAnswered)
  }

  private mutating func look() {
    let values = channel.inspectorCounters(counters)
    precondition(values[0] >= shown[0] && values[1] >= shown[1], "what was counted goes back")
    shown = Array(values.prefix(2))
    let onlyForNews = byte() % 2 == 0
    if channel.beginWait(onlyForNews: onlyForNews) { channel.endWait() }
  }

  private mutating func change() {
    switch byte() % 3 {
    case 0: channel.keepRefused()
    case 1:
      // Asked for of detectors that begin later: a detector is asked when it is attached, and believed then.
      guard socket == nil else { return }
      notes = PacketNotes(rawValue: byte() % 4)
      channel.keepNotes(PacketNoteConfiguration(notes: notes, perSecond: 1 + Int(byte())))
    default:
      // Rules of another set count from the next frame on; as many, so that what is checked does not depend on it.
      guard socket != nil else { return }
      channel.advanceGeneration(ruleCount: ruleCount)
    }
  }

  // MARK: The hand

  /// A record as a sound detector writes it, but for what its operands change.
  private mutating func writeRecord() {
    let (alerts, anomalies) = (Int(byte()) % 4, Int(byte()) % 3)
    let size = 16 + alerts * RingLayout.alertBytes + anomalies * RingLayout.anomalyBytes
    let (capacity, begin) = (configuration.verdictRingBytes, Int(tail & 0xFFFF_FFFF))
    func place(_ offset: Int) -> Int { RingLayout.controlBytes + (begin + offset) % capacity }
    let changed = byte()
    up.store(written &+ UInt64(changed % 16 == 1 ? 1 : 0), at: place(0))
    let rule = byte() % 4 == 0 ? UInt64(byte()) : UInt64(UInt32.max)
    let verdict = UInt64(byte() % (changed % 16 == 2 ? 4 : 3))
    var word = rule | verdict << 32 | UInt64(anomalies) << 34 | UInt64(alerts) << 40
    if changed % 16 == 3 { word |= UInt64(byte()) << 40 }
    if changed % 16 == 4 { word |= UInt64(byte()) << 34 }
    if changed % 16 == 5 { word |= UInt64(byte()) << 56 }
    up.store(word, at: place(8))
    for index in 0..<alerts {
      let start = 16 + index * RingLayout.alertBytes
      for offset in 0..<RingLayout.alertBytes / 8 { up.store(0 as UInt64, at: place(start + offset * 8)) }
      up.store(byte() % 8 == 0 ? byte() : 0x44, at: place(start + 60))
      for _ in 0..<byte() % 4 { up.store(byte(), at: place(start + Int(byte()) % RingLayout.alertBytes)) }
    }
    for index in 0..<anomalies {
      let start = 16 + alerts * RingLayout.alertBytes + index * RingLayout.anomalyBytes
      up.store(number(), at: place(start))
      up.store(UInt64(byte()) | (byte() % 8 == 0 ? UInt64(byte()) << 8 : 0), at: place(start + 8))
    }
    tail &+= UInt64(size)
    written &+= 1
    up.store(tail, at: RingLayout.verdictTail)
  }

  // MARK: At the end

  /// Whatever was done: a detector that writes nothing wrong can follow, and every frame is accounted for.
  mutating func finish() throws(DetectorError) {
    detach()
    if !isBroken { collect() }
    ruleCount = 1
    socket = try DetectorSocket.pair().attach(to: channel, ruleCount: 1)
    (isBroken, tail, written) = (false, 0, first)
    collect()
    precondition(!isBroken, "a detector that says nothing is not believed")
    detach()
    let total = channel.counters
    precondition(total.enqueued == total.answered + total.skipped + UInt64(waiting.count), "packets are lost")
  }
}
