import VMFenceCore
import VMFenceIntegrity

// The bytes of a journal: as a guest left them, to be read at the start; and written block by block under the eyes of a
// monitor that refuses changes of metadata. What is checked besides "no trap": both readings end, and what the monitor
// knows at the end is what a fresh reading finds, unless the journal is damaged.

private let blockSize = 1024
private let journalStart = 100
private let journalLength = 32

private let policy: ProtectionPolicy = {
  guard let policy = try? ProtectionPolicy([.init("/**"), .init("/etc/passwd", action: .denyMetadata)]) else {
    fatalError("no policy")
  }
  return policy
}()

/// An ext3 file system of 256 KiB with /etc/passwd and an empty journal, blocks 100 to 131.
private let base: [UInt8] = {
  var disk = [UInt8](repeating: 0, count: 256 * blockSize)
  func put16(_ value: Int, _ offset: Int) {
    disk[offset] = UInt8(truncatingIfNeeded: value)
    disk[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
  }
  func put32(_ value: Int, _ offset: Int) {
    put16(value & 0xFFFF, offset)
    put16(value >> 16, offset + 2)
  }
  func inode(_ number: Int, mode: Int, size: Int, links: Int, blocks: [Int]) {
    let offset = 5 * blockSize + (number - 1) * 128
    put16(mode, offset)
    put32(size, offset + 4)
    put16(links, offset + 26)
    put32(blocks.count * 2, offset + 28)
    for (index, block) in blocks.enumerated() { put32(block, offset + 40 + index * 4) }
  }
  func names(_ block: Int, _ names: [(String, Int)]) {
    var offset = block * blockSize
    for (index, (name, inode)) in names.enumerated() {
      let end = (block + 1) * blockSize
      let length = index == names.count - 1 ? end - offset : (8 + name.utf8.count + 3) & ~3
      put32(inode, offset)
      put16(length, offset + 4)
      put16(name.utf8.count, offset + 6)
      for (place, byte) in name.utf8.enumerated() { disk[offset + 8 + place] = byte }
      offset += length
    }
  }
  for (offset, value) in [(0, 64), (4, 256), (20, 1), (32, 8192), (36, 8192), (40, 64), (76, 1), (84, 11)] {
    put32(value, 1024 + offset)
  }
  put16(0xEF53, 1024 + 56)
  put16(128, 1024 + 88)
  put32(0x4, 1024 + 92)
  put32(0x2, 1024 + 96)
  put32(8, 1024 + 224)
  for (offset, value) in [(0, 3), (4, 4), (8, 5)] { put32(value, 2048 + offset) }
  inode(2, mode: 0o40755, size: 1024, links: 3, blocks: [13])
  inode(12, mode: 0o40755, size: 1024, links: 2, blocks: [14])
  inode(13, mode: 0o100644, size: 100, links: 1, blocks: [20])
  inode(8, mode: 0o100600, size: journalLength * blockSize, links: 1, blocks: (0..<12).map { journalStart + $0 } + [99])
  for index in 0..<journalLength - 12 { put32(journalStart + 12 + index, 99 * blockSize + index * 4) }
  names(13, [(".", 2), ("..", 2), ("etc", 12)])
  names(14, [(".", 12), ("..", 2), ("passwd", 13)])
  let superblock = [0xC03B_3998, 4, 0, 1024, journalLength, 1, 5, 0, 0, 0, 1]
  for (index, value) in superblock.enumerated() {
    put32(Int(UInt32(value).byteSwapped), journalStart * blockSize + index * 4)
  }
  return disk
}()

func fuzzJournal(_ input: RawSpan) {
  let bytes = Array(input.copiedBytes().prefix(journalLength * blockSize))
  readAtStart(bytes)
  follow(bytes)
}

private func readAtStart(_ journal: [UInt8]) {
  var image = base
  image[1024 + 96] |= 0x4
  image.replaceSubrange(journalStart * blockSize..<journalStart * blockSize + journal.count, with: journal)
  guard let fileSystem = try? ExtFileSystem(MemoryDisk(image)) else { return }
  var listed = 0
  _ = fileSystem.walk(limits: WalkLimits(entries: 256, depth: 8, blocks: 2048)) { _ in listed += 1 }
  precondition(listed <= 257, "a walk beyond its limit")
}

private func follow(_ journal: [UInt8]) {
  let disk = MemoryDisk(base)
  let incarnation = Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1))
  var monitor = IntegrityMonitor(
    disk,
    configuration: .init(incarnation: incarnation, disk: "xvda", policy: policy, resyncInterval: .zero, eventLimit: 64),
    at: .zero)
  let blocks = journal.count / blockSize
  for index in 0..<blocks {
    let data = Array(journal[index * blockSize..<(index + 1) * blockSize])
    let offset = UInt64((journalStart + index) * blockSize)
    let request = BlockRequest(
      sequence: UInt64(index), timestamp: Timestamp(nanoseconds: Int64(index) * 1_000_000), operation: .write,
      offset: offset, length: UInt64(data.count))
    let verdict = data.withRawSpan { monitor.observe(request, data: $0) }
    if verdict == .allow { disk.write(data, at: offset) }
  }
  monitor.finish(at: Timestamp(nanoseconds: 10_000_000_000))
  precondition(monitor.drainEvents().count <= 64 + 1, "more events than fit")
}
