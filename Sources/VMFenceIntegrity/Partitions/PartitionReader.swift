/// A stretch of a disk as a disk of its own.
public final class PartitionReader: DiskReader {
  private let disk: any DiskReader
  /// Where it begins on the disk, in bytes.
  public let start: UInt64
  public let byteCount: UInt64

  /// - Throws: `truncated` unless it lies on the disk.
  public init(_ disk: any DiskReader, start: UInt64, byteCount: UInt64) throws(IntegrityError) {
    guard start <= disk.byteCount, byteCount <= disk.byteCount - start else {
      throw IntegrityError(
        .truncated, "the disk ends at byte \(disk.byteCount), inside the partition from byte \(start) on",
        remedy: "give the whole image")
    }
    self.disk = disk
    self.start = start
    self.byteCount = byteCount
  }

  public func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    try checkBounds(at: offset, count: buffer.count)
    try disk.read(at: start + offset, into: &buffer)
  }

  public func attend() { disk.attend() }
}
