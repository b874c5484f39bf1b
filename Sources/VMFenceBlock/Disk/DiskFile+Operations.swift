internal import CLinux
internal import Glibc

/// What a guest's requests do. Each gives 0 or an error number of the system; ranges lie inside the disk, which the
/// caller has checked.
extension DiskFile {
  /// Reads what is in the page cache, without waiting for the disk.
  ///
  /// - Returns: how many bytes, from the beginning on; 0 when the disk must be asked.
  @unsafe func readCached(_ bytes: UnsafeMutableRawPointer, _ count: Int, at offset: UInt64) -> Int {
    // SAFETY: the caller's `count` bytes.
    max(0, unsafe vmfence_read_cached(descriptor, bytes, count, Int64(offset)))
  }

  /// Whether the page cache has all of the range; false on kernels before 6.5, which cannot tell.
  func isCached(_ offset: UInt64, _ count: Int) -> Bool {
    vmfence_is_cached(descriptor, Int64(offset), Int64(count)) != 0
  }

  /// A file that became shorter than it was reads as an input/output error.
  @unsafe func readAll(_ bytes: UnsafeMutableRawPointer, _ count: Int, at offset: UInt64) -> CInt {
    var done = 0
    while done < count {
      // SAFETY: the rest of the caller's `count` bytes.
      let result = unsafe pread(descriptor, bytes + done, count - done, off_t(offset) + off_t(done))
      if result == 0 { return EIO }
      if result < 0 {
        if errno == EINTR { continue }
        return errno
      }
      done += result
    }
    return 0
  }

  @unsafe func writeAll(_ bytes: UnsafeRawPointer, _ count: Int, at offset: UInt64) -> CInt {
    var done = 0
    while done < count {
      // SAFETY: the rest of the caller's `count` bytes, for reading.
      let result = unsafe pwrite(descriptor, bytes + done, count - done, off_t(offset) + off_t(done))
      if result < 0 {
        if errno == EINTR { continue }
        return errno
      }
      done += result
    }
    return 0
  }

  /// Begins to write to the disk what the page cache has of the range, and may wait for room in the disk's queue. Whether it got there
  /// is known after `flush` only.
  func startWriteBack(_ range: Range<UInt64>) {
    _ = vmfence_start_write_back(descriptor, Int64(range.lowerBound), Int64(range.count))
  }

  func flush() -> CInt { fdatasync(descriptor) == 0 ? 0 : errno }

  /// Gives the space back. Advice: a disk that cannot is no error, and then the range keeps what it had.
  func discard(_ offset: UInt64, _ count: UInt64) -> CInt {
    if vmfence_punch_hole(descriptor, Int64(offset), Int64(count)) == 0 { return 0 }
    if isDevice, vmfence_device_discard(descriptor, offset, count) == 0 { return 0 }
    return Self.isUnsupported(errno) ? 0 : errno
  }

  /// Makes the range read as zeroes.
  ///
  /// - `mayPunch`: its space may be given back.
  /// - `isFast`: `EOPNOTSUPP` rather than writing as many zeroes.
  func writeZeroes(_ offset: UInt64, _ count: UInt64, mayPunch: Bool, isFast: Bool) -> CInt {
    if mayPunch {
      if vmfence_punch_hole(descriptor, Int64(offset), Int64(count)) == 0 { return 0 }
      if !Self.isUnsupported(errno) { return errno }
    }
    // A device that cannot zero a range by itself has the kernel write zeroes here: that is not fast.
    if !(isFast && isDevice) {
      if vmfence_zero_range(descriptor, Int64(offset), Int64(count)) == 0 { return 0 }
      if !Self.isUnsupported(errno) { return errno }
    }
    if isFast { return EOPNOTSUPP }
    let zeroes = [UInt8](repeating: 0, count: Int(min(count, 256 << 10)))
    var done: UInt64 = 0
    while done < count {
      let part = Int(min(count - done, UInt64(zeroes.count)))
      // SAFETY: `part` is not more than the array has.
      let error = unsafe zeroes.withUnsafeBytes { bytes in
        unsafe bytes.baseAddress.map { unsafe writeAll($0, part, at: offset + done) } ?? 0
      }
      guard error == 0 else { return error }
      done += UInt64(part)
    }
    return 0
  }

  /// Ranges that are not aligned to a device's blocks are EINVAL there.
  private static func isUnsupported(_ error: CInt) -> Bool { error == EOPNOTSUPP || error == EINVAL || error == ENOSYS }

  /// Which parts of a range have no space, and so read as zeroes; at most `limit` extents, from the beginning on.
  func extents(_ offset: UInt64, _ count: UInt32, limit: Int) -> [(length: UInt32, isHole: Bool)] {
    guard !isDevice else { return [(count, false)] }
    let end = Int64(offset) + Int64(count)
    var position = Int64(offset)
    var result: [(length: UInt32, isHole: Bool)] = []
    while position < end, result.count < limit {
      let data = vmfence_seek_data(descriptor, position)
      // ENXIO: nothing but a hole up to the end. Any other error: then it counts as data.
      let isHole = data < 0 ? errno == ENXIO : data > position
      var next = isHole ? (data < 0 ? end : data) : vmfence_seek_hole(descriptor, position)
      if next <= position || next > end { next = end }
      result.append((UInt32(next - position), isHole))
      position = next
    }
    return result
  }

  /// Asks the kernel to read the range before it is needed.
  func readAhead(_ offset: UInt64, _ count: UInt32) -> CInt {
    vmfence_read_ahead(descriptor, Int64(offset), Int64(count))
  }
}
