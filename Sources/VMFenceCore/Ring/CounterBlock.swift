// What an inspector counts, on its way out of its detector: a block of words of fixed size in the up region.

/// The detector's end: writes the words. When the other side sees them is no matter; each is whole.
@usableFromInline
package struct CounterBlockWriter {
  private let area: SharedArea

  package init(up: SharedRegion) { area = up.area(RingLayout.counters, count: RingLayout.counterCapacity * 8) }

  /// Writes the counter at `index`, in the order of `CompiledRules.inspectorCounters`; those beyond the block's end are left out.
  @usableFromInline
  package func write(_ value: UInt64, at index: Int) {
    guard index >= 0, index < RingLayout.counterCapacity else { return }
    area.storeOnce(value, at: index * 8)
  }
}

/// The supervisor's end. Any word may have any value at any time: it is read once, never used as an index or a length, and added so that it
/// cannot trap. What has to rise never goes back, whatever a detector writes.
struct CounterBlockReader {
  private let area: SharedArea
  /// Of the detectors before this one, added up.
  private var past = [UInt64](repeating: 0, count: RingLayout.counterCapacity)
  /// The highest that this detector has shown.
  private var highest = [UInt64](repeating: 0, count: RingLayout.counterCapacity)

  init(up: SharedRegion) { area = up.area(RingLayout.counters, count: RingLayout.counterCapacity * 8) }

  /// The values of these counters: totals over all detectors of the channel, levels as the last one shows them.
  mutating func read(_ counters: [InspectorCounter]) -> [UInt64] {
    counters.prefix(RingLayout.counterCapacity).enumerated().map { index, counter in
      let shown = area.loadOnce(index * 8)
      if counter.kind == .level { return shown }
      highest[index] = max(highest[index], shown)
      return past[index].addingSaturated(highest[index])
    }
  }

  /// Takes what the detector showed last, and empties the block for the next one, which begins at nothing. Only while none runs.
  mutating func beginAnew() {
    for index in 0..<RingLayout.counterCapacity {
      past[index] = past[index].addingSaturated(max(highest[index], area.loadOnce(index * 8)))
      highest[index] = 0
      area.storeOnce(0, at: index * 8)
    }
  }
}

extension UInt64 {
  /// The sum, or the highest number when there is no such.
  func addingSaturated(_ other: UInt64) -> UInt64 {
    let (sum, overflows) = addingReportingOverflow(other)
    return overflows ? .max : sum
  }
}
