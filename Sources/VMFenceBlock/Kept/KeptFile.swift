internal import Glibc
public import VMFenceCore
public import VMFenceIntegrity

/// The file that kept contents (`rollback`) are appended to. It holds what protected files contained: only its owner may read
/// it. Used by one thread at a time.
public final class KeptFile {
  public let path: String
  /// In bytes; what does not fit any more is not kept.
  public let limit: UInt64
  private let descriptor: CInt
  private var size: UInt64

  /// Opens or makes the file, and cuts off a record that was not written whole.
  ///
  /// - Throws: `inputOutput`, `permissionDenied`; `notATrace` when it is a file of something else.
  public init(path: String, limit: UInt64) throws(BlockSourceError) {
    self.path = path
    self.limit = limit
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    let file = unsafe open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_APPEND, 0o600)
    guard file >= 0 else { throw DiskFile.failure("open the file of kept contents", path, errno) }
    do throws(BlockSourceError) {
      var end: UInt64 = 0
      let problem = try Self.walk(path) { _, next in
        end = next
        return true
      }
      if let problem, end == 0 { throw problem }
      // SAFETY of the cut: only what was never a whole record goes.
      guard ftruncate(file, off_t(end)) == 0 else {
        throw DiskFile.failure("cut the file of kept contents", path, errno)
      }
      size = end
    } catch {
      close(file)
      throw error
    }
    descriptor = file
  }

  deinit { close(descriptor) }

  /// Appends a record, whole or not at all. It is durable as soon as the system writes it; nobody waits for that.
  ///
  /// - Returns: false when there is no room, or the file cannot be written.
  public func append(_ contents: KeptContents) -> Bool {
    let bytes = contents.encoded
    guard size + UInt64(bytes.count) <= limit else { return false }
    // SAFETY: the array's bytes are read.
    let written = unsafe bytes.withUnsafeBytes { unsafe write(descriptor, $0.baseAddress, $0.count) }
    guard written == bytes.count else {
      if written > 0 { _ = ftruncate(descriptor, off_t(size)) }
      return false
    }
    size += UInt64(bytes.count)
    return true
  }

  /// Shows every record, from the oldest on, until `body` says no.
  ///
  /// - Returns: where and why reading ended before the end of the file; nil when all of it was sound.
  /// - Throws: `inputOutput`.
  public static func read(_ path: String, _ body: (KeptContents) -> Bool) throws(BlockSourceError) -> BlockSourceError?
  {
    try walk(path) { contents, _ in body(contents) }
  }

  private static func walk(
    _ path: String, _ body: (KeptContents, _ end: UInt64) -> Bool
  ) throws(BlockSourceError) -> BlockSourceError? {
    do throws(SystemFailure) {
      let file = try ReadOnlyFile(path: path)
      var position: UInt64 = 0
      var header = [UInt8](repeating: 0, count: KeptContents.headerSize)
      while position < file.byteCount {
        func problem(_ code: BlockSourceError.Code, _ what: String) -> BlockSourceError {
          BlockSourceError(
            code, "\(what) at byte \(position)", at: SourcePlace(file: path), remedy: "what is before is used")
        }
        let isThere = try file.read(at: position, count: header.count, into: &header) == header.count
        guard isThere else { return problem(.truncated, "kept contents end within a record") }
        guard let (count, checksum) = header.withRawSpan({ KeptContents.bodySize($0) }) else {
          return problem(.notATrace, "no record of kept contents")
        }
        let end = position + UInt64(header.count + count)
        guard end <= file.byteCount else { return problem(.truncated, "kept contents end within a record") }
        var bytes = [UInt8](repeating: 0, count: count)
        guard try file.read(at: position + UInt64(header.count), count: count, into: &bytes) == count,
          let contents = KeptContents(body: bytes, checksum: checksum)
        else { return problem(.corrupt, "a damaged record of kept contents") }
        position = end
        if !body(contents, end) { return nil }
      }
      return nil
    } catch {
      throw BlockSourceError(
        .inputOutput, "cannot read kept contents: \(error.text)", at: SourcePlace(file: path), remedy: "check the path")
    }
  }
}
