/// The supervisor's end of the packet ring. Its indices are private: what lies in shared memory is a copy for the
/// detector, and is never read back as an index.
struct PacketRingWriter: ~Copyable {
  private let region: SharedRegion
  private let ring: SharedArea
  private let sharedTail: SharedWord
  private let capacity: UInt64
  let snapLength: Int

  /// Position after the last slot written.
  private var tail: UInt64 = 0
  /// What of it the detector has been told.
  private(set) var publishedTail: UInt64 = 0
  /// Position of the first slot that has not been answered.
  private(set) var head: UInt64 = 0
  /// The identifiers that go with `tail` and `head`.
  private(set) var nextID: UInt64 = 0
  private(set) var headID: UInt64 = 0

  init(region: SharedRegion, capacity: Int, snapLength: Int) {
    self.region = region
    ring = region.area(RingLayout.controlBytes, count: capacity)
    sharedTail = region.word(RingLayout.packetTail)
    self.capacity = UInt64(capacity)
    self.snapLength = snapLength
  }

  /// Writes one slot after the last; nil when there is no room. The detector sees it after `publish()`.
  @inline(__always)
  mutating func append(
    _ frame: FrameMetadata, _ bytes: RawSpan, generation: UInt32, kind: SlotKind = .frame
  ) -> UInt64? {
    let length = min(bytes.byteCount, snapLength)
    let size = UInt64(RingLayout.slotBytes(length))
    var offset = tail & (capacity - 1)
    let gap = offset + size > capacity ? capacity - offset : 0
    guard capacity - (tail - head) >= gap + size else { return nil }
    if gap > 0 {
      ring.store(RingLayout.padding, at: Int(offset))
      offset = 0
    }
    let start = Int(offset)
    let id = nextID
    ring.store(UInt32(length), at: start)
    ring.store(generation, at: start + 4)
    ring.store(id, at: start + 8)
    ring.store(frame.timestamp.nanoseconds, at: start + 16)
    ring.store(frame.port.rawValue, at: start + 24)
    ring.store(frame.originalLength, at: start + 28)
    ring.store(frame.linkType.rawValue, at: start + 32)
    ring.store(frame.strippedVLAN, at: start + 34)
    ring.store(frame.direction.rawValue, at: start + 36)
    ring.store(frame.checksums.rawValue, at: start + 37)
    ring.store(kind.rawValue, at: start + 38)
    ring.store(0 as UInt8, at: start + 39)
    ring.copy(bytes, length: length, to: start + RingLayout.slotHeader)
    tail += gap + size
    nextID = id + 1
    return id
  }

  /// Makes what was appended visible to the detector. Returns false when there was nothing new.
  @inline(__always)
  mutating func publish() -> Bool {
    guard publishedTail != tail else { return false }
    publishedTail = tail
    sharedTail.storeReleasing(tail)
    return true
  }

  /// The first unanswered slot: where it begins (after padding), and what its header says. nil when all is answered.
  @inline(__always)
  func headSlot() throws(DetectorError) -> PacketSlot? {
    guard head != publishedTail else { return nil }
    guard let slot = PacketSlot(ring: ring, position: head, tail: publishedTail, snapLength: snapLength),
      slot.id == headID
    else {
      throw DetectorError(
        .violation, "the packet ring was overwritten at packet \(headID)",
        remedy: "the detector is to be killed; in a process it cannot write here at all")
    }
    return slot
  }

  /// Frees the slot that `headSlot()` gave.
  @inline(__always)
  mutating func release(_ slot: PacketSlot) {
    head = slot.end
    headID += 1
  }

  func withBytes<Result>(of slot: PacketSlot, _ body: (RawSpan) -> Result) -> Result {
    ring.withBytes(slot.offset + RingLayout.slotHeader, length: slot.length, body)
  }
}

/// One slot's place and header fields, each read once and checked to lie inside the ring.
@usableFromInline
package struct PacketSlot {
  let offset: Int
  let length: Int
  /// Position after the slot.
  let end: UInt64
  @usableFromInline let id: UInt64
  @usableFromInline let generation: UInt32
  @usableFromInline let kind: SlotKind
  @usableFromInline let frame: FrameMetadata

  /// - Precondition: `position` is before `tail`, a multiple of 8, and no more than the ring's size away from it.
  @inline(__always)
  init?(ring: SharedArea, position: UInt64, tail: UInt64, snapLength: Int) {
    let capacity = UInt64(ring.count)
    var position = position
    var offset = position & (capacity - 1)
    var captured = ring.load(Int(offset), as: UInt32.self)
    if captured == RingLayout.padding {
      position += capacity - offset
      offset = 0
      guard position < tail else { return nil }
      captured = ring.load(0, as: UInt32.self)
    }
    guard captured <= UInt32(snapLength) else { return nil }
    let size = UInt64(RingLayout.slotBytes(Int(captured)))
    guard size <= tail - position, offset + size <= capacity else { return nil }
    let start = Int(offset)
    guard let direction = FrameDirection(rawValue: ring.load(start + 36, as: UInt8.self)),
      let checksums = ChecksumState(rawValue: ring.load(start + 37, as: UInt8.self)),
      let kind = SlotKind(rawValue: ring.load(start + 38, as: UInt8.self)), kind == .frame || captured == 0
    else { return nil }
    self.offset = start
    length = Int(captured)
    end = position + size
    generation = ring.load(start + 4, as: UInt32.self)
    id = ring.load(start + 8, as: UInt64.self)
    self.kind = kind
    frame = FrameMetadata(
      timestamp: Timestamp(nanoseconds: ring.load(start + 16, as: Int64.self)),
      port: PortID(ring.load(start + 24, as: UInt32.self)), direction: direction, checksums: checksums,
      linkType: LinkType(rawValue: ring.load(start + 32, as: UInt16.self)),
      strippedVLAN: ring.load(start + 34, as: UInt16.self),
      originalLength: ring.load(start + 28, as: UInt32.self))
  }
}
