import CBaseline
import Glibc
import RingBenchmark
import VMFenceCore
import VMFenceProcess

/// TCP segments of 64 flows, 440 to 568 bytes long.
///
/// All in one block, as a capture's batches are: an array for each would measure reference counts.
struct Frames {
  private let bytes: [UInt8]
  private let ranges: [Range<Int>]
  var count: Int { ranges.count }
  var meanLength: Int { bytes.count / count }
  static let guest = MACAddress(rawValue: 0x0016_3E00_0001)

  init() {
    let all: [[UInt8]] = (0..<1024).map { index in
      let length = 440 + index * 37 % 129
      var bytes: [UInt8] = [0x00, 0x16, 0x3E, 0, 0, 1, 0x02, 0, 0, 0, 0, 9, 0x08, 0x00, 0x45, 0]
      bytes += [UInt8((length - 14) >> 8), UInt8((length - 14) & 0xFF), 0, UInt8(index & 0xFF), 0x40, 0, 64, 6, 0, 0]
      bytes += [10, 0, 0, UInt8(index % 64), 10, 0, 1, 1, 0x80, UInt8(index % 64), 0, 80]
      bytes += [0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0]
      return bytes + (bytes.count..<length).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ index) }
    }
    bytes = Array(all.joined())
    var ends = 0
    ranges = all.map { frame in
      defer { ends += frame.count }
      return ends..<ends + frame.count
    }
  }

  /// The frame at `index`, modulo their count.
  @inline(__always)
  func with<Result>(_ index: Int, _ body: (RawSpan) throws -> Result) rethrows -> Result {
    // SAFETY: bytes have no padding.
    try body(unsafe bytes.span.bytes.extracting(ranges[index & 1023]))
  }
}

func now() -> Int64 {
  var time = timespec()
  unsafe _ = clock_gettime(CLOCK_MONOTONIC, &time)
  return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
}

struct Throughput {
  var packets: Int
  var bytes: Int
  var nanoseconds: Int64
  var allocations: UInt64 = 0

  var nanosecondsPerPacket: Double { Double(nanoseconds) / Double(packets) }
  var summary: String {
    "\(decimal(1000 / nanosecondsPerPacket)) million packets/s, \(decimal(nanosecondsPerPacket)) ns a packet, "
      + "\(decimal(Double(bytes) / Double(nanoseconds))) GB/s"
  }
  func ratio(to other: Throughput) -> String { decimal(other.nanosecondsPerPacket / nanosecondsPerPacket) }
}

func decimal(_ value: Double) -> String {
  let hundredths = Int((value * 100).rounded())
  let digits = String(hundredths % 100)
  return "\(hundredths / 100).\(digits.count < 2 ? "0" : "")\(digits)"
}

func measureCopy(_ frames: Frames, packets: Int) -> Throughput {
  let size = 4 << 20
  let target = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
  unsafe memset(target, 1, size)
  defer { unsafe target.deallocate() }
  var offset = 0
  var bytes = 0
  let start = now()
  for index in 0..<packets {
    frames.with(index) { frame in
      if offset + frame.byteCount > size { offset = 0 }
      unsafe frame.withUnsafeBytes { unsafe _ = memcpy(target + offset, $0.baseAddress!, $0.count) }
      offset += (frame.byteCount + 7) & ~7
      bytes += frame.byteCount
    }
  }
  return Throughput(packets: packets, bytes: bytes, nanoseconds: now() - start)
}

/// One detector process and its rings.
final class RingRun {
  private let channel: DetectorChannel
  private let handle: any DetectorHandle<MeasuredRules>

  init(work: Work) throws {
    let backend = try ProcessDetectorBackend<MeasuredRules>(
      executable: ProcessDetectorBackend<MeasuredRules>.besideThisProgram("ring-detector"))
    channel = try backend.makeChannel(DetectorChannelConfiguration())
    handle = try backend.launch(rules: MeasuredRules(work), channel: channel, configuration: InspectorConfiguration())
  }

  func end() { handle.kill() }

  private func collectAll() throws {
    while channel.outstanding > 0 {
      channel.publish()
      guard channel.waitForVerdicts(upTo: .seconds(10)) == .verdicts else { throw Failure(status: handle.status) }
      try channel.collect { _, _ in }
    }
  }

  struct Failure: Error { var status: DetectorStatus }

  func throughput(_ frames: Frames, packets: Int, dispatches: Bool) throws -> Throughput {
    var dispatcher = try makeDispatcher()
    // Once through the ring first: its memory is there, the detector awake.
    for index in 0..<16_384 { try frames.with(index) { try send($0, 0) } }
    try collectAll()
    var bytes = 0
    let allocations = baseline_allocation_count()
    let start = now()
    for index in 0..<packets {
      try frames.with(index) { frame in
        bytes += frame.byteCount
        if dispatches {
          var slots = 0
          dispatcher.dispatch(
            FrameMetadata(timestamp: .zero, port: PortID(1), originalLength: UInt32(frame.byteCount)), frame
          ) { _, _ in slots += 1 }
          precondition(slots == 1)
        }
        try send(frame, 0)
      }
      if index & 63 == 63 {
        channel.publish()
        try channel.collect { _, _ in }
      }
    }
    try collectAll()
    let nanoseconds = now() - start
    return Throughput(
      packets: packets, bytes: bytes, nanoseconds: nanoseconds, allocations: baseline_allocation_count() - allocations)
  }

  /// Sends one frame, waiting for room.
  @inline(__always)
  private func send(_ frame: RawSpan, _ time: Int64) throws {
    while true {
      let outcome = channel.enqueue(
        FrameMetadata(
          timestamp: Timestamp(nanoseconds: time), port: PortID(1), direction: .toGuest,
          originalLength: UInt32(frame.byteCount)), frame)
      if outcome != .full { return }
      channel.publish()
      guard channel.waitForVerdicts(upTo: .seconds(10)) == .verdicts else { throw Failure(status: handle.status) }
      try channel.collect { _, _ in }
    }
  }

  private func makeDispatcher() throws -> Dispatcher {
    let incarnation = Incarnation(uuid: DomainUUID(high: 1, low: 1), domainID: DomainID(1))
    var domains: [DispatchMember] = []
    for number in 0..<100 as Range<UInt64> {
      domains.append(
        DispatchMember(
          slot: Int(number),
          domain: DomainDescription(
            incarnation: Incarnation(
              uuid: DomainUUID(high: 1, low: 1 + number), domainID: DomainID(UInt32(1 + number))),
            name: "guest\(number)",
            ports: [NetworkPort(interface: "vif\(number).0", mac: MACAddress(rawValue: Frames.guest.rawValue + number))]
          )))
    }
    let table = try DispatchTable(
      members: domains, ports: [DispatchPort(id: PortID(1), kind: .vif(owner: incarnation))], key: (1, 2))
    return Dispatcher(DispatchTablePublisher(table))
  }

  /// From just before a packet is enqueued to its verdict in the supervisor's hands, at a steady rate.
  func latency(_ frames: Frames, packets: Int, perSecond rate: Int) throws -> String {
    var samples: [Int64] = []
    samples.reserveCapacity(packets)
    // Not the start of the process.
    try frames.with(0) { try send($0, 0) }
    try collectAll()
    let start = now()
    let interval = 1_000_000_000 / Double(rate)
    var sent = 0
    while sent < packets || channel.outstanding > 0 {
      let time = now()
      if sent < packets, Double(time - start) >= Double(sent) * interval {
        let outcome = frames.with(sent) { span in
          channel.enqueue(
            FrameMetadata(
              timestamp: Timestamp(nanoseconds: time), port: PortID(1), originalLength: UInt32(span.byteCount)), span)
        }
        // With a full ring it is late, and the next one shows it.
        if outcome != .full { sent += 1 }
        channel.publish()
      }
      try channel.collect { verdict, _ in samples.append(now() - verdict.timestamp.nanoseconds) }
    }
    samples.sort()
    func at(_ share: Double) -> String {
      "\(decimal(Double(samples[Int(Double(samples.count - 1) * share)]) / 1000)) µs"
    }
    return "median \(at(0.5)), p99 \(at(0.99)), p99.9 \(at(0.999)), longest \(at(1))"
  }
}
