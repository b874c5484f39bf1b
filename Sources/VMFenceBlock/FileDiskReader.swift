internal import VMFenceCore
public import VMFenceIntegrity

/// A raw disk image, or a block device, that is read in place. It is never written.
public final class FileDiskReader: DiskReader {
  private let file: ReadOnlyFile
  private let path: String

  /// - Throws: `inputOutput` when it cannot be opened.
  public init(path: String) throws(IntegrityError) {
    self.path = path
    do {
      file = try ReadOnlyFile(path: path)
    } catch {
      throw IntegrityError(
        .inputOutput, "cannot open the disk image: \(error.text)", at: SourcePlace(file: path),
        remedy: "check the path and who may read it")
    }
  }

  public var byteCount: UInt64 { file.byteCount }

  public func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    try checkBounds(at: offset, count: buffer.count)
    let done: Int
    do {
      done = try file.read(at: offset, count: buffer.count, into: &buffer)
    } catch {
      throw IntegrityError(
        .inputOutput, "cannot read the disk image at byte \(offset): \(error.text)", at: SourcePlace(file: path),
        remedy: "check the disk that the image lies on")
    }
    guard done == buffer.count else {
      throw IntegrityError(
        .truncated, "the disk image became shorter while it was read", at: SourcePlace(file: path),
        remedy: "do not change the image while it is in use")
    }
  }
}
