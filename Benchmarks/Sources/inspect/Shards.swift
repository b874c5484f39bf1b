// Several inspectors side by side, each with the packets between its share of the hosts: how far one domain's work can be split.
import Glibc
import VMFenceCapture
import VMFenceCore
import VMFenceDetection
import VMFencePackets

/// The frames of one share, one after another in memory.
struct Share: Sendable {
  struct Frame: Sendable, BitwiseCopyable {
    var metadata: FrameMetadata
    var start: Int
    var count: Int
  }

  var bytes: [UInt8] = []
  var frames: [Frame] = []

  mutating func append(_ metadata: FrameMetadata, _ frame: RawSpan) {
    frames.append(Frame(metadata: metadata, start: bytes.count, count: frame.byteCount))
    for index in 0..<frame.byteCount { bytes.append(frame.u8(index)) }
  }
}

/// Splits a capture by both addresses of each packet, so that fragments and errors come to the flow that they belong to.
func shares(_ path: String, _ count: Int) throws(PacketSourceError) -> [Share] {
  var file = try CaptureFile.open(path: path)
  var result = Array(repeating: Share(), count: count)
  let hash = KeyedHash(key: (3, 4))
  while true {
    let outcome = try file.nextBatch(limit: 1024) { frame, bytes in
      let packet = DecodedPacket.decode(bytes, linkType: frame.linkType, strippedVLAN: frame.strippedVLAN)
      let (source, destination) = (packet.source, packet.destination)
      let mixed = hash.hash(source.high &+ destination.high, source.low &+ destination.low)
      result[Int(mixed % UInt64(count))].append(frame, bytes)
    }
    if outcome.isAtEnd { break }
  }
  return result
}

struct ShardTime: Sendable {
  var begin: ContinuousClock.Instant
  var end: ContinuousClock.Instant
  var packets: Int
  /// Seconds of its thread.
  var processor: Double
  var alerts: Int
}

private func threadSeconds() -> Double {
  var time = timespec()
  // SAFETY: the structure is filled in by the call.
  unsafe _ = clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
  return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

private func inspectShare(
  _ share: Share, _ rules: SnortRules, _ configuration: InspectorConfiguration
) throws(RuleCompilationError) -> ShardTime {
  var inspector = try SnortInspector.make(rules: rules, configuration: configuration)
  var output = InspectionOutput()
  var alerts = 0
  let processor = threadSeconds()
  let begin = ContinuousClock.now
  share.bytes.withRawSpan { bytes in
    for frame in share.frames {
      output.reset()
      inspector.inspect(frame.metadata, bytes.extracting(frame.start..<frame.start + frame.count), into: &output)
      alerts += output.count
    }
  }
  return ShardTime(
    begin: begin, end: .now, packets: share.frames.count, processor: threadSeconds() - processor, alerts: alerts)
}

/// Inspects all shares at once, each on a thread of its own, and says how long that took.
func inspectSideBySide(
  _ shares: [Share], _ rules: SnortRules, _ configuration: InspectorConfiguration
) async throws -> [ShardTime] {
  try await withThrowingTaskGroup(of: ShardTime.self) { group in
    for share in shares { group.addTask { try inspectShare(share, rules, configuration) } }
    var times: [ShardTime] = []
    for try await time in group { times.append(time) }
    return times
  }
}

func reportShares(_ times: [ShardTime], _ alone: Double?) -> Double {
  let begin = times.map(\.begin).min() ?? .now
  let end = times.map(\.end).max() ?? .now
  let seconds = Double((end - begin).wholeNanoseconds) / 1e9
  let packets = times.reduce(0) { $0 + $1.packets }
  let processor = times.reduce(0) { $0 + $1.processor }
  let speed = Double(packets) / seconds
  let relation = alone.map { ", \(Int(speed / $0 * 100)) % of one" } ?? ""
  print(
    "\(times.count) inspectors: \(Int(speed / 1000)) thousand packets a second\(relation);", "\(processor) CPU s,",
    "\(seconds) s; shares \(times.map(\.packets).sorted()); \(times.reduce(0) { $0 + $1.alerts }) alerts")
  return speed
}
