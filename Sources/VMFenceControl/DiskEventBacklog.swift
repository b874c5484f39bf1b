/// What the process of a disk saw and nobody who follows it has acknowledged: lines, numbered from 1 on. Bounded: beyond, the oldest give way,
/// which whoever asks for them is told by their numbers. Used by one thread at a time.
package struct DiskEventBacklog {
  /// Lines, and bytes in them.
  package static let countLimit = 4096
  package static let byteLimit = 1 << 20

  private var lines: [[UInt8]] = []
  /// Where the first that is kept lies in `lines`.
  private var head = 0
  private var bytes = 0
  /// The number of the first that is kept; of the next one when none is.
  package private(set) var first: UInt64 = 1

  package init() {}

  /// One past the last number.
  package var end: UInt64 { first + UInt64(lines.count - head) }

  package mutating func append(_ line: [UInt8]) {
    lines.append(line)
    bytes += line.count
    // The newest is kept however long it is.
    while lines.count - head > Self.countLimit || bytes > Self.byteLimit && lines.count - head > 1 { removeFirst() }
  }

  /// Nil for one that is not kept any more, or not there yet.
  package subscript(number: UInt64) -> [UInt8]? {
    number >= first && number < end ? lines[head + Int(number - first)] : nil
  }

  /// Forgets the lines up to a number.
  package mutating func remove(through number: UInt64) {
    while first <= number, head < lines.count { removeFirst() }
  }

  private mutating func removeFirst() {
    bytes -= lines[head].count
    lines[head] = []
    head += 1
    first += 1
    if head == lines.count || head >= Self.countLimit {
      lines.removeFirst(head)
      head = 0
    }
  }
}
