import VMFenceCore

/// Tests of bytes.
extension SnortInspector {
  /// Whether the payload tests at `first` hold, in their buffers. False also when `matching.payloads.budget` ran out.
  ///
  /// `payload`: the payload or window, or a part of it that begins at `start`.
  mutating func payloadMatches(
    _ first: Int, _ rule: Int, _ match: borrowing PacketMatch, _ payload: RawSpan, at start: Int, _ frame: RawSpan,
    _ image: RawSpan
  ) -> Bool {
    let isSuricata = image.u8(rule + RuleRecord.flags) & RuleRecord.isSuricata != 0
    return matching.payloads.matches(
      first, count: Int(image.u16le(rule + RuleRecord.topPayloadCount)),
      PayloadMatcher.Subject(
        isSuricata: isSuricata, streamStart: isSuricata && match.isStream ? match.streamOffset + start : 0),
      payload: payload, frame: frame, image: image)
  }
}
