/// The supervisor's end of the verdict ring. The other end may be owned by an attacker: each word is read once, each
/// record copied to private memory first and checked there.
struct VerdictRingReader: ~Copyable {
  private let up: SharedRegion
  private let down: SharedRegion
  private let ring: SharedArea
  private let sharedTail: SharedWord
  private let sharedNews: SharedWord
  private let sharedHead: SharedWord
  private let capacity: UInt64
  private(set) var head: UInt64 = 0
  private var lastTail: UInt64 = 0
  /// Where alerts are copied before they are looked at.
  private let scratch: PrivateArea

  init(up: SharedRegion, down: SharedRegion, capacity: Int) {
    self.up = up
    self.down = down
    ring = up.area(RingLayout.controlBytes, count: capacity)
    sharedTail = up.word(RingLayout.verdictTail)
    sharedNews = up.word(RingLayout.verdictNews)
    sharedHead = down.word(RingLayout.verdictHead)
    self.capacity = UInt64(capacity)
    scratch = PrivateArea(count: RingLayout.largestRecord)
  }

  /// Empties the ring for the next detector. Only while none runs.
  mutating func reset() {
    head = 0
    lastTail = 0
    sharedNews.storeReleasing(0)
    sharedTail.storeReleasing(0)
    sharedHead.storeReleasing(0)
  }

  /// Whether there may be something to take.
  var hasRecords: Bool { sharedTail.loadAcquiring() != head }

  /// Whether some of it may be more than packets that pass without an alert. A detector that lies about this gets no more of our time than by
  /// answering.
  var hasNews: Bool { hasRecords && sharedNews.loadOnce() > head }

  /// How many bytes of records there are to take now.
  mutating func available() throws(DetectorError) -> UInt64 {
    let tail = sharedTail.loadAcquiring()
    guard tail >= lastTail, tail - head <= capacity, tail % UInt64(RingLayout.recordHeader) == 0 else {
      throw violation("an impossible index: \(tail) after \(lastTail), \(head) taken")
    }
    lastTail = tail
    return tail - head
  }

  struct Header {
    var id: UInt64
    var rule: UInt32
    var verdict: Verdict
    var alertCount: Int
    var overflow: Int
    var anomalyCount: Int
    var isTagged: Bool

    var hasNotes: Bool { anomalyCount > 0 || isTagged }
  }

  /// Takes the header of the next record; `available` is what is left of the bytes that were there.
  @inline(__always)
  mutating func takeHeader(available: inout UInt64) throws(DetectorError) -> Header {
    // A header never wraps: records are multiples of 16 bytes, and so is the ring.
    let offset = Int(head & (capacity - 1))
    let id = ring.loadOnce(offset)
    let word = ring.loadOnce(offset + 8)
    let count = Int(word >> 40 & 0x7F)
    let anomalies = Int(word >> 34 & 0x3F)
    let length = count * RingLayout.alertBytes + anomalies * RingLayout.anomalyBytes
    let size = UInt64(RingLayout.recordHeader + length)
    guard let verdict = Verdict(rawValue: UInt8(truncatingIfNeeded: word >> 32) & 3) else {
      throw violation("a verdict that does not exist, for packet \(id)")
    }
    guard count <= InspectionOutput.capacity, anomalies <= InspectionOutput.anomalyCapacity, size <= available else {
      throw violation("\(count) alerts and \(anomalies) anomalies in \(available) bytes, for packet \(id)")
    }
    if length > 0 { copyContents(length) }
    head += size
    available -= size
    return Header(
      id: id, rule: UInt32(truncatingIfNeeded: word), verdict: verdict, alertCount: count, overflow: Int(word >> 48),
      anomalyCount: anomalies, isTagged: word >> 47 & 1 == 1)
  }

  private func copyContents(_ length: Int) {
    let offset = Int((head + UInt64(RingLayout.recordHeader)) & (capacity - 1))
    let first = min(length, Int(capacity) - offset)
    ring.copy(from: offset, length: first, to: scratch.area)
    if first < length { ring.copy(from: 0, length: length - first, to: scratch.area, at: first) }
  }

  /// The alert at `index` of the record whose header was taken last.
  func alert(_ index: Int, ruleCount: Int) throws(DetectorError) -> AlertRecord {
    guard let alert = AlertRecord(decoding: scratch.area, at: index * RingLayout.alertBytes, ruleCount: ruleCount)
    else {
      throw violation("an alert with an impossible field")
    }
    return alert
  }

  /// The anomaly at `index` of the record whose header was taken last.
  func anomaly(_ index: Int, of header: Header) throws(DetectorError) -> PacketAnomaly {
    let offset = header.alertCount * RingLayout.alertBytes + index * RingLayout.anomalyBytes
    guard let anomaly = PacketAnomaly(decoding: scratch.area, at: offset) else {
      throw violation("an anomaly of a kind that does not exist")
    }
    return anomaly
  }

  /// Lets the detector use again what was taken.
  func publishHead() { sharedHead.storeReleasing(head) }

  func violation(_ what: String) -> DetectorError {
    DetectorError(
      .violation, "the detector wrote \(what)", remedy: "it is to be killed: a sound detector never writes this")
  }
}

/// The detector's end of the verdict ring.
struct VerdictRingWriter: ~Copyable {
  private let up: SharedRegion
  private let down: SharedRegion
  private let ring: SharedArea
  private let sharedTail: SharedWord
  private let sharedNews: SharedWord
  private let sharedHead: SharedWord
  private let capacity: UInt64
  private var tail: UInt64
  private var head: UInt64
  private let scratch: PrivateArea
  private let notes: PacketNotes

  init(up: SharedRegion, down: SharedRegion, stateBytes: Int, notes: PacketNotes) {
    self.notes = notes
    self.up = up
    self.down = down
    let count = up.byteCount - RingLayout.controlBytes - stateBytes
    ring = up.area(RingLayout.controlBytes, count: count)
    sharedTail = up.word(RingLayout.verdictTail)
    sharedNews = up.word(RingLayout.verdictNews)
    sharedHead = down.word(RingLayout.verdictHead)
    capacity = UInt64(count)
    tail = sharedTail.loadAcquiring()
    head = sharedHead.loadAcquiring()
    scratch = PrivateArea(count: RingLayout.alertBytes)
  }

  static func recordBytes(_ output: borrowing InspectionOutput) -> UInt64 {
    UInt64(
      RingLayout.recordHeader + output.count * RingLayout.alertBytes + output.anomalies.count * RingLayout.anomalyBytes)
  }

  /// Whether a record of `bytes` fits now.
  @inline(__always)
  mutating func hasRoom(_ bytes: UInt64) -> Bool {
    if capacity - (tail - head) >= bytes { return true }
    head = sharedHead.loadAcquiring()
    return capacity - (tail - head) >= bytes
  }

  /// Writes and publishes one record. There must be room.
  ///
  /// - Returns: whether it is news: an alert, or a packet that is refused.
  @inline(__always)
  mutating func append(id: UInt64, _ output: borrowing InspectionOutput) -> Bool {
    let offset = Int(tail & (capacity - 1))
    let count = output.count
    ring.store(id, at: offset)
    var word =
      UInt64(output.verdictRule) | UInt64(output.verdict.rawValue) << 32 | UInt64(count) << 40
      | UInt64(min(output.overflow, 0xFFFF)) << 48
    if !notes.isEmpty {
      word |= UInt64(output.anomalies.count) << 34
      if output.isTagged, notes.contains(.tagged) { word |= 1 << 47 }
    }
    ring.store(word, at: offset + 8)
    tail += UInt64(RingLayout.recordHeader)
    for index in 0..<count { append(output[index]) }
    for index in output.anomalies.indices { append(output.anomalies[index]) }
    let isNews = count > 0 || output.verdict != .pass
    if isNews { sharedNews.storeOnce(tail) }
    sharedTail.storeReleasing(tail)
    return isNews
  }

  /// Never across the ring's end: it has a record's unit.
  private mutating func append(_ anomaly: PacketAnomaly) {
    anomaly.encode(into: ring, at: Int(tail & (capacity - 1)))
    tail += UInt64(RingLayout.anomalyBytes)
  }

  /// An alert may lie across the ring's end: records are only aligned to 16 bytes.
  private mutating func append(_ alert: AlertRecord) {
    let offset = Int(tail & (capacity - 1))
    alert.encode(into: scratch.area, at: 0)
    let first = min(RingLayout.alertBytes, Int(capacity) - offset)
    scratch.area.copy(from: 0, length: first, to: ring, at: offset)
    if first < RingLayout.alertBytes {
      scratch.area.copy(from: first, length: RingLayout.alertBytes - first, to: ring)
    }
    tail += UInt64(RingLayout.alertBytes)
  }
}

/// Bytes of one side only, with the accessors of shared ones.
@safe final class PrivateArea {
  let area: SharedArea
  // SAFETY: the allocation that `area` covers; never handed out.
  private let base: UnsafeMutableRawPointer

  init(count: Int) {
    let base = UnsafeMutableRawPointer.allocate(byteCount: count, alignment: 16)
    // SAFETY: the allocation has this size, and is zeroed before anything reads it.
    unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: count)
    unsafe self.base = base
    // SAFETY: valid for `count` bytes as long as this object lives; its holders hold the area only through it.
    area = unsafe SharedArea(base, count: count)
  }

  // SAFETY: allocated above, released once.
  deinit { unsafe base.deallocate() }
}
