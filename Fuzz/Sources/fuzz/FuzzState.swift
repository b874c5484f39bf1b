import VMFenceCore
import VMFenceDetection

// A saved state, changed by the input, and then traffic. The first byte says how many changes there are (0 to 15); each has three bytes for its
// place and one that is added there. What follows are frames as in fuzz-inspect: the first half of them makes the state, the second
// half is inspected with what was restored. A first byte of 255: what follows is the state itself, without its head. The checksum is made
// right, so that what lies behind it is tried. Checked besides "no trap": an unchanged state is taken, and what is refused
// changes nothing.

private let rules: SnortRules = {
  let text = """
    alert tcp any any -> any any (msg:"1"; content:"hello"; flowbits:set,a; sid:1;)
    alert tcp any any -> any any (msg:"2"; content:"world"; flowbits:isset,a; flowint:n,+,1; sid:2;)
    alert ip any any -> any any (msg:"3"; xbits:set,x,track ip_src,expire 10; detection_filter:track by_src, count 1, seconds 5; sid:3;)
    alert tcp any any -> any any (msg:"4"; xbits:isset,x,track ip_src; threshold:type both, track by_flow, count 2, seconds 9; sid:4;)
    alert ip any any -> any any (msg:"5"; detection_filter:track by_dst, count 1, seconds 5, unique_on src_port; sid:5;)
    """
  let request = RuleCompilationRequest(
    sources: [RuleSource(file: "fuzz.rules", text: Array(text.utf8), dialect: .suricata)], onBadRule: .fail)
  do throws(RuleCompilationError) { return try SnortRuleEngine().compile(request).rules } catch {
    fatalError("\(error)")
  }
}()

private let headLength = 24

/// A state with a right checksum (FNV-1a, 64 bits, of what follows the head).
private func state(_ head: [UInt8], _ body: [UInt8]) -> [UInt8] {
  let sum = body.reduce(0xCBF2_9CE4_8422_2325 as UInt64) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01B3 }
  return head.prefix(16) + (0..<8).map { UInt8(truncatingIfNeeded: sum >> UInt64(8 * $0)) } + body
}

private func inspector() throws(RuleCompilationError) -> SnortInspector {
  try SnortInspector.make(
    rules: rules,
    configuration: InspectorConfiguration(
      verifiesChecksums: false, isInline: true, flowCapacity: 16, hashKey: (1, 2),
      settings: [
        "stream.midstream": "yes", "stream.memcap": "1mb", "defrag.memcap": "256kb", "defrag.trackers": "16",
        "host-os-policy.default": "linux",
      ]))
}

private func inspect(
  _ inspector: inout SnortInspector, _ input: RawSpan, _ range: Range<Int>, _ time: inout Timestamp
) {
  var output = InspectionOutput()
  var position = range.lowerBound
  while range.upperBound - position > 2 {
    let length = Swift.min(Int(input.u8(position)) * 2, range.upperBound - position - 2)
    time = time + .milliseconds(Int(input.u8(position + 1)) * 100)
    output.reset()
    inspector.inspect(
      FrameMetadata(timestamp: time, port: PortID(0), originalLength: UInt32(length)),
      input.extracting(position + 2..<position + 2 + length), into: &output)
    position += 2 + length
  }
}

func fuzzState(_ input: RawSpan) {
  guard input.byteCount > 1 else { return }
  let changes = input.u8(0) == 255 ? 0 : Int(input.u8(0)) % 16
  let begin = Swift.min(1 + changes * 4, input.byteCount)
  let middle = begin + (input.byteCount - begin) / 2
  var time = Timestamp.zero
  do {
    var first = try inspector()
    if input.u8(0) != 255 { inspect(&first, input, begin..<middle, &time) }
    let saved = first.saveState(at: time, limit: 1 << 20).bytes
    var body = Array(saved[headLength...])
    if input.u8(0) == 255 {
      body = (1..<input.byteCount).map { input.u8($0) }
    } else {
      for change in 0..<(begin - 1) / 4 {
        let at = 1 + change * 4
        let place = Int(input.u8(at)) << 16 | Int(input.u8(at + 1)) << 8 | Int(input.u8(at + 2))
        body[place % body.count] &+= input.u8(at + 3)
      }
    }
    var second = try inspector()
    _ = try second.restoreState(saved, at: nil)
    do throws(EngineStateError) {
      _ = try second.restoreState(state(saved, body), at: time)
    } catch {
      let same = second.saveState(at: time, limit: 1 << 20).bytes
      precondition(same.count == saved.count, "what was refused changed something")
    }
    inspect(&second, input, middle..<input.byteCount, &time)
    var output = InspectionOutput()
    while second.finish(into: &output) { output.reset() }
  } catch {
    fatalError("\(error)")
  }
}
