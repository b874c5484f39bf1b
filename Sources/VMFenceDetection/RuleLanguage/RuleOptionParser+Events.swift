import VMFenceCore
import VMFencePackets

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
    tests.append(.state(.streamEvent([event])))
  }

  /// What of Snort's generator of fragments (123) is told of here.
  private static let fragmentEvents: [UInt32: [DecodeEvent]] = [
    7: [.ipv4FragmentsTooLarge, .ipv6FragmentsTooLarge], 8: [.ipv4FragmentOverlap, .ipv6FragmentOverlap],
  ]

  /// A rule of Snort whose generator is that of the decoders (116), of fragments (123) or of streams (129) is about what they found, by its
  /// number.
  ///
  /// `missing`: what is to be said of a rule without a head that is no such rule.
  mutating func finishBuiltIn(_ missing: RuleProblem?, _ start: Int) throws(RuleProblem) {
    guard dialect != .suricata, [116, 123, 129].contains(metadata.gid) else {
      guard let missing else { return }
      if dialect == .snort2 { throw missing }
      return refuse("rule without a head", at: start)
    }
    if metadata.gid != 129 {
      let events =
        metadata.gid == 123
        ? Self.fragmentEvents[metadata.sid] ?? [] : DecodeEvent.allCases.filter { $0.snortSID == metadata.sid }
      if !events.isEmpty { return tests.append(.header(.decodeEvent(events))) }
    } else {
      let events = StreamEvent.ofSnort(metadata.sid)
      if !events.isEmpty { return tests.append(.state(.streamEvent(events))) }
    }
    refuse("built-in rule \(metadata.gid):\(metadata.sid)", at: start)
  }
}
