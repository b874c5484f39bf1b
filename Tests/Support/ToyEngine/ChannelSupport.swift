import VMFenceCore

/// What came out of a channel, in a form that compares and prints.
package struct Answer: Hashable {
  package var id: UInt64
  package var generation: UInt32
  package var verdict: Verdict
  package var rule: UInt32
  package var overflow: Int
  package var alerts: [String]

  package init(id: UInt64, generation: UInt32, verdict: Verdict, rule: UInt32, overflow: Int, alerts: [String]) {
    self.id = id
    self.generation = generation
    self.verdict = verdict
    self.rule = rule
    self.overflow = overflow
    self.alerts = alerts
  }
}

extension DetectorChannel {
  /// Collects what is there.
  package func collectAnswers() throws(DetectorError) -> [Answer] {
    var answers: [Answer] = []
    try collect { verdict, alerts in
      var texts: [String] = []
      for index in alerts.indices { texts.append(alerts[index].text) }
      answers.append(
        Answer(
          id: verdict.id, generation: verdict.generation, verdict: verdict.verdict, rule: verdict.rule,
          overflow: verdict.overflow, alerts: texts))
    }
    return answers
  }

  /// Collects until every packet is answered, or nothing came for two minutes.
  package func collectAll() throws(DetectorError) -> [Answer] {
    var answers: [Answer] = []
    var patience = 1200
    while outstanding > 0, patience > 0 {
      publish()
      switch waitForVerdicts(upTo: .milliseconds(100)) {
      case .verdicts: answers += try collectAnswers()
      case .timedOut: patience -= 1
      case .gone: return answers + (try collectAnswers())
      }
    }
    return answers
  }

  package func send(_ bytes: [UInt8], at nanoseconds: Int64 = 0, vlan: UInt16 = 0) -> EnqueueOutcome {
    bytes.withRawSpan {
      enqueue(
        FrameMetadata(
          timestamp: Timestamp(nanoseconds: nanoseconds), port: PortID(3), direction: .toGuest, checksums: .valid,
          strippedVLAN: vlan, originalLength: UInt32(bytes.count)), $0)
    }
  }
}

extension AlertRecord {
  package var text: String {
    let bytes = (0..<Int(excerptLength)).map { String(excerpt[$0], radix: 16) }.joined(separator: " ")
    return """
      \(timestamp.nanoseconds) rule \(ruleIndex) flow \(flowID) \(source):\(sourcePort) > \(destination):\(destinationPort) \
      proto \(ipProtocol) flags \(flags.rawValue) vlan \(vlan) layer \(layer) [\(bytes)]
      """
  }
}

/// A small generator of repeatable noise (xorshift).
package struct Noise: RandomNumberGenerator {
  package var state: UInt64
  package init(_ seed: UInt64) { state = seed | 1 }
  package mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state &* 0x2545_F491_4F6C_DD1D
  }
}
