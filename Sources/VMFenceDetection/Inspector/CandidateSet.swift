/// The rules that a packet has to be compared with, as bits, so that each is there once and they come out in order.
struct CandidateSet {
  private var words: [UInt64]
  private var low = Int.max
  private var high = -1

  init(ruleCount: Int) { words = Array(repeating: 0, count: (ruleCount + 63) / 64) }

  /// May be false of a set that was emptied by `popFirst`, but for its last call.
  @inline(__always)
  var isEmpty: Bool { high < low }

  @inline(__always)
  mutating func insert(_ rule: Int) {
    let word = rule >> 6
    words[word] |= 1 << UInt64(rule & 63)
    low = min(low, word)
    high = max(high, word)
  }

  /// Takes out the first rule.
  @inline(__always)
  mutating func popFirst() -> Int? {
    while low <= high {
      let word = words[low]
      if word != 0 {
        words[low] = word & (word - 1)
        return low << 6 | word.trailingZeroBitCount
      }
      low += 1
    }
    low = .max
    high = -1
    return nil
  }

  mutating func removeAll() {
    while low <= high {
      words[low] = 0
      low += 1
    }
    low = .max
    high = -1
  }
}
