import VMFenceCore
import VMFenceDetection

// A conversation: frames one after the other, each after a byte for its length (in units of two bytes) and one for the time since
// the one before, inspected with rules of every kind. What is checked besides "no trap": what comes out is bounded and names rules
// that exist.

private let rules: SnortRules = {
  let request = RuleCompilationRequest(
    sources: [
      RuleSource(file: "fuzz.rules", text: Array(fuzzRules.utf8), dialect: .snort2),
      RuleSource(file: "suricata.rules", text: Array(fuzzSuricataRules.utf8), dialect: .suricata),
    ], onBadRule: .fail)
  do throws(RuleCompilationError) {
    return try SnortRuleEngine().compile(request).rules
  } catch {
    fatalError("\(error)")
  }
}()

func fuzzInspect(_ input: RawSpan) {
  do throws(RuleCompilationError) {
    let configuration = InspectorConfiguration(
      verifiesChecksums: false, isInline: true, flowCapacity: 16, hashKey: (1, 2),
      // An engine for each input: one with as much memory as is usual takes longer to make than to inspect with.
      settings: ["stream.memcap": "1mb", "defrag.memcap": "256kb", "defrag.trackers": "16"])
    var inspector = try SnortInspector.make(rules: rules, configuration: configuration)
    var output = InspectionOutput()
    var position = 0
    var time = Timestamp.zero
    while input.byteCount - position > 2 {
      let length = Swift.min(Int(input.u8(position)) * 2, input.byteCount - position - 2)
      time = time + .milliseconds(Int(input.u8(position + 1)) * 100)
      let bytes = input.extracting(position + 2..<position + 2 + length)
      let frame = FrameMetadata(timestamp: time, port: PortID(0), originalLength: UInt32(length))
      output.reset()
      inspector.inspect(frame, bytes, into: &output)
      for index in 0..<output.count {
        precondition(Int(output[index].ruleIndex) < rules.ruleCount, "an alert of a rule that is not there")
      }
      position += 2 + length
    }
  } catch {
    fatalError("\(error)")
  }
}
