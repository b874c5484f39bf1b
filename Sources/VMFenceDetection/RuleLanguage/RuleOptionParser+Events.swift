import VMFenceCore

/// Options about what the engine itself found.
extension RuleOptionParser {
  mutating func streamEvent(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    var text = value.text
    if text.hasPrefix("stream.") { text.removeFirst("stream.".count) }
    guard let event = StreamEvent(name: text) else {
      var search = NearestName()
      let nearest = search.find(text, among: StreamEvent.names)
      throw RuleProblem(
        value.startIndex, "stream-event: \(value.shown) is not known",
        nearest.map { "is \($0) meant?" } ?? "names are like pkt_retransmission, reassembly_seq_gap, rst_invalid_ack")
    }
    tests.append(.state(.streamEvent(event)))
  }
}
