import VMFenceCore

/// Tests of bytes.
extension SnortInspector {
  /// Whether the `count` payload tests at `first` hold, in their buffers. False also when `matching.budget` ran out.
  mutating func payloadMatches(_ first: Int, _ count: Int, _ payload: RawSpan, _ frame: RawSpan, _ image: RawSpan)
    -> Bool
  {
    matching.contents.matches(
      first, count: count, patterns: matching.sections[.patterns].offset, payload: payload, image: image,
      budget: &matching.budget)
  }
}
