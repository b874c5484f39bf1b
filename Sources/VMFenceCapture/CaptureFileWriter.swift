internal import Glibc
import VMFenceCore

/// Writes frames as a pcap file with nanoseconds (draft-ietf-opsawg-pcap), which every tool of the field reads.
///
/// A file has one link type; frames of another are counted in `skipped` and not written. Buffers 256 KiB; `close()` writes the rest and says
/// whether everything was written. Used by one thread at a time.
public struct CaptureFileWriter: ~Copyable {
  private let descriptor: Int32
  private let path: String
  private var linkType: LinkType?
  private var buffer: [UInt8] = []
  private var failure: PacketSourceError?
  public private(set) var written: UInt64 = 0
  public private(set) var skipped: UInt64 = 0

  private init(descriptor: Int32, path: String) {
    self.descriptor = descriptor
    self.path = path
  }

  deinit { _ = Glibc.close(descriptor) }

  /// Makes the file, or empties the one that is there. Its header is written with the first frame, whose link type it has.
  ///
  /// - Throws: `inputOutput`. The corresponding C function is `open(2)`.
  public static func create(path: String) throws(PacketSourceError) -> CaptureFileWriter {
    // SAFETY: `open` reads the path up to its NUL, which Swift's bridging to a C string adds.
    let descriptor = unsafe Glibc.open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else {
      throw PacketSourceError(
        .inputOutput, "cannot make the file: \(systemErrorText(errno))", at: SourcePlace(file: path),
        remedy: "check the path and its permissions")
    }
    return CaptureFileWriter(descriptor: descriptor, path: path)
  }

  /// Writes one frame, with its whole length as its original one.
  public mutating func write(_ frame: FrameMetadata, _ bytes: RawSpan) {
    if linkType == nil {
      linkType = frame.linkType
      // Magic number of nanoseconds, version 2.4, two reserved words, the longest frame, the link type.
      for word in [
        0xA1B2_3C4D, 0x0004_0002, 0, 0, UInt32(CaptureFile.maximumFrameLength), UInt32(frame.linkType.rawValue),
      ] {
        append(word)
      }
    }
    guard linkType == frame.linkType, bytes.byteCount <= CaptureFile.maximumFrameLength else {
      skipped += 1
      return
    }
    append(UInt32(truncatingIfNeeded: frame.timestamp.nanoseconds / 1_000_000_000))
    append(UInt32(truncatingIfNeeded: frame.timestamp.nanoseconds % 1_000_000_000))
    append(UInt32(bytes.byteCount))
    append(UInt32(bytes.byteCount))
    for index in 0..<bytes.byteCount { buffer.append(bytes.u8(index)) }
    written += 1
    if buffer.count >= CaptureFile.readSize { flush() }
  }

  /// Writes what is left.
  ///
  /// - Throws: `inputOutput`, when that or anything before could not be written.
  public mutating func close() throws(PacketSourceError) {
    flush()
    if let failure { throw failure }
  }

  private mutating func append(_ word: UInt32) {
    for shift in [UInt32(0), 8, 16, 24] { buffer.append(UInt8(truncatingIfNeeded: word >> shift)) }
  }

  /// The corresponding C function is `write(2)`.
  private mutating func flush() {
    var start = 0
    while start < buffer.count, failure == nil {
      let descriptor = descriptor
      // SAFETY: `write` reads at most the given count at the given place, and the slice says both.
      let count = unsafe buffer.withUnsafeBytes { bytes in
        let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[start...])
        return unsafe Glibc.write(descriptor, rest.baseAddress, rest.count)
      }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else {
        failure = PacketSourceError(
          .inputOutput, "cannot write: \(systemErrorText(errno))", at: SourcePlace(file: path),
          remedy: "check the room on the disk")
        break
      }
      start += count
    }
    buffer.removeAll(keepingCapacity: true)
  }
}
