internal import Glibc
internal import VMFenceCore

/// Lines that wait for a place, in a file, so that they outlive this process. Used by one thread at a time.
///
/// ```
/// header  "VMFSPOL1" | first u64 | zero to 64 bytes
/// record  length u32 | crc32c u32 | line (length bytes)
/// ```
/// Little-endian. `first` is where the first record is that is not over with. A record that is torn or damaged ends the file. The checksum covers
/// length and line. A line that was delivered shortly before the process died may come again.
public final class SpoolFile {
  static let magic = Array("VMFSPOL1".utf8)
  static let headerSize = 64
  static let frameSize = 8
  /// What is over with is cut off when there is so much of it, and more than of what waits.
  static let slack = 1 << 20

  public let path: String
  private var descriptor: Int32
  private var first = headerSize
  private var end = headerSize

  private init(_ path: String, _ descriptor: Int32) {
    self.path = path
    self.descriptor = descriptor
  }

  deinit { close(descriptor) }

  /// Opens or makes the file at `path` (mode 0600) and reads what waits in it.
  ///
  /// - `byteLimit`: a longer file is not read.
  /// - Returns: the file, its lines, and what is wrong with it: what follows the last sound record is gone.
  /// - Throws: when the file cannot be made or read; one of another kind stays as it is.
  public static func open(
    path: String, byteLimit: Int = 128 << 20
  ) throws(DeliveryFailure) -> (spool: SpoolFile, lines: [[UInt8]], damage: String?) {
    // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
    let descriptor = unsafe Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY, 0o600)
    guard descriptor >= 0 else { throw failure("open", path, errno) }
    let spool = SpoolFile(path, descriptor)
    let bytes = try spool.read(limit: byteLimit)
    if bytes.isEmpty {
      try spool.write(header(first: headerSize), at: 0)
      return (spool, [], nil)
    }
    guard bytes.count >= headerSize, bytes.starts(with: magic) else {
      throw DeliveryFailure("\(path.escapedForDisplay) is no spool: move it away")
    }
    let (lines, damage) = spool.scan(bytes)
    if damage != nil {
      _ = ftruncate(descriptor, off_t(spool.end))
      try spool.write(header(first: spool.first), at: 0)
    }
    return (spool, lines, damage)
  }

  /// Adds lines behind the others: all of them or none.
  func append(_ lines: ArraySlice<[UInt8]>) throws(DeliveryFailure) {
    var bytes: [UInt8] = []
    for line in lines {
      var frame: [UInt8] = []
      Self.put(UInt64(line.count), 4, &frame)
      Self.put(UInt64(Self.checksum(frame, line[...])), 4, &frame)
      bytes += frame + line
    }
    do throws(DeliveryFailure) { try write(bytes, at: end) } catch {
      _ = ftruncate(descriptor, off_t(end))
      throw error
    }
    end += bytes.count
  }

  /// The first lines are over with: these.
  func drop(_ lines: ArraySlice<[UInt8]>) throws(DeliveryFailure) {
    first += lines.reduce(0) { $0 + Self.frameSize + $1.count }
    if first >= end {
      (first, end) = (Self.headerSize, Self.headerSize)
      try write(Self.header(first: first), at: 0)
      _ = ftruncate(descriptor, off_t(end))
    } else if first - Self.headerSize > max(Self.slack, end - first) {
      try compact()
    } else {
      try write(Self.header(first: first), at: 0)
    }
  }

  /// Begins a file with only what waits: whole, or not at all.
  private func compact() throws(DeliveryFailure) {
    let rest = Array(try read(limit: end)[first...])
    let temporary = path + ".new"
    // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
    let fresh = unsafe Glibc.open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0o600)
    guard fresh >= 0 else { throw Self.failure("open", temporary, errno) }
    let new = SpoolFile(temporary, fresh)
    try new.write(Self.header(first: Self.headerSize) + rest, at: 0)
    // SAFETY: both paths are handed over as strings that end in zero and live during the call.
    guard unsafe rename(temporary, path) == 0 else { throw Self.failure("rename", temporary, errno) }
    swap(&descriptor, &new.descriptor)
    (first, end) = (Self.headerSize, Self.headerSize + rest.count)
  }

  // MARK: Bytes

  private static func header(first: Int) -> [UInt8] {
    var bytes = magic
    put(UInt64(first), 8, &bytes)
    return bytes + [UInt8](repeating: 0, count: headerSize - bytes.count)
  }

  private static func put(_ value: UInt64, _ count: Int, _ bytes: inout [UInt8]) {
    for index in 0..<count { bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * index))) }
  }

  private static func number(_ bytes: [UInt8], _ offset: Int, _ count: Int) -> UInt64 {
    (0..<count).reversed().reduce(0) { $0 << 8 | UInt64(bytes[offset + $1]) }
  }

  private static func checksum(_ length: [UInt8], _ line: ArraySlice<UInt8>) -> UInt32 {
    var crc = CRC32C()
    crc.update(length)
    crc.update(line)
    return crc.value
  }

  private func scan(_ bytes: [UInt8]) -> (lines: [[UInt8]], damage: String?) {
    let start = Self.number(bytes, 8, 8)
    guard start >= UInt64(Self.headerSize), start <= UInt64(bytes.count) else {
      return ([], "its header is damaged, and all of it lost")
    }
    (first, end) = (Int(start), Int(start))
    var lines: [[UInt8]] = []
    while bytes.count - end >= Self.frameSize {
      let (length, crc) = (Self.number(bytes, end, 4), Self.number(bytes, end + 4, 4))
      let begin = end + Self.frameSize
      guard length <= UInt64(bytes.count - begin),
        crc == UInt64(Self.checksum(Array(bytes[end..<end + 4]), bytes[begin..<begin + Int(length)]))
      else { break }
      lines.append(Array(bytes[begin..<begin + Int(length)]))
      end = begin + Int(length)
    }
    return (lines, end == bytes.count ? nil : "a record is torn at byte \(end); what follows it is lost")
  }

  private func read(limit: Int) throws(DeliveryFailure) -> [UInt8] {
    let size = Int(lseek(descriptor, 0, SEEK_END))
    guard size <= limit else { throw DeliveryFailure("\(path.escapedForDisplay) has \(size) bytes: move it away") }
    do throws(SystemFailure) { return try FileBytes.read(descriptor, count: max(0, size)) } catch {
      throw Self.failure("read", path, error.number)
    }
  }

  private func write(_ bytes: [UInt8], at offset: Int) throws(DeliveryFailure) {
    do throws(SystemFailure) { try FileBytes.write(bytes, descriptor, at: offset) } catch {
      throw Self.failure("write", path, error.number)
    }
  }

  private static func failure(_ verb: String, _ path: String, _ number: Int32) -> DeliveryFailure {
    DeliveryFailure("cannot \(verb) the spool \(path.escapedForDisplay): \(describeError(number))")
  }
}
