import Foundation
import Testing
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// Judged by what the kernel and debugfs say of disk images: the unpacked suite `conformance/disk`, named by the
/// environment variable VMFENCE_DISK_SUITE (the folder with `*.img`, `truth/`, `*.jsonl`).
enum DiskSuite {
  static let folder = ProcessInfo.processInfo.environment["VMFENCE_DISK_SUITE"]

  static let images = files(suffix: ".img", prefix: "ext2").filter { path in
    FileManager.default.fileExists(atPath: truthPath(of: path))
  }
  static let traces = files(suffix: ".jsonl", prefix: "ext2")

  static func files(suffix: String, prefix: String = "") -> [String] {
    guard let folder, let names = try? FileManager.default.contentsOfDirectory(atPath: folder) else { return [] }
    return names.sorted().filter { $0.hasSuffix(suffix) && $0.hasPrefix(prefix) }.map { folder + "/" + $0 }
  }

  static func truthPath(of image: String) -> String {
    let name = (image as NSString).lastPathComponent.replacingOccurrences(of: ".img", with: ".json")
    return (folder ?? "") + "/truth/" + name
  }

  struct Truth: Decodable {
    struct File: Decodable {
      var path: String
      var pathHex: String?
      var ino: UInt32
      var mode: String
      var uid: UInt32
      var gid: UInt32
      var nlink: UInt16
      var size: UInt64
      var mtimeNs: Int64
      var blocks512: UInt32
      var fiemap: [[UInt64]]?
      var sha256: String?
      var link: String?
    }
    var files: [File]
  }

  static func truth(_ path: String) throws -> Truth {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    return try decoder.decode(Truth.self, from: Data(contentsOf: URL(fileURLWithPath: path)))
  }
}

@Suite struct ConformanceDiskTests {
  @Test func saysWhetherTheSuiteIsThere() {
    if DiskSuite.folder == nil {
      print("SKIPPED: the disk conformance suite was not run; set VMFENCE_DISK_SUITE to the folder with its images")
    } else {
      #expect(
        !DiskSuite.images.isEmpty && !DiskSuite.traces.isEmpty, "VMFENCE_DISK_SUITE names a folder without images")
    }
  }

  @Test(.enabled(if: DiskSuite.folder != nil), arguments: DiskSuite.images)
  func viewOfAnImageEqualsTheKernels(image: String) throws {
    try compare(FileDiskReader(path: image), with: DiskSuite.truth(DiskSuite.truthPath(of: image)))
  }

  @Test(.enabled(if: DiskSuite.folder != nil), arguments: DiskSuite.traces)
  func viewAfterARecordedStreamEqualsTheKernels(trace: String) throws {
    let stem = String(trace.dropLast(6))
    let base = try #require(stem.lastIndex(of: "-").map { String(stem[..<$0]) }) + ".img"
    let overlay = ImageOverlay(try FileDiskReader(path: base))
    var disk = OverlaidDisk(AllowAll(), overlay: overlay)
    var source = try RecordedBlockSource.open(path: trace)
    let outcome = try source.deliver(limit: .max, until: nil, to: &disk)
    #expect(outcome.isAtEnd && outcome.requests > 50)
    try compare(overlay, with: DiskSuite.truth(stem + ".truth.json"))
  }

  struct AllowAll: BlockObserver, ~Copyable {
    mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict { .allow }
    mutating func observeGap(at time: Timestamp, reason: String) { Issue.record("a gap: \(reason)") }
  }

  private func compare(_ reader: any DiskReader, with truth: DiskSuite.Truth) throws {
    let fileSystem = try ExtFileSystem(reader)
    var seen: [String: ExtListing] = [:]
    let damage = fileSystem.walk { seen[hex($0.path)] = $0 }
    #expect(damage.count == 0, "\(damage.kept)")
    #expect(seen.count == truth.files.count)
    for file in truth.files {
      guard let listing = seen[file.pathHex ?? hex(Array(file.path.utf8))] else {
        Issue.record("\(file.path) is missing")
        continue
      }
      let inode = listing.inode
      #expect(listing.number == file.ino, "\(file.path)")
      #expect(String(inode.mode, radix: 8) == file.mode, "\(file.path)")
      #expect(inode.userID == file.uid && inode.groupID == file.gid, "\(file.path)")
      #expect(inode.linkCount == file.nlink && inode.size == file.size, "\(file.path)")
      #expect(inode.modificationTime.nanoseconds == file.mtimeNs && inode.sectorCount == file.blocks512, "\(file.path)")
      if let target = inode.inlineTarget(blockSize: fileSystem.blockSize) {
        #expect(String(decoding: target, as: UTF8.self) == file.link, "\(file.path)")
      }
      if inode.kind == .regular { try compareContents(listing, file, fileSystem) }
    }
  }

  private func compareContents(
    _ listing: ExtListing, _ file: DiskSuite.Truth.File, _ fileSystem: ExtFileSystem
  ) throws {
    var damage = DamageLog()
    var budget = 1_000_000
    let extents = fileSystem.extents(of: listing, blocks: &budget, damage: &damage)
    #expect(damage.count == 0, "\(file.path) \(damage.kept)")
    #expect(
      normal(extents.map { [$0.fileOffset, $0.diskOffset, $0.length] }) == normal(file.fiemap ?? []), "\(file.path)")
    guard let expected = file.sha256 else { return }
    var hash = SHA256()
    var position: UInt64 = 0
    let size = listing.inode.size
    func zeroes(until end: UInt64) {
      while position < end {
        let count = min(end - position, 1 << 20)
        hash.update(ArraySlice(repeating: 0, count: Int(count)))
        position += count
      }
    }
    for extent in extents where extent.fileOffset < size {
      zeroes(until: extent.fileOffset)
      var buffer = [UInt8](repeating: 0, count: Int(extent.length))
      try fileSystem.reader.read(at: extent.diskOffset, into: &buffer)
      let count = min(extent.length, size - extent.fileOffset)
      hash.update(buffer[..<Int(count)])
      position += count
    }
    zeroes(until: size)
    #expect(hash.finish() == expected, "\(file.path)")
  }

  /// Extents with neighbours joined: the kernel splits them at indirect blocks, and at its own will.
  private func normal(_ extents: [[UInt64]]) -> [[UInt64]] {
    var result: [[UInt64]] = []
    for extent in extents {
      if let last = result.last, last[0] + last[2] == extent[0], last[1] + last[2] == extent[1] {
        result[result.count - 1][2] += extent[2]
      } else {
        result.append(Array(extent[..<3]))
      }
    }
    return result
  }

  private func hex(_ bytes: [UInt8]) -> String { bytes.map { UInt8($0).hexadecimal(width: 2) }.joined() }
}

@Suite struct ConformanceMonitorTests {
  static func monitor(_ reader: any DiskReader, _ patterns: [String], action: ProtectionPolicy.Action = .alert) throws
    -> IntegrityMonitor
  {
    IntegrityMonitor(
      reader,
      configuration: .init(
        incarnation: Incarnation(uuid: DomainUUID(high: 0, low: 1), domainID: DomainID(1)), disk: "xvda",
        policy: try ProtectionPolicy(patterns.map { .init($0, action: action) })), at: .zero)
  }

  @Test(.enabled(if: DiskSuite.folder != nil), arguments: DiskSuite.traces)
  func whatIsProtectedAfterARecordedStreamIsWhatTheKernelSays(trace: String) throws {
    let stem = String(trace.dropLast(6))
    let base = try #require(stem.lastIndex(of: "-").map { String(stem[..<$0]) }) + ".img"
    let overlay = ImageOverlay(try FileDiskReader(path: base))
    var disk = OverlaidDisk(try Self.monitor(overlay, ["/", "/**"]), overlay: overlay)
    var source = try RecordedBlockSource.open(path: trace)
    let isLoud = ProcessInfo.processInfo.environment["VMFENCE_PRINT_EVENTS"] != nil
    let operations = try #require(try? String(contentsOfFile: trace, encoding: .utf8)).split(separator: "\n")
    for line in operations {
      if line.contains("\"mark\"") {
        if isLoud, line.contains("begin") || line.contains("finish") { print(line.dropFirst(30)) }
        continue
      }
      _ = try source.deliver(limit: 1, until: nil, to: &disk)
      if isLoud { for event in disk.observer.drainEvents() { print("    ", Self.text(event)) } }
    }
    _ = try source.deliver(limit: 1, until: nil, to: &disk)
    disk.observer.finish(at: .zero)
    if isLoud { for event in disk.observer.drainEvents() { print("    ", Self.text(event)) } }
    #expect(disk.observer.blindness == nil && disk.observer.statistics.damages == 0)
    #expect(disk.observer.statistics.lostEvents == 0 || !isLoud)
    let truth = try DiskSuite.truth(stem + ".truth.json").files
    let files = disk.observer.protectedFiles
    let expected = truth.map { "\($0.ino) \($0.mode) \($0.size) \($0.nlink) \($0.mtimeNs)" }.sorted()
    let found = files.map { file in
      let inode = file.inode
      let mode = String(inode.mode, radix: 8)
      return "\(file.number) \(mode) \(inode.size) \(inode.linkCount) \(inode.modificationTime.nanoseconds)"
    }
    #expect(found.sorted() == expected)
    let fresh = try FileSystemView(overlay, policy: try ProtectionPolicy([.init("/"), .init("/**")]))
    #expect(fresh.protectedFiles == files)
    #expect(fresh.tableSize.entries == disk.observer.viewTableEntries)
  }

  static func text(_ event: FileEvent) -> String {
    var text = "\(event.sequence) \(event.operation) \(String(decoding: event.path, as: UTF8.self)) ino \(event.inode)"
    if let old = event.oldPath { text += " from \(String(decoding: old, as: UTF8.self))" }
    if let offset = event.offset, let length = event.length { text += " \(offset)+\(length)" }
    for change in event.changes { text += " \(change.attribute): \(change.old) -> \(change.new)" }
    return text + (event.verdict == .deny ? " DENIED" : "")
  }

  /// Damaged and hostile disks: no trap, no endless work, bounded memory, and the guest's requests go on being
  /// answered.
  @Test(.enabled(if: DiskSuite.folder != nil))
  func hostileImagesAreSurvivedInTimeAndMemory() throws {
    let names = DiskSuite.files(suffix: ".img").filter { path in
      !FileManager.default.fileExists(atPath: DiskSuite.truthPath(of: path)) && !path.contains("/disk-")
    }
    #expect(names.count == 82)
    var slowest: (Duration, String) = (.zero, "")
    for name in names {
      let clock = ContinuousClock()
      var summary = ""
      let start = clock.now
      do {
        let reader = try FileDiskReader(path: name)
        let overlay = ImageOverlay(reader)
        var disk = OverlaidDisk(try Self.monitor(overlay, ["/", "/**"]), overlay: overlay)
        let events = disk.observer.drainEvents()
        summary = disk.observer.blindness?.message ?? events.prefix(3).map(Self.text).joined(separator: "\n      ")
        // The guest writes back the beginning of its disk, its metadata and some data.
        var sequence: UInt64 = 0
        var buffer = [UInt8](repeating: 0, count: 4096)
        for offset in stride(from: 0, to: min(reader.byteCount, 1 << 18) / 4096 * 4096, by: 4096) {
          try reader.read(at: offset, into: &buffer)
          let request = BlockRequest(
            sequence: sequence, timestamp: .zero, operation: .write, offset: offset, length: 4096)
          sequence += 1
          let verdict = buffer.withRawSpan { disk.observe(request, data: $0) }
          #expect(verdict == .allow)
        }
        disk.observer.finish(at: .zero)
        if let fileSystem = try? ExtFileSystem(reader) { _ = fileSystem.walk { _ in } }
      }
      let elapsed = clock.now - start
      if elapsed > slowest.0 { slowest = (elapsed, name) }
      #expect(elapsed < .seconds(1), "\(name)")
      print((name as NSString).lastPathComponent, elapsed, "\n     ", summary)
    }
    let status = try String(contentsOfFile: "/proc/self/status", encoding: .utf8)
    print("slowest", slowest, status.split(separator: "\n").first { $0.hasPrefix("VmHWM") } ?? "")
  }
}
