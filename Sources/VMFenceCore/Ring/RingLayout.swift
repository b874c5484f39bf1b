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
///        38     zero             u16
///        40     bytes, then up to 7 bytes to the next multiple of 8
///
/// record 0      packet id        u64
///        8      verdict's rule   u32
///        12     verdict          u8
///        13     alerts           u8
///        14     overflow         u16   saturates
///        16     alerts, 128 bytes each
/// ```
/// Numbers are in the machine's own order. Positions rise for ever (64 bits) and are taken modulo the ring's size.
/// Each index has a pair of cache lines of its own, because processors fetch lines in pairs.
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

  package static let verdictTail = 0
  static let verdictNews = 8
  package static let detectorSleep = 128
  static let stateAnswer = 256
  static let stateLength = 264
  static let startStateOutcome = 272

  static let slotHeader = 40
  static let slotAlignment = 8
  static let padding = UInt32.max

  static let recordHeader = 16
  static let alertBytes = 128
  static let largestRecord = recordHeader + InspectionOutput.capacity * alertBytes

  @inline(__always)
  static func slotBytes(_ length: Int) -> Int { (slotHeader + length + slotAlignment - 1) & -slotAlignment }
}
