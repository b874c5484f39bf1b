import FuzzSupport
import VMFenceCore
import VMFenceIntegrity

// A disk with a partition table, or a QCOW2 image, as its bytes are. What is checked besides "no trap": partitions lie on
// the disk and are no more than the limit, and reading what an image offers ends.

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzPartitions(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
  unsafe withFuzzInput(start, count) { input in
    let file = MemoryDisk(input.copiedBytes())
    look(file)
    if Qcow2Image.isQcow2(file), let image = try? Qcow2Image(file) {
      var buffer = [UInt8](repeating: 0, count: 4096)
      for offset in [0, 4096, image.byteCount / 2, image.byteCount &- 4096] {
        try? image.read(at: offset, into: &buffer)
      }
      look(image)
    }
  }
  return 0
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
