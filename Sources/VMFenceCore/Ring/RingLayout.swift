/// Where things lie in the two regions between the supervisor and a detector.
///
/// The *down* region is written by the supervisor only (a detector process maps it read-only, and its memory file is
/// sealed against any other mapping); the *up* region is written by the detector, and nothing in it is believed.
///
/// ```
/// down   0      packet tail          position after the last published slot
///        128    verdict head         position up to which verdict records were taken
///        256    supervisor's sleep   odd: it sleeps until its bell is rung; with bit 1: for alerts and refusals only
///        384    start position, id, generation: where a newly started detector begins
///        408    state request        number of the last state that the supervisor asked for
///        416    its time             i64   ns
///        424    state capacity       u64   bytes of each of the two state areas
///        432    start state          u64   bytes in the state area that a newly started detector takes over; 0: none
///        440    its time             i64   ns
///        448    answered requests    u64   the number of the last state that a predecessor was asked for
///        456    notes                u64   1: anomalies are wanted, 2: tagged packets are
///        1024   start parameters of a process
///        4096   packet ring          a power of two
///        …      state area           what a newly started detector takes over
///
/// up     0      verdict tail         position after the last published record
///        8      verdict news         position after the last one that is news
///        128    detector's sleep     odd: it sleeps until its bell is rung
///        256    state answer         number of the last state that was saved
///        264    its length           u64   bytes in the state area
///        272    start state          u64   1: taken over, 2: refused
///        1024   counters             128 u64, in the order of `CompiledRules.inspectorCounters`
///        4096   verdict ring         a power of two
///        …      state area           what the detector remembered when it was asked last
///
/// slot   0      captured length  u32   (0xFFFF_FFFF: nothing more before the ring's end)
///        4      generation       u32
///        8      packet id        u64
///        16     timestamp        i64   ns
///        24     port             u32
///        28     original length  u32
///        32     link type        u16
///        34     stripped VLAN    u16
///        36     direction        u8
///        37     checksum state   u8
///        38     kind             u8    0: a frame; 1: none came before the timestamp; 2: none will come after it
///        39     zero             u8
///        40     bytes, then up to 7 bytes to the next multiple of 8
///
/// record 0      packet id        u64
///        8      verdict's rule   u32
///        12     verdict          u8    bits 0 and 1; above them how many anomalies there are
///        13     alerts           u8    bits 0 to 6; bit 7: the packet is tagged
///        14     overflow         u16   saturates
///        16     alerts, 192 bytes each, then anomalies:
///
/// anomaly 0     flow             u64
///        8      number           u8
///        9      kind             u8    0: found by decoding, 1: by following its connection
///        10     layer            u8
///        11     zeros, to 16
/// ```
/// Numbers are in the machine's own order. Positions rise for ever (64 bits) and are taken modulo the ring's size.
/// Each index has a pair of cache lines of its own, because processors fetch lines in pairs.
///
/// What is no frame (`SlotKind`) takes its turn among the frames, has an id, and is answered like them, so that the alerts it leads to
/// come in order and exactly once, too.
///
/// There is no consumer's index of the packet ring in shared memory: a packet is consumed when its verdict record is taken.
/// The supervisor walks its own slots as the answers arrive, in order, so that there is no index that a detector could
/// forge, and after a crash the first unanswered packet *is* the one that was being inspected.
package enum RingLayout {
  package static let controlBytes = 4096
  /// From here to the end of the down region's control page, the backend may leave what its detector needs to start.
  package static let startParameters = 1024

  static let packetTail = 0
  static let verdictHead = 128
  static let supervisorSleep = 256
  static let startPosition = 384
  static let startID = 392
  static let startGeneration = 400
  static let stateRequest = 408
  static let stateTime = 416
  package static let stateCapacity = 424
  static let startStateLength = 432
  static let startStateTime = 440
  static let answeredRequests = 448
  static let notes = 456

  package static let verdictTail = 0
  static let verdictNews = 8
  package static let detectorSleep = 128
  static let stateAnswer = 256
  static let stateLength = 264
  static let startStateOutcome = 272
  package static let counters = 1024
  package static let counterCapacity = 128

  static let slotHeader = 40
  static let slotAlignment = 8
  static let padding = UInt32.max

  static let recordHeader = 16
  static let alertBytes = 192
  static let anomalyBytes = 16
  static let largestRecord =
    recordHeader + InspectionOutput.capacity * alertBytes + InspectionOutput.anomalyCapacity * anomalyBytes

  @inline(__always)
  static func slotBytes(_ length: Int) -> Int { (slotHeader + length + slotAlignment - 1) & -slotAlignment }
}

/// What a slot of the packet ring holds.
@usableFromInline
package enum SlotKind: UInt8, BitwiseCopyable {
  case frame = 0
  /// No bytes: time has passed without a frame (`PacketInspector.advance`).
  case time = 1
  /// No bytes: no frame will come (`PacketInspector.finish`).
  case end = 2
}
