// Traffic that is made to cost as much as it can. Frames are made in one buffer, so that little but the inspector is measured.
import CBaseline
import VMFenceCore
import VMFenceDetection

enum Flood: String, CaseIterable {
  /// SYNs from ever other addresses.
  case syn
  /// First fragments whose datagrams never become whole.
  case fragments
  /// Segments of ever other connections, behind a gap.
  case segments
  /// One flow whose packets match a chain of tests but for its end.
  case near

  static let rules = """
    alert tcp any any -> any 80 (msg:"needle"; flow:established,to_server; content:"the needle"; sid:1;)
    alert udp any any -> any any (msg:"chain"; content:"aaaa"; \
    \((0..<12).map { _ in "pcre:\"/a/R\";" }.joined(separator: " ")) pcre:"/b/R"; sid:2;)
    """

  var defaultCount: Int { self == .near ? 20_000 : 4_000_000 }
}

/// Ethernet, IPv4 and TCP or UDP; checksums are left out, and are not verified.
struct FloodFrame {
  private(set) var bytes: [UInt8]

  init(ipProtocol: UInt8, payload: [UInt8] = []) {
    let transport = ipProtocol == 6 ? 20 : 8
    bytes = Array(repeating: 0, count: 34 + transport) + payload
    bytes[12] = 8
    bytes[14] = 0x45
    put16(UInt16(bytes.count - 14), at: 16)
    bytes[22] = 64
    bytes[23] = ipProtocol
    put32(0xC633_6402, at: 30)
    if ipProtocol == 6 { bytes[46] = 0x50 } else { put16(UInt16(bytes.count - 34), at: 38) }
  }

  mutating func put16(_ value: UInt16, at offset: Int) {
    bytes[offset] = UInt8(value >> 8)
    bytes[offset + 1] = UInt8(truncatingIfNeeded: value)
  }

  mutating func put32(_ value: UInt32, at offset: Int) {
    put16(UInt16(value >> 16), at: offset)
    put16(UInt16(truncatingIfNeeded: value), at: offset + 2)
  }

  mutating func setEnds(_ source: UInt32, _ sourcePort: UInt16, _ destinationPort: UInt16) {
    put32(source, at: 26)
    put16(sourcePort, at: 34)
    put16(destinationPort, at: 36)
  }

  mutating func setSegment(_ sequence: UInt32, _ acknowledgement: UInt32, flags: UInt8) {
    put32(sequence, at: 38)
    put32(acknowledgement, at: 42)
    bytes[47] = flags
    put16(8192, at: 48)
  }
}

/// An inspector in a flood, and the connection that was there before it.
struct FloodRun: ~Copyable {
  var inspector: SnortInspector
  var output = InspectionOutput()
  var time = Timestamp(nanoseconds: 1_700_000_000_000_000_000)
  var alerts = 0
  private var random: UInt64 = 0x2545_F491_4F6C_DD1D

  init(_ rules: SnortRules, settings: [String: String]) throws {
    inspector = try SnortInspector.make(
      rules: rules,
      configuration: InspectorConfiguration(verifiesChecksums: false, hashKey: (1, 2), settings: settings))
  }

  private mutating func next() -> UInt64 {
    random ^= random << 13
    random ^= random >> 7
    random ^= random << 17
    return random
  }

  private mutating func send(_ frame: FloodFrame) {
    // A million packets in a second.
    time = Timestamp(nanoseconds: time.nanoseconds + 1000)
    let metadata = FrameMetadata(timestamp: time, port: PortID(1), originalLength: UInt32(frame.bytes.count))
    output.reset()
    // SAFETY: the frame is not changed during the call.
    inspector.inspect(metadata, unsafe frame.bytes.span.bytes, into: &output)
    alerts += output.count
  }

  /// A handshake between two ends that the flood does not use.
  mutating func connect() {
    var client = FloodFrame(ipProtocol: 6)
    client.setEnds(0xC000_0201, 40_000, 80)
    client.setSegment(1000, 0, flags: 2)
    send(client)
    var server = FloodFrame(ipProtocol: 6)
    server.setEnds(0xC633_6402, 80, 40_000)
    server.put32(0xC000_0201, at: 30)
    server.setSegment(5000, 1001, flags: 0x12)
    send(server)
    client.setSegment(1001, 5001, flags: 0x10)
    send(client)
  }

  /// Whether what that connection carries is still seen as part of it.
  mutating func isStillConnected() -> Bool {
    let before = alerts
    var client = FloodFrame(ipProtocol: 6, payload: Array("the needle".utf8))
    client.setEnds(0xC000_0201, 40_000, 80)
    client.setSegment(1001, 5001, flags: 0x18)
    send(client)
    while true {
      output.reset()
      guard inspector.finish(into: &output) else { break }
      alerts += output.count
    }
    return alerts > before
  }

  mutating func send(_ flood: Flood, count: Int) {
    switch flood {
    case .syn:
      var frame = FloodFrame(ipProtocol: 6)
      for _ in 0..<count {
        let bits = next()
        frame.setEnds(UInt32(truncatingIfNeeded: bits), UInt16(truncatingIfNeeded: bits >> 32), 80)
        frame.setSegment(UInt32(truncatingIfNeeded: bits >> 20), 0, flags: 2)
        send(frame)
      }
    case .fragments:
      var frame = FloodFrame(ipProtocol: 17, payload: Array(repeating: 0x61, count: 504))
      for _ in 0..<count {
        let bits = next()
        frame.setEnds(UInt32(truncatingIfNeeded: bits), 53, 53)
        frame.put16(UInt16(truncatingIfNeeded: bits >> 40), at: 18)
        frame.put16(0x2000, at: 20)
        send(frame)
      }
    case .segments:
      var frame = FloodFrame(ipProtocol: 6, payload: Array(repeating: 0x61, count: 1000))
      for index in 0..<count {
        // Each connection sends twice: the second segment leaves a gap.
        if index % 2 == 0 {
          let bits = next()
          frame.setEnds(UInt32(truncatingIfNeeded: bits), UInt16(truncatingIfNeeded: bits >> 32), 80)
        }
        frame.setSegment(index % 2 == 0 ? 1000 : 4000, 1, flags: 0x18)
        send(frame)
      }
    case .near:
      var frame = FloodFrame(ipProtocol: 17, payload: Array(repeating: 0x61, count: 1400))
      frame.setEnds(0x0A00_0001, 40_000, 40_001)
      for _ in 0..<count { send(frame) }
    }
  }
}

func run(_ flood: Flood, _ rules: SnortRules, settings: [String: String]) throws {
  var run = try FloodRun(rules, settings: settings)
  run.connect()
  let count = flood.defaultCount
  run.send(flood, count: count / 2)
  let (memoryBefore, allocationsBefore) = (privateMemory(), baseline_allocation_count())
  let (start, processor) = (ContinuousClock.now, processorSeconds())
  run.send(flood, count: count / 2)
  let seconds = Double((ContinuousClock.now - start).wholeNanoseconds) / 1e9
  let used = processorSeconds() - processor
  let half = Double(count / 2)
  print(
    "\(flood.rawValue): \(Int(half / seconds / 1000)) thousand packets a second, \(Int(half / used / 1000)) thousand a CPU second;",
    "\(baseline_allocation_count() - allocationsBefore) allocations and \(privateMemory() - memoryBefore) KiB more in the second half of",
    "\(count) packets; peak memory \(memory("VmHWM") >> 10) MiB")
  print("  the connection from before the flood is \(run.isStillConnected() ? "still followed" : "FORGOTTEN")")
  for (name, value) in run.inspector.statistics where value > 0 { print("  \(name): \(value)") }
}
