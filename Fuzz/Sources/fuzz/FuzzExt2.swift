import VMFenceCore
import VMFenceIntegrity

// A disk image, read as ext2 and then watched while blocks of it are written over one another. The last 64 bytes of the input
// say which: eight bytes a request. What is checked besides "no trap": walks end within their limits and extents lie on the
// disk.

private let policy: ProtectionPolicy = {
  guard
    let policy = try? ProtectionPolicy([
      .init("/**", action: .rollback, attributes: [.standard, .content]), .init("/etc/*", action: .denyData),
    ])
  else {
    fatalError("no policy")
  }
  return policy
}()

private let limits = WalkLimits(entries: 512, depth: 8, blocks: 2_048, blockMapBytes: 64 << 10, damages: 16)

func fuzzExt2(_ input: RawSpan) {
  guard input.byteCount > 64 else { return }
  let size = input.byteCount - 64
  let image = Array(input.copiedBytes()[..<size])
  let disk = MemoryDisk(image)
  walk(disk)
  watch(disk, image, script: input.extracting(size..<input.byteCount))
}

private func walk(_ disk: MemoryDisk) {
  guard let fileSystem = try? ExtFileSystem(disk) else { return }
  var listed = 0
  var blocks = limits.blocks
  var damage = fileSystem.walk(limits: limits) { _ in listed += 1 }
  precondition(listed <= limits.entries + 1, "a walk beyond its limit")
  _ = fileSystem.walk(limits: limits) { listing in
    for extent in fileSystem.extents(of: listing, blocks: &blocks, damage: &damage) {
      precondition(
        extent.diskOffset <= disk.byteCount && extent.length <= disk.byteCount - extent.diskOffset,
        "an extent outside of the disk")
    }
  }
}

private func watch(_ disk: MemoryDisk, _ image: [UInt8], script: RawSpan) {
  let incarnation = Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1))
  var monitor = IntegrityMonitor(
    disk,
    configuration: .init(
      incarnation: incarnation, disk: "xvda", policy: policy, limits: limits, resyncInterval: .zero, eventLimit: 64,
      pendingWriteLimit: 16, keepLimit: 1 << 16, contentLimit: 4096, hashKey: (1, 2)), at: .zero)
  let blocks = UInt64(image.count / 512)
  for index in 0..<8 where blocks > 0 {
    let word = script.u64(index * 8)
    let operation = BlockRequest.Operation(rawValue: UInt8(word >> 60) % 5) ?? .write
    let offset = (word & 0xFFFF) % blocks * 512
    let from = Int((word >> 16 & 0xFFFF) % blocks * 512)
    let length = Int((word >> 32 & 0x7) + 1) * 512
    var data = operation == .write ? Array(image[from..<Swift.min(image.count, from + length)]) : []
    // A few bytes are changed, so that what is written is not only what was there.
    if !data.isEmpty { data[Int(word >> 40 & 0xFF) % data.count] ^= UInt8(truncatingIfNeeded: word >> 48) }
    let request = BlockRequest(
      sequence: UInt64(index), timestamp: Timestamp(nanoseconds: Int64(index) * 5_000_000), operation: operation,
      offset: offset, length: operation == .write ? UInt64(data.count) : UInt64(length))
    let verdict = data.withRawSpan { monitor.observe(request, data: $0) }
    if verdict == .allow, operation == .write { disk.write(data, at: offset) }
    if index % 3 == 2 {
      monitor.advance(to: Timestamp(nanoseconds: Int64(index) * 5_000_000 + 2_000_000_000))
      _ = monitor.drainEvents()
      while let contents = monitor.nextContents() {
        precondition(contents.bytes.count <= 4096, "more contents than asked for")
      }
      _ = monitor.drainKeptContents()
    }
  }
  monitor.observeGap(at: Timestamp(nanoseconds: 60_000_000), reason: "fuzzing")
  monitor.finish(at: Timestamp(nanoseconds: 10_000_000_000))
  precondition(monitor.drainEvents().count <= 64 + 1, "more events than fit")
}
