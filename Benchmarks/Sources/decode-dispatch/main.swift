// Decoding and dispatching the frames of a capture file: nanoseconds per packet, as ratios to copying the same frames and
// to the same work in C, in the same run; and how many allocations it took.
//
//   swift run -c release decode-dispatch FILE.pcap
import CBaseline
import Glibc
import VMFenceCore
import VMFencePackets

/// The best of fifteen passes: nanoseconds per packet and allocations in all passes together.
func measure(_ count: Int, repeating: Int = 1, _ pass: () -> UInt64) -> (nanoseconds: Double, allocations: UInt64) {
  var best = Duration.seconds(1_000)
  var allocations: UInt64 = 0
  for _ in 0..<15 {
    let before = baseline_allocation_count()
    let start = ContinuousClock.now
    var sum: UInt64 = 0
    for _ in 0..<repeating { sum &+= pass() }
    best = min(best, ContinuousClock.now - start)
    allocations += baseline_allocation_count() - before
    baseline_keep(sum)
  }
  return (Double(best.wholeNanoseconds) / Double(count * repeating), allocations)
}

/// Two decimals, right-aligned.
func text(_ value: Double, width: Int = 9) -> String {
  let hundredths = Int((value * 100).rounded())
  let digits = "\(hundredths / 100)." + (hundredths % 100 < 10 ? "0" : "") + "\(hundredths % 100)"
  return String(repeating: " ", count: max(0, width - digits.count)) + digits
}

func line(_ name: String, _ result: (nanoseconds: Double, allocations: UInt64), copy: Double, c: Double) {
  print(
    name + String(repeating: " ", count: max(1, 34 - name.count)), text(result.nanoseconds),
    text(1_000 / result.nanoseconds),
    text(result.nanoseconds / copy), text(result.nanoseconds / c), "      \(result.allocations)")
}

/// A table with the first `limit` unicast addresses that the frames are sent to, each a domain on one bridge (port 0); the first
/// of them has a port of its own too (port 1).
func makeDispatcher(_ frames: Frames, limit: Int) throws(DispatchError) -> Dispatcher {
  var macs: [MACAddress] = []
  var seen: Set<MACAddress> = []
  frames.forEach { bytes in
    guard bytes.byteCount >= 14, macs.count < limit else { return }
    let mac = bytes.macAddress(0)
    if !mac.isMulticast, mac.rawValue != 0, seen.insert(mac).inserted { macs.append(mac) }
  }
  if macs.isEmpty { macs.append(MACAddress(rawValue: 0x0016_3E00_0001)) }
  let members = macs.enumerated().map { slot, mac in
    DispatchMember(
      slot: slot,
      domain: DomainDescription(
        incarnation: Incarnation(uuid: DomainUUID(high: 0, low: UInt64(slot)), domainID: DomainID(UInt32(slot))),
        name: "guest\(slot)", ports: [NetworkPort(interface: "vif\(slot).0", bridge: "xenbr0", mac: mac)]))
  }
  let ports = [
    DispatchPort(id: PortID(0), kind: .bridge("xenbr0")),
    DispatchPort(id: PortID(1), kind: .vif(owner: members[0].domain.incarnation)),
  ]
  return Dispatcher(DispatchTablePublisher(try DispatchTable(members: members, ports: ports, key: (1, 2))))
}

func report(_ title: String, _ frames: Frames, repeating: Int) throws {
  let count = frames.count
  let linkType = frames.linkType
  let hash = KeyedHash(key: (1, 2))
  var dispatcher = try makeDispatcher(frames, limit: 256)
  print("\n\(title): \(count) frames, \(frames.frameBytes / max(1, count)) bytes on average")
  print(String(repeating: " ", count: 36) + "ns/packet  Mpackets/s  to memcpy     to C   allocations")

  let scratch = UnsafeMutablePointer<UInt8>.allocate(capacity: 1 << 20)
  defer { unsafe scratch.deallocate() }
  // SAFETY: frames of a pcap file are bounded by its snapshot length; longer ones than the scratch are left out by the caller.
  let copy = measure(count, repeating: repeating) {
    unsafe baseline_copy(frames.base, frames.offsets, frames.lengths, count, scratch)
  }
  // SAFETY: the C code checks every access against the frame's length.
  let c = measure(count, repeating: repeating) {
    unsafe baseline_decode(frames.base, frames.offsets, frames.lengths, count)
  }
  line("memcpy of the frames", copy, copy: copy.nanoseconds, c: c.nanoseconds)
  line("decode and hash the 5-tuple, C", c, copy: copy.nanoseconds, c: c.nanoseconds)

  func show(_ name: String, _ pass: () -> UInt64) {
    line(name, measure(count, repeating: repeating, pass), copy: copy.nanoseconds, c: c.nanoseconds)
  }
  show("decode") {
    var sum: UInt64 = 0
    frames.forEach { bytes in
      let packet = DecodedPacket.decode(bytes, linkType: linkType, strippedVLAN: 0)
      sum &+= UInt64(truncatingIfNeeded: packet.payloadLength) &+ UInt64(packet.sourcePort)
    }
    return sum
  }
  show("decode and hash the flow key") {
    var sum: UInt64 = 0
    frames.forEach { bytes in
      let packet = DecodedPacket.decode(bytes, linkType: linkType, strippedVLAN: 0)
      sum &+= UInt64(truncatingIfNeeded: packet.payloadLength) &+ hash.hash(FlowKey.make(packet).key)
    }
    return sum
  }
  func dispatchAll(_ port: UInt32, _ direction: FrameDirection) -> UInt64 {
    var sum: UInt64 = 0
    frames.forEach { bytes in
      let frame = FrameMetadata(
        timestamp: .zero, port: PortID(port), direction: direction, linkType: linkType,
        originalLength: UInt32(truncatingIfNeeded: bytes.byteCount))
      dispatcher.dispatch(frame, bytes) { slot, direction in sum &+= UInt64(slot) &+ UInt64(direction.rawValue) }
    }
    return sum
  }
  show("dispatch at a vif") { dispatchAll(1, .toGuest) }
  show("dispatch on a bridge") { dispatchAll(0, .unknown) }
  show("decode and dispatch at a vif") {
    var sum: UInt64 = 0
    frames.forEach { bytes in
      let frame = FrameMetadata(
        timestamp: .zero, port: PortID(1), direction: .toGuest, linkType: linkType,
        originalLength: UInt32(truncatingIfNeeded: bytes.byteCount))
      dispatcher.dispatch(frame, bytes) { slot, _ in sum &+= UInt64(slot) }
      let packet = DecodedPacket.decode(bytes, linkType: linkType, strippedVLAN: 0)
      sum &+= UInt64(truncatingIfNeeded: packet.payloadLength) &+ hash.hash(FlowKey.make(packet).key)
    }
    return sum
  }
  show("decode and verify checksums") {
    var sum: UInt64 = 0
    frames.forEach { bytes in
      let packet = DecodedPacket.decode(bytes, linkType: linkType, strippedVLAN: 0)
      sum &+= UInt64(packet.verifyChecksums(in: bytes).rawValue)
    }
    return sum
  }
}

/// Whether C decodes it too: untagged Ethernet, IPv4, TCP or UDP, whole.
func isCommon(_ bytes: RawSpan) -> Bool {
  let packet = DecodedPacket.decode(bytes, linkType: .ethernet, strippedVLAN: 0)
  return packet.network == .ipv4 && packet.vlanCount == 0 && (packet.transport == .tcp || packet.transport == .udp)
    && packet.anomalies.isEmpty && !packet.isFragment
}

func run() throws -> Int32 {
  guard CommandLine.arguments.count == 2 else {
    complain("usage: decode-dispatch FILE.pcap")
    return 64
  }
  guard let frames = Frames.load(CommandLine.arguments[1]) else { return 66 }
  frames.keep { $0.byteCount <= 1 << 20 }
  guard frames.count > 0 else {
    complain("\(CommandLine.arguments[1]) holds no frame")
    return 65
  }
  try report("All frames, from memory", frames, repeating: 1)
  if frames.linkType == .ethernet {
    frames.keep(isCommon)
    try report("IPv4 TCP and UDP only, from memory", frames, repeating: 1)
    frames.keep(limit: 512 << 10) { _ in true }
    try report("IPv4 TCP and UDP only, from the cache", frames, repeating: max(1, 1_000_000 / max(1, frames.count)))
  }
  return 0
}

exit(try run())
