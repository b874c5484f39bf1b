/// What of one end's numbers has come, as its receiver counts: which number that expects, and what came ahead of it. Segments that it would not take
/// are left out before.
struct TCPArrivals: BitwiseCopyable {
  /// Everything before came.
  private(set) var expected: UInt32 = 0
  /// A stretch that came ahead; empty when both are equal.
  private var aheadStart: UInt32 = 0
  private var aheadEnd: UInt32 = 0
  /// More came ahead than one stretch: `expected` is then the least that it can be, until everything was acknowledged.
  private(set) var isVague = false

  init() {}

  init(at number: UInt32) {
    (expected, aheadStart, aheadEnd) = (number, number, number)
  }

  /// Takes a segment with the numbers `start ..< end`. `next`: behind the highest number that was sent, this segment included.
  mutating func add(_ start: UInt32, _ end: UInt32, next: UInt32) {
    if sequenceDistance(start, expected) <= 0 {
      advance(to: end, next: next)
    } else if start != end {
      addAhead(start, end)
    }
  }

  /// Everything before `number` came: now, or it was acknowledged.
  mutating func advance(to number: UInt32, next: UInt32) {
    guard sequenceDistance(number, expected) > 0 else { return }
    expected = number
    if aheadStart != aheadEnd, sequenceDistance(aheadStart, expected) <= 0 {
      if sequenceDistance(aheadEnd, expected) > 0 { expected = aheadEnd }
      (aheadStart, aheadEnd) = (expected, expected)
    }
    if isVague, sequenceDistance(expected, next) >= 0 { isVague = false }
  }

  private mutating func addAhead(_ start: UInt32, _ end: UInt32) {
    guard aheadStart != aheadEnd else {
      (aheadStart, aheadEnd) = (start, end)
      return
    }
    guard sequenceDistance(start, aheadEnd) <= 0, sequenceDistance(end, aheadStart) >= 0 else {
      isVague = true
      return
    }
    if sequenceDistance(start, aheadStart) < 0 { aheadStart = start }
    if sequenceDistance(end, aheadEnd) > 0 { aheadEnd = end }
  }
}
