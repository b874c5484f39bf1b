import VMFenceCore
import VMFenceIntegrity

// A disk with a partition table, or a QCOW2 image, as its bytes are. What is checked besides "no trap": partitions lie on
// the disk and are no more than the limit, and reading what an image offers ends.

func fuzzPartitions(_ input: RawSpan) {
  let file = MemoryDisk(input.copiedBytes())
  look(file)
  if let mended = withRightChecksums(input.copiedBytes()) { look(MemoryDisk(mended)) }
  if Qcow2Image.isQcow2(file), let image = try? Qcow2Image(file) {
    var buffer = [UInt8](repeating: 0, count: 4096)
    for offset in [0, 4096, image.byteCount / 2, image.byteCount &- 4096] {
      try? image.read(at: offset, into: &buffer)
    }
    look(image)
  }
}

/// The same disk with the checksums of its first GUID partition table made right, so that what the table says is looked at; nil when it has none.
private func withRightChecksums(_ disk: [UInt8]) -> [UInt8]? {
  guard disk.count >= 1024, disk[512..<520].elementsEqual("EFI PART".utf8) else { return nil }
  var disk = disk
  func number(_ count: Int, at offset: Int) -> UInt64 {
    (0..<count).reduce(0) { $0 | UInt64(disk[offset + $1]) << UInt64(8 * $1) }
  }
  func put(_ value: UInt32, at offset: Int) {
    for index in 0..<4 { disk[offset + index] = UInt8(truncatingIfNeeded: value >> UInt32(8 * index)) }
  }
  let (size, table) = (number(4, at: 524), number(8, at: 584))
  let bytes = number(4, at: 592) * number(4, at: 596)
  guard 92...512 ~= size, table < UInt64(disk.count), bytes <= UInt64(disk.count),
    table * 512 + bytes <= UInt64(disk.count)
  else { return nil }
  put(crc(disk[Int(table * 512)..<Int(table * 512 + bytes)]), at: 600)
  put(0, at: 528)
  put(crc(disk[512..<512 + Int(size)]), at: 528)
  return disk
}

/// CRC-32 of ISO 3309, bit by bit.
private func crc(_ bytes: ArraySlice<UInt8>) -> UInt32 {
  ~bytes.reduce(UInt32.max) { state, byte in
    (0..<8).reduce(state ^ UInt32(byte)) { value, _ in value >> 1 ^ (value & 1 == 1 ? 0xEDB8_8320 : 0) }
  }
}

private func look(_ disk: any DiskReader) {
  guard let layout = try? DiskLayout(disk) else { return }
  precondition(layout.partitions.count <= DiskLayout.partitionLimit, "more partitions than are taken")
  for partition in layout.partitions {
    precondition(
      partition.start <= disk.byteCount && partition.byteCount <= disk.byteCount - partition.start,
      "a partition outside of the disk")
  }
  for part in layout.parts.prefix(4) { _ = try? ExtFileSystem(part.reader) }
}
