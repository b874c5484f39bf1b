internal import Synchronization

/// Reads a virtual disk, or a recording of one.
///
/// For a live `IntegrityMonitor` it must show every request that the monitor allowed before, and not yet the one that
/// the monitor is being shown. Safe to call from any thread.
public protocol DiskReader: AnyObject, Sendable {
  /// The size of the disk.
  var byteCount: UInt64 { get }

  /// Fills the whole of `buffer` with the bytes from `offset` on.
  ///
  /// - Throws: `truncated` when the disk ends before, `inputOutput` when it cannot be read.
  func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError)

  /// Called again and again by whoever works on what it has read, so that a reader whose owner has others wait (`NBDServer.reader`) can
  /// show them that it lives. Does nothing where a reader has nobody who waits.
  func attend()
}

extension DiskReader {
  public func attend() {}

  /// - Throws: `truncated` unless `count` bytes from `offset` on lie inside the disk.
  public func checkBounds(at offset: UInt64, count: Int) throws(IntegrityError) {
    guard count >= 0, offset <= byteCount, UInt64(count) <= byteCount - offset else {
      throw IntegrityError(
        .truncated, "the disk ends at byte \(byteCount), before byte \(offset) + \(count)",
        remedy: "give the whole image; a copy that was cut short cannot be used")
    }
  }
}

extension DiskReader {
  /// Sorts by paths, of which there can be a million that are alike for long, and attends meanwhile.
  func sorted<Element>(_ elements: some Sequence<Element>, by path: (Element) -> [UInt8]) -> [Element] {
    var count = 0
    return elements.sorted {
      count += 1
      if count.isMultiple(of: 1024) { attend() }
      return path($0).lexicographicallyPrecedes(path($1))
    }
  }
}

/// A disk in memory, for tests, fuzzing and small images.
public final class MemoryDisk: DiskReader {
  private let bytes: Mutex<[UInt8]>
  public let byteCount: UInt64

  public init(_ bytes: [UInt8]) {
    byteCount = UInt64(bytes.count)
    self.bytes = Mutex(bytes)
  }

  public func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    try checkBounds(at: offset, count: buffer.count)
    let start = Int(offset)
    let count = buffer.count
    buffer = bytes.withLock { Array($0[start..<start + count]) }
  }

  /// Puts bytes on the disk; what lies beyond its end is left out, as a device would refuse it.
  public func write(_ data: [UInt8], at offset: UInt64) {
    guard offset < byteCount else { return }
    let start = Int(offset)
    let count = min(data.count, Int(byteCount) - start)
    bytes.withLock { $0.replaceSubrange(start..<start + count, with: data[..<count]) }
  }
}
