#if Daemon
import ArgumentParser
import Foundation
import VMFenceCapture
import VMFenceCore
import VMFenceDetection
import VMFencePackets

/// Captures, inspected one group after the other, and what is told of them.
struct InspectionRun: ~Copyable {
  private let rules: SnortRules
  private var output: InspectionOutput
  private let encoder: EVEEncoder
  private let eve: LineFile?
  private let showsAlerts: Bool
  private let isInline: Bool
  private let wanted: EvidenceWanted
  private let decoding: DecodeSettings
  /// Where frames go that nobody dropped.
  private var passed: CaptureFileWriter?
  /// The file's name when there is one file in the group, and the packets of the group.
  private var captureFile: String?
  private var captured: UInt64 = 0
  private var packets: UInt64 = 0
  private var bytes: UInt64 = 0
  private var alerts: UInt64 = 0
  private var dropped: UInt64 = 0
  private var overflow: UInt64 = 0
  private var skipped: UInt64 = 0
  private var first: Timestamp?
  private(set) var last = Timestamp.zero
  private var counters: [(name: String, value: UInt64)] = []

  init(
    rules: SnortRules, isInline: Bool, output path: String?, showsAlerts: Bool, evidence: EvidenceWanted,
    tellsAnomalies: Bool, decoding: DecodeSettings, passed: consuming CaptureFileWriter?
  ) throws {
    // What can fail comes first: a writer cannot be given up half-way.
    let eve = try path.map(LineFile.init)
    self.eve = eve
    self.passed = passed
    self.rules = rules
    self.showsAlerts = showsAlerts
    self.isInline = isInline
    wanted = evidence
    self.decoding = decoding
    output = InspectionOutput(
      evidenceCapacity: evidence.isEmpty ? 0 : EvidenceWanted.capacity, keepsAnomalies: tellsAnomalies)
    encoder = EVEEncoder(node: "inspect", isInline: isInline, directory: DomainDirectory())
  }

  /// Inspects captures, merged by time. Returns what was wrong with a capture; the frames before were inspected.
  ///
  /// `keepsWaiting`: what waits for more packets goes on waiting.
  mutating func inspect(
    _ paths: [String], with inspector: inout SnortInspector, keepsWaiting: Bool = false
  ) -> PacketSourceError? {
    captureFile = paths.count == 1 ? paths.first : nil
    captured = 0
    var merged = MergedCapture()
    do throws(PacketSourceError) {
      for path in paths {
        merged.add(
          path == "-"
            ? try CaptureFile.standardInput(ports: .all(PortID(0)))
            : try CaptureFile.open(path: path, ports: .all(PortID(0))))
      }
    } catch { return error }
    let problem = feed(&merged, to: &inspector)
    if !keepsWaiting { finish(&inspector) }
    let counts = merged.counters
    bytes += counts.receivedBytes
    skipped += counts.skipped
    add(inspector.statistics)
    return problem
  }

  private mutating func feed(
    _ source: inout MergedCapture, to inspector: inout SnortInspector
  ) -> PacketSourceError? {
    do throws(PacketSourceError) {
      while true {
        let outcome = try source.nextBatch(limit: 4096, patience: .zero) { frame, bytes in
          take(frame, bytes, &inspector)
        }
        if outcome.isAtEnd { return nil }
      }
    } catch {
      return error
    }
  }

  /// What waited for packets that do not come.
  private mutating func finish(_ inspector: inout SnortInspector) {
    let frame = FrameMetadata(timestamp: last, port: PortID(0), originalLength: 0)
    while true {
      output.reset()
      let more = inspector.finish(into: &output)
      overflow += UInt64(output.overflow)
      for index in 0..<output.count { tell(output[index], frame, RawSpan()) }
      guard more else { return }
    }
  }

  private mutating func add(_ statistics: [(name: String, value: UInt64)]) {
    guard !counters.isEmpty else {
      counters = statistics
      return
    }
    for (index, counter) in statistics.enumerated() where index < counters.count {
      counters[index].value &+= counter.value
    }
  }

  private mutating func take(_ frame: FrameMetadata, _ bytes: RawSpan, _ inspector: inout SnortInspector) {
    output.reset()
    inspector.inspect(frame, bytes, into: &output)
    captured += 1
    if first == nil { first = frame.timestamp }
    last = frame.timestamp
    overflow += UInt64(output.overflow)
    for index in 0..<output.count { tell(output[index], frame, bytes) }
    if output.keepsAnomalies { tellAnomalies(frame, bytes) }
    if output.isTagged { tellTagged(frame, bytes) }
    if output.verdict != .pass {
      dropped += 1
      if isInline { tellDrop(frame, bytes) }
    } else {
      pass(frame, bytes)
    }
    packets += 1
  }

  private mutating func pass(_ frame: FrameMetadata, _ bytes: RawSpan) {
    guard passed != nil else { return }
    var rewritten: [UInt8]?
    output.withRewritten { rewritten = Array(copying: $0, 0..<$0.byteCount) }
    if let rewritten {
      rewritten.withRawSpan { passed?.write(frame, $0) }
    } else {
      passed?.write(frame, bytes)
    }
  }

  private mutating func tell(_ record: AlertRecord, _ frame: FrameMetadata, _ bytes: RawSpan) {
    let rule = rules.metadata(at: Int(record.ruleIndex))
    var alert = Alert(
      record, rule: rule, incarnation: .none, packetID: packets,
      verdict: output.verdictRule == record.ruleIndex ? output.verdict : .pass)
    alert.packetVerdict = output.verdict
    alert.rejectAction = rejectAction
    alert.evidence = evidence(record, frame, bytes)
    alerts += 1
    eve?.write(encoder.encode(.alert(alert)))
    if showsAlerts {
      Terminal.output.print(String(decoding: FastAlertEncoder(isInline: isInline).encode(alert), as: UTF8.self))
    }
  }

  private func evidence(_ record: AlertRecord, _ frame: FrameMetadata, _ bytes: RawSpan) -> PacketEvidence? {
    guard eve != nil else { return nil }
    var evidence = PacketEvidence(frame, bytes, layer: Int(record.layer), wanted, decoding)
    evidence.captureFile = captureFile
    evidence.captureNumber = record.origin == .flowTimeout ? nil : captured
    if wanted.contains(.packet), let kept = output.evidence(record.packet) { evidence.packet = kept }
    if wanted.contains(.payload), let kept = output.evidence(record.payload) { evidence.payload = kept }
    return evidence
  }

  private func tellAnomalies(_ frame: FrameMetadata, _ bytes: RawSpan) {
    guard let eve else { return }
    for anomaly in output.anomalies {
      var packet = DroppedPacket(
        frame, bytes, packetID: packets, reason: .decodeError, rule: nil, verdict: .pass, decoding,
        layer: Int(anomaly.layer))
      packet.flowID = anomaly.flowID
      packet.evidence?.captureFile = captureFile
      packet.evidence?.captureNumber = captured
      eve.write(encoder.encode(anomaly, event: SnortInspector.name(of: anomaly), of: packet))
    }
  }

  private func tellTagged(_ frame: FrameMetadata, _ bytes: RawSpan) {
    guard let eve else { return }
    var packet = DroppedPacket(
      frame, bytes, packetID: packets, reason: .rules, rule: nil, verdict: .pass, decoding, .packet)
    packet.evidence?.captureFile = captureFile
    packet.evidence?.captureNumber = captured
    eve.write(encoder.encodeTagged(packet))
  }

  private var rejectAction: RuleAction? {
    output.rejectRule == .max ? nil : rules.metadata(at: Int(output.rejectRule)).action
  }

  private func tellDrop(_ frame: FrameMetadata, _ bytes: RawSpan) {
    guard let eve else { return }
    var drop = DroppedPacket(
      frame, bytes, packetID: packets, reason: output.dropReason,
      rule: output.verdictRule == .max ? nil : rules.metadata(at: Int(output.verdictRule)), verdict: output.verdict,
      decoding)
    drop.rejectAction = rejectAction
    drop.evidence?.captureFile = captureFile
    drop.evidence?.captureNumber = captured
    eve.write(encoder.encode(drop))
  }

  mutating func finish() throws {
    var statistics = EVEStatistics(
      time: last, uptime: first.map { last - $0 } ?? .zero, packets: packets, bytes: bytes, drops: skipped,
      alerts: alerts)
    statistics.counters = counters
    eve?.write(encoder.encode(statistics))
    try eve?.close()
    try passed?.close()
    if let skipped = passed?.skipped, skipped > 0 {
      Terminal.error.print("frames not written, of another link type than the first: \(skipped)")
    }
    let verb = isInline ? "dropped" : "would have been dropped"
    Terminal.error.print("packets: \(packets), alerts: \(alerts), \(verb): \(dropped)")
    if overflow > 0 {
      Terminal.error.print("alerts that did not fit (over \(InspectionOutput.capacity) of one packet): \(overflow)")
    }
    if skipped > 0 { Terminal.error.print("capture records passed over: \(skipped)") }
  }
}
#endif
