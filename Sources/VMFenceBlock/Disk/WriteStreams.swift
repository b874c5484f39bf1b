/// Finds writes that go on where earlier ones ended: a guest that writes a file back. What such a stream has left behind is handed to
/// the disk while the rest comes, as a disk without a cache before it would have it, and not all at once when the guest asks for it to
/// be durable. Writes elsewhere, again and again to the same places, stay in the cache.
package struct WriteStreams {
  /// How much a stream has left behind when that is handed over, in bytes.
  package static let stretch: UInt64 = 4 << 20
  /// So many streams are followed: one more takes the place of the one that has waited longest.
  package static let limit = 8

  /// The one that went on last first. No write begins where an empty one ends.
  private var streams = [Range<UInt64>](repeating: .max ..< .max, count: limit)

  package init() {}

  /// A write of `length` bytes at `offset`, which lies on the disk.
  ///
  /// - Returns: what is to be handed over now.
  package mutating func note(_ offset: UInt64, _ length: UInt64) -> Range<UInt64>? {
    let end = offset + length
    let index = streams.firstIndex { $0.upperBound == offset }
    let stream = (index.map { streams[$0].lowerBound } ?? offset)..<end
    let isDue = end - stream.lowerBound >= Self.stretch
    for place in (0..<(index ?? Self.limit - 1)).reversed() { streams[place + 1] = streams[place] }
    streams[0] = isDue ? end..<end : stream
    return isDue ? stream : nil
  }
}
