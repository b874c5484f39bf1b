// One pass over a capture, and what came of it.
import CBaseline
import Glibc
import VMFenceCapture
import VMFenceCore
import VMFenceDetection

struct Pass {
  var packets: UInt64 = 0
  var time = Duration.zero
  /// Allocations in the steady state.
  var allocations: UInt64 = 0
  var fired: [UInt64] = []
  /// Seconds of this process, system included.
  var processor = 0.0
  var alerts: [AlertKey: Int] = [:]

  var seconds: Double { Double(time.wholeNanoseconds) / 1e9 }
  var thousandsPerSecond: Int { Int(Double(packets) / seconds / 1000) }
  var thousandsPerProcessorSecond: Int { processor > 0 ? Int(Double(packets) / processor / 1000) : 0 }

  mutating func note(_ output: borrowing InspectionOutput, keepsAlerts: Bool) {
    for index in 0..<output.count {
      let alert = output[index]
      fired[Int(alert.ruleIndex)] += 1
      guard keepsAlerts else { continue }
      let key = AlertKey(
        rule: alert.ruleIndex, source: alert.source, destination: alert.destination, sourcePort: alert.sourcePort,
        destinationPort: alert.destinationPort, ipProtocol: alert.ipProtocol)
      alerts[key, default: 0] += 1
    }
  }
}

/// One rule between two ends.
struct AlertKey: Hashable {
  var rule: UInt32
  var source: IPAddress
  var destination: IPAddress
  var sourcePort: UInt16
  var destinationPort: UInt16
  var ipProtocol: UInt8
}

/// Writes the alerts as JSON, sorted, so that two runs can be compared.
func write(_ alerts: [AlertKey: Int], _ rules: SnortRules, to path: String) -> Bool {
  let lines = alerts.map { key, count in
    let metadata = rules.metadata(at: Int(key.rule))
    return """
      {"gid": \(metadata.gid), "sid": \(metadata.sid), "src": "\(key.source)", "sport": \(key.sourcePort), \
      "dst": "\(key.destination)", "dport": \(key.destinationPort), "proto": \(key.ipProtocol), "count": \(count)}
      """
  }
  let text = "[\n" + lines.sorted().joined(separator: ",\n") + "\n]\n"
  // SAFETY: a stream of the C library, closed once.
  guard let file = unsafe fopen(path, "w") else { return false }
  defer { unsafe _ = fclose(file) }
  return unsafe fputs(text, file) >= 0
}

func readAlone(_ path: String) throws(PacketSourceError) -> Pass {
  var file = try CaptureFile.open(path: path)
  var pass = Pass()
  var sum: UInt64 = 0
  let processor = processorSeconds()
  let start = ContinuousClock.now
  while true {
    let outcome = try file.nextBatch(limit: 1024) { frame, bytes in
      pass.packets += 1
      sum &+= UInt64(bytes.byteCount) &+ UInt64(frame.originalLength)
    }
    if outcome.isAtEnd { break }
  }
  pass.time = ContinuousClock.now - start
  pass.processor = processorSeconds() - processor
  baseline_keep(sum)
  return pass
}

/// Reads the file and inspects it; flows that are open at its end are ended, too. Allocations are counted after the first `warming` packets.
func inspect(
  _ path: String, _ inspector: inout SnortInspector, _ rules: SnortRules, warming: UInt64, keepsAlerts: Bool
) throws(PacketSourceError) -> Pass {
  var file = try CaptureFile.open(path: path)
  var output = InspectionOutput()
  var pass = Pass()
  pass.fired = Array(repeating: 0, count: rules.ruleCount)
  var before: UInt64 = 0
  let processor = processorSeconds()
  let start = ContinuousClock.now
  while true {
    let outcome = try file.nextBatch(limit: 1024) { frame, bytes in
      output.reset()
      inspector.inspect(frame, bytes, into: &output)
      if output.count > 0 { pass.note(output, keepsAlerts: keepsAlerts) }
      pass.packets += 1
      if pass.packets == warming { before = baseline_allocation_count() }
    }
    if outcome.isAtEnd { break }
  }
  while true {
    output.reset()
    guard inspector.finish(into: &output) else { break }
    pass.note(output, keepsAlerts: keepsAlerts)
  }
  pass.time = ContinuousClock.now - start
  pass.processor = processorSeconds() - processor
  pass.allocations = pass.packets > warming ? baseline_allocation_count() - before : 0
  return pass
}
