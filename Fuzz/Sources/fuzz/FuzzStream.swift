import VMFenceCore
import VMFenceDetection

// Segments of one connection, written by the input: the first byte chooses system and mode, then each segment has six bytes: direction and
// options, flags, a signed distance of its number and of its acknowledgement from those expected, length and time. Checked besides "no
// trap": memory stays within its limit, and no alert names a rule that is not there.

private let rules: SnortRules = {
  let text = """
    alert tcp any any -> any any (msg:"1"; content:"abcdefgh"; sid:1;)
    alert tcp any any -> any any (msg:"2"; content:"stu"; depth:100; flow:to_server; sid:2;)
    drop tcp any any -> any any (msg:"3"; content:"abcdefghijklmnopqrstuvwxyzab"; sid:3;)
    alert tcp any any -> any any (msg:"4"; stream-event:reassembly_overlap_different_data; sid:4;)
    """
  let request = RuleCompilationRequest(
    sources: [RuleSource(file: "fuzz.rules", text: Array(text.utf8), dialect: .suricata)], onBadRule: .fail)
  do throws(RuleCompilationError) { return try SnortRuleEngine().compile(request).rules } catch {
    fatalError("\(error)")
  }
}()

private let systems = ["bsd", "first", "last", "linux", "old-linux", "solaris", "windows", "vista"]
private let limit: UInt64 = 1 << 20

/// One end's numbers.
private struct End {
  var next: UInt32
}

private func segment(
  fromClient: Bool, flags: UInt8, sequence: UInt32, acknowledgement: UInt32, length: Int
) -> [UInt8] {
  func big(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32(24 - $0 * 8)) } }
  let data = (0..<length).map { UInt8(0x61) + UInt8(truncatingIfNeeded: (Int(sequence & 0xFFFF) + $0) % 26) }
  let total = UInt16(40 + length)
  let (client, server): ([UInt8], [UInt8]) = ([10, 0, 0, 1], [10, 0, 0, 2])
  let ports: [UInt8] = fromClient ? [0x9C, 0x40, 0, 80] : [0, 80, 0x9C, 0x40]
  return [
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, 0x45, 0, UInt8(total >> 8), UInt8(total & 0xFF), 0, 1, 0, 0, 64, 6,
  ]
    + [0, 0] + (fromClient ? client + server : server + client) + ports + big(sequence) + big(acknowledgement)
    + [0x50, flags, 0xFF, 0xFF, 0, 0, 0, UInt8(truncatingIfNeeded: length / 2)] + data
}

func fuzzStream(_ input: RawSpan) {
  guard input.byteCount > 1 else { return }
  let mode = input.u8(0)
  do throws(RuleCompilationError) {
    let configuration = InspectorConfiguration(
      verifiesChecksums: false, isInline: mode & 64 != 0, flowCapacity: 16, hashKey: (1, 2),
      settings: [
        "host-os-policy.default": systems[Int(mode & 7)], "stream.midstream": mode & 8 != 0 ? "yes" : "no",
        "stream.async-oneside": mode & 16 != 0 ? "yes" : "no", "stream.inline": mode & 32 != 0 ? "yes" : "no",
        "stream.memcap": "1mb", "defrag.memcap": "128kb", "defrag.trackers": "8",
        "stream.reassembly.urgent.policy": mode & 128 != 0 ? "gap" : "oob",
      ])
    var inspector = try SnortInspector.make(rules: rules, configuration: configuration)
    var output = InspectionOutput(evidenceCapacity: 1 << 16)
    var ends = (client: End(next: UInt32.max - 500), server: End(next: 7000))
    var time = Timestamp.zero
    var position = 1
    while input.byteCount - position >= 6 {
      let choice = input.u8(position)
      let fromClient = choice & 1 == 0
      let flags = input.u8(position + 1)
      let distance = Int32(Int8(bitPattern: input.u8(position + 2))) * (choice & 2 != 0 ? 999 : 1)
      let other = Int32(Int8(bitPattern: input.u8(position + 3))) * (choice & 4 != 0 ? 999 : 1)
      let length = Int(input.u8(position + 4)) * (choice & 8 != 0 ? 5 : 1)
      time = time + .milliseconds(Int(input.u8(position + 5)) * (choice & 16 != 0 ? 1000 : 1))
      let (own, peer) = fromClient ? (ends.client, ends.server) : (ends.server, ends.client)
      let sequence = own.next &+ UInt32(bitPattern: distance)
      let frame = segment(
        fromClient: fromClient, flags: flags, sequence: sequence,
        acknowledgement: peer.next &+ UInt32(bitPattern: other), length: length)
      let end = sequence &+ UInt32(length) &+ UInt32(flags & 2 == 0 ? 0 : 1)
      if fromClient { ends.client.next = end } else { ends.server.next = end }
      output.reset()
      frame.withRawSpan {
        inspector.inspect(
          FrameMetadata(timestamp: time, port: PortID(0), originalLength: UInt32($0.byteCount)), $0, into: &output)
      }
      check(output)
      position += 6
    }
    var more = true
    while more {
      output.reset()
      more = inspector.finish(into: &output)
      check(output)
    }
    for (name, value) in inspector.statistics {
      precondition(name != "stream_bytes_most" || value <= limit, "more memory than allowed")
      precondition(name != "stream_bytes_now" || value == 0, "memory that nobody gave back")
    }
  } catch {
    fatalError("\(error)")
  }
}

private func check(_ output: borrowing InspectionOutput) {
  for index in 0..<output.count {
    precondition(Int(output[index].ruleIndex) < rules.ruleCount, "an alert of a rule that is not there")
  }
}
