public import Testing
public import VMFenceCore

/// What every `BlockObserver` must do, checked from outside. Call it inside a `@Test`:
///
///     @Test func isABlockObserver() {
///       BlockObserverConformance(diskSize: 1 << 20).check { MyObserver(…) }
///     }
public struct BlockObserverConformance: Sendable {
  /// The size of the disk that the observer watches, in bytes.
  public var diskSize: UInt64

  public init(diskSize: UInt64) { self.diskSize = diskSize }

  /// Checks: that every request is answered, whatever its offset, length, number, time and data; that reads and
  /// flushes pass; that gaps are taken, also several and first of all; and that after all that it still answers.
  public func check<Observer: BlockObserver & ~Copyable>(
    sourceLocation: SourceLocation = #_sourceLocation, _ make: () throws -> Observer
  ) rethrows {
    var fresh = try make()
    fresh.observeGap(at: Timestamp(nanoseconds: .min), reason: "")
    fresh.observeGap(at: .zero, reason: "text\u{1B}[2J\r\nof a guest")
    var observer = try make()
    var sequence: UInt64 = 0
    var time: Int64 = 0
    for operation in BlockRequest.Operation.allCases {
      for offset in offsets {
        for length in lengths {
          for size in dataSizes(length, operation) {
            let request = BlockRequest(
              sequence: sequence, timestamp: Timestamp(nanoseconds: time), operation: operation, offset: offset,
              length: length, isForcedUnitAccess: sequence % 2 == 0)
            let data = [UInt8](repeating: UInt8(truncatingIfNeeded: sequence &* 31), count: size)
            let verdict = data.withRawSpan { observer.observe(request, data: $0) }
            if operation == .read || operation == .flush {
              #expect(verdict == .allow, "reads and flushes pass: \(request)", sourceLocation: sourceLocation)
            }
            sequence &+= sequence % 17 == 0 ? 3 : 1
            time &+= sequence % 5 == 0 ? -1 : 400_000_000
          }
        }
      }
      observer.observeGap(at: Timestamp(nanoseconds: time), reason: "a gap")
    }
    let last = BlockRequest(sequence: .max, timestamp: Timestamp(nanoseconds: .max), operation: .flush)
    for request in [last, BlockRequest(sequence: 0, timestamp: .zero, operation: .read, offset: 0, length: 512)] {
      let verdict = [].withRawSpan { observer.observe(request, data: $0) }
      #expect(verdict == .allow, "it answers to the end", sourceLocation: sourceLocation)
    }
  }

  private var offsets: [UInt64] {
    [0, 1, 511, 1024, 4096, diskSize / 2, diskSize &- 1, diskSize, diskSize &+ 1, .max - 4095, .max]
  }

  private var lengths: [UInt64] { [0, 1, 512, 4096, 65_536, diskSize, .max] }

  /// What a write carries: what it says, less, nothing. More than a request may have is left out.
  private func dataSizes(_ length: UInt64, _ operation: BlockRequest.Operation) -> [Int] {
    guard operation == .write else { return [0] }
    return length <= 65_536 ? Array(Set([Int(length), Int(length / 2), 0])).sorted() : [0, 512]
  }
}
