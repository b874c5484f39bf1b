import Glibc
import VMFenceCore
import VMFencePackets

/// A capture file in memory, and where its frames lie.
@safe final class Frames {
  // SAFETY: allocated by the initialiser, freed in deinit; never written after loading.
  let base: UnsafeMutableRawPointer
  private(set) var linkType = LinkType.ethernet
  private(set) var offsets: [UInt64] = []
  private(set) var lengths: [UInt32] = []

  /// Reads a classic pcap file of either byte order; nil with a message on standard error when that is not possible.
  static func load(_ path: String) -> Frames? {
    let file = unsafe open(path, O_RDONLY)
    guard file >= 0 else {
      complain("cannot open \(path): give the path of a pcap file")
      return nil
    }
    defer { close(file) }
    let size = Int(lseek(file, 0, SEEK_END))
    lseek(file, 0, SEEK_SET)
    guard size >= 24 else {
      complain("\(path) is not a pcap file")
      return nil
    }
    let frames = Frames(byteCount: size)
    var position = 0
    while position < size {
      // SAFETY: at most the rest of the allocation is written.
      let count = unsafe read(file, frames.base + position, Swift.min(1 << 20, size - position))
      guard count > 0 else { break }
      position += count
    }
    // SAFETY: the first `position` bytes were written.
    let bytes = unsafe UnsafeRawBufferPointer(start: frames.base, count: position).bytes
    let isLittle = bytes.u32le(0) == 0xA1B2_C3D4 || bytes.u32le(0) == 0xA1B2_3C4D
    guard isLittle || bytes.u32(0) == 0xA1B2_C3D4 || bytes.u32(0) == 0xA1B2_3C4D else {
      complain("\(path) is not a pcap file")
      return nil
    }
    frames.linkType = LinkType(rawValue: UInt16(truncatingIfNeeded: isLittle ? bytes.u32le(20) : bytes.u32(20)))
    var offset = 24
    while position - offset >= 16 {
      let length = Int(isLittle ? bytes.u32le(offset + 8) : bytes.u32(offset + 8))
      guard length <= position - offset - 16 else { break }
      frames.offsets.append(UInt64(offset + 16))
      frames.lengths.append(UInt32(length))
      offset += 16 + length
    }
    return frames
  }

  private init(byteCount: Int) {
    unsafe base = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 64)
  }

  deinit { unsafe base.deallocate() }

  var count: Int { offsets.count }
  var frameBytes: Int { lengths.reduce(0) { $0 + Int($1) } }

  /// Calls `body` with each frame's bytes.
  @inline(__always)
  func forEach(_ body: (RawSpan) -> Void) {
    // Local, so that the loop does not check for exclusive access to the object's fields at each frame.
    let (base, offsets, lengths) = unsafe (base, offsets, lengths)
    for index in 0..<offsets.count {
      // SAFETY: every range was checked against the file's length when it was indexed.
      body(unsafe UnsafeRawBufferPointer(start: base + Int(offsets[index]), count: Int(lengths[index])).bytes)
    }
  }

  /// Keeps the frames that `isWanted` says, at most `limit` bytes of them.
  func keep(limit: Int = .max, _ isWanted: (RawSpan) -> Bool) {
    var kept: ([UInt64], [UInt32], Int) = ([], [], 0)
    for index in 0..<offsets.count {
      // SAFETY: as in `forEach`.
      let bytes = unsafe UnsafeRawBufferPointer(start: base + Int(offsets[index]), count: Int(lengths[index])).bytes
      guard kept.2 + bytes.byteCount <= limit, isWanted(bytes) else { continue }
      kept.0.append(offsets[index])
      kept.1.append(lengths[index])
      kept.2 += bytes.byteCount
    }
    offsets = kept.0
    lengths = kept.1
  }
}

func complain(_ message: String) {
  let text = Array("decode-dispatch: \(message)\n".utf8)
  // SAFETY: the array's bytes are valid for the call.
  _ = unsafe text.withUnsafeBytes { unsafe write(STDERR_FILENO, $0.baseAddress, $0.count) }
}
