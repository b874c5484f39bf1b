import VMFenceCore

/// The option of a rule about events, one of which is to be told: the first (small 1), how many more there are (small 2), and those (a word
/// each).
enum EventRecord {
  static func contains(_ option: Int, _ image: RawSpan, _ isTold: (UInt8) -> Bool) -> Bool {
    if isTold(image.u8(option + OptionRecord.small1)) { return true }
    for index in 0..<Int(image.u8(option + OptionRecord.small2)) {
      if isTold(UInt8(truncatingIfNeeded: image.u32le(OptionRecord.word(option, index)))) { return true }
    }
    return false
  }

  /// Whether all of them are events.
  static func isValid(_ option: Int, _ image: RawSpan, _ isEvent: (UInt8) -> Bool) -> Bool {
    let more = Int(image.u8(option + OptionRecord.small2))
    guard more <= OptionRecord.wordCount, isEvent(image.u8(option + OptionRecord.small1)) else { return false }
    return (0..<more).allSatisfy {
      let word = image.u32le(OptionRecord.word(option, $0))
      return word <= 255 && isEvent(UInt8(truncatingIfNeeded: word))
    }
  }
}

extension OptionDraft {
  /// `alternatives`: one at least, and no more than an option has words for.
  init(kind: UInt8, alternatives: [UInt8]) {
    precondition((1...OptionRecord.wordCount + 1).contains(alternatives.count), "events that do not fit a record")
    self.init(
      kind: kind, small1: alternatives[0], small2: UInt8(alternatives.count - 1),
      words: alternatives.dropFirst().map(UInt32.init))
  }
}
