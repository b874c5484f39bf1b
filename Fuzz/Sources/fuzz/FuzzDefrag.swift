import VMFenceCore
import VMFenceDetection

// Fragments, written by the input: the first byte chooses the system, then each fragment has a byte for identification, family and "more",
// one for its offset and one for its length (units of 8 bytes), and one for the time since the one before. Checked besides "no trap":
// the bytes that wait stay within their limit, and nothing is rebuilt that is longer than a datagram.

private let rules: SnortRules = {
  let text = "alert ip any any -> any any (content:\"abcdefgh\"; sid:1;)"
  let request = RuleCompilationRequest(
    sources: [RuleSource(file: "fuzz.rules", text: Array(text.utf8), dialect: .snort2)], onBadRule: .fail)
  do throws(RuleCompilationError) { return try SnortRuleEngine().compile(request).rules } catch {
    fatalError("\(error)")
  }
}()

private let systems = ["bsd", "bsd-right", "first", "last", "linux", "solaris", "windows"]

private func fragment(_ choice: UInt8, offset: Int, length: Int, fill: UInt8) -> [UInt8] {
  let more = choice & 1 != 0
  let data = (0..<length).map { UInt8(truncatingIfNeeded: Int(fill) &+ $0 % 8) }
  let link: [UInt8] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]
  if choice & 2 != 0 {
    let total = UInt16(8 + length)
    let field = UInt16(offset) << 3 | (more ? 1 : 0)
    let addresses = [UInt8](repeating: 0x20, count: 16) + [UInt8](repeating: 0x21, count: 16)
    return link + [0x86, 0xDD, 0x60, 0, 0, 0, UInt8(total >> 8), UInt8(total & 0xFF), 44, 64] + addresses
      + [17, 0, UInt8(field >> 8), UInt8(field & 0xFF), 0, 0, 0, choice >> 4] + data
  }
  let total = UInt16(20 + length)
  let field = UInt16(offset) | (more ? 0x2000 : 0)
  return link + [0x08, 0x00, 0x45, 0, UInt8(total >> 8), UInt8(total & 0xFF), 0, choice >> 4]
    + [UInt8(field >> 8), UInt8(field & 0xFF), 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2] + data
}

func fuzzDefrag(_ input: RawSpan) {
  guard input.byteCount > 1 else { return }
  do throws(RuleCompilationError) {
    let configuration = InspectorConfiguration(
      verifiesChecksums: false, flowCapacity: 16, hashKey: (1, 2),
      settings: [
        "host-os-policy.default": systems[Int(input.u8(0)) % systems.count], "defrag.memcap": "256kb",
        "defrag.trackers": "16", "defrag.max-frags": "64", "stream.memcap": "1mb",
      ])
    var inspector = try SnortInspector.make(rules: rules, configuration: configuration)
    var output = InspectionOutput()
    var time = Timestamp.zero
    var position = 1
    while input.byteCount - position >= 4 {
      let frame = fragment(
        input.u8(position), offset: Int(input.u8(position + 1)) * 33 % 8192, length: Int(input.u8(position + 2)) * 5,
        fill: 0x61)
      time = time + .milliseconds(Int(input.u8(position + 3)) * 100)
      output.reset()
      frame.withRawSpan {
        inspector.inspect(
          FrameMetadata(timestamp: time, port: PortID(0), originalLength: UInt32($0.byteCount)), $0, into: &output)
      }
      position += 4
    }
  } catch {
    fatalError("\(error)")
  }
}
