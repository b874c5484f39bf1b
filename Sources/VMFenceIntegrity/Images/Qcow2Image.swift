internal import Synchronization
internal import VMFenceCore

/// A QCOW2 image, read: the disk that a guest sees in it. Versions 2 and 3 without a backing file, encryption, an external
/// data file, extended tables or compressed clusters; those are refused by name.
///
/// Nothing in the image is trusted: tables are bounded, each address is checked against the file. Name the format where it
/// is known: a guest that owns a raw disk can write the beginning of a QCOW2 image on it.
///
/// Source: `docs/interop/qcow2.txt` of QEMU. Safe to call from any thread.
public final class Qcow2Image: DiskReader {
  private let file: any DiskReader
  public let byteCount: UInt64
  private let clusterBits: UInt64
  private let version: UInt32
  private let firstTable: [UInt64]
  private let cache = Mutex(TableCache())

  /// Second-level tables that were used last.
  private struct TableCache {
    var tables: [(address: UInt64, entries: [UInt8])] = []
  }

  private static let tableLimit = 32 << 20
  private static let cachedTables = 16

  /// Whether a file begins as QCOW2 images do.
  public static func isQcow2(_ file: any DiskReader) -> Bool {
    var magic = [UInt8](repeating: 0, count: 4)
    return (try? file.read(at: 0, into: &magic)) != nil && magic == [0x51, 0x46, 0x49, 0xFB]
  }

  /// - Throws: `unsupported`, by the feature's name; `damaged`, `truncated`, `tooLarge`, `inputOutput`.
  public init(_ file: any DiskReader) throws(IntegrityError) {
    self.file = file
    var header = [UInt8](repeating: 0, count: 112)
    guard file.byteCount >= 112 else { throw Self.damaged("it ends inside its header") }
    try file.read(at: 0, into: &header)
    let fields = header.withRawSpan { bytes in
      (
        magic: bytes.u32(0), version: bytes.u32(4), backing: bytes.u64(8), clusterBits: bytes.u32(20),
        size: bytes.u64(24), encryption: bytes.u32(32), tableSize: bytes.u32(36), table: bytes.u64(40),
        features: bytes.u32(4) == 3 ? bytes.u64(72) : 0
      )
    }
    guard fields.magic == 0x5146_49FB else { throw Self.damaged("it does not begin as a QCOW2 image") }
    guard fields.version == 2 || fields.version == 3 else { throw Self.unsupported("version \(fields.version)") }
    guard fields.backing == 0 else { throw Self.unsupported("a backing file") }
    guard fields.encryption == 0 else { throw Self.unsupported("encryption") }
    guard fields.features & 0x4 == 0 else { throw Self.unsupported("an external data file") }
    guard fields.features & 0x10 == 0 else { throw Self.unsupported("extended tables (subclusters)") }
    guard fields.features & ~0x1F == 0 else {
      throw Self.unsupported("feature bits 0x\(String(fields.features & ~0x1F, radix: 16))")
    }
    guard 9...21 ~= fields.clusterBits else { throw Self.damaged("clusters of 2^\(fields.clusterBits) bytes") }
    guard fields.size <= 1 << 60 else { throw Self.damaged("a disk of \(fields.size) bytes") }
    version = fields.version
    clusterBits = UInt64(fields.clusterBits)
    byteCount = fields.size
    let perEntry = UInt64(1) << (2 * clusterBits - 3)
    let needed = (fields.size + perEntry - 1) / perEntry
    guard needed * 8 <= UInt64(Self.tableLimit) else {
      throw IntegrityError(
        .tooLarge, "its first table has \(needed) entries", remedy: "use larger clusters: qemu-img convert")
    }
    guard UInt64(fields.tableSize) >= needed else {
      throw Self.damaged("a first table of \(fields.tableSize) entries for \(needed)")
    }
    var table = [UInt8](repeating: 0, count: Int(needed) * 8)
    try file.checkBounds(at: fields.table, count: table.count)
    if !table.isEmpty { try file.read(at: fields.table, into: &table) }
    firstTable = table.withRawSpan { bytes in
      (0..<Int(needed)).map { bytes.u64($0 * 8) & 0x00FF_FFFF_FFFF_FE00 }
    }
  }

  public func read(at offset: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    try checkBounds(at: offset, count: buffer.count)
    let size = UInt64(1) << clusterBits
    var done = 0
    while done < buffer.count {
      let position = offset + UInt64(done)
      let inCluster = position & (size - 1)
      let count = min(buffer.count - done, Int(size - inCluster))
      if let address = try address(of: position) {
        var part = [UInt8](repeating: 0, count: count)
        try file.read(at: address + inCluster, into: &part)
        buffer.replaceSubrange(done..<done + count, with: part)
      } else {
        for index in done..<done + count { buffer[index] = 0 }
      }
      done += count
    }
  }

  /// Where the cluster with a byte lies in the file; nil when it reads as zeroes.
  private func address(of position: UInt64) throws(IntegrityError) -> UInt64? {
    let table = firstTable[Int(position >> (2 * clusterBits - 3))]
    guard table != 0 else { return nil }
    let index = Int(position >> clusterBits & (1 << (clusterBits - 3) - 1))
    let entry = try self.entry(index, ofTable: table)
    if entry & 1 << 62 != 0 { throw Self.unsupported("compressed clusters") }
    if version == 3, entry & 1 != 0 { return nil }
    let address = entry & 0x00FF_FFFF_FFFF_FE00
    guard address != 0 else { return nil }
    guard address & (1 << clusterBits - 1) == 0, address < file.byteCount else {
      throw Self.damaged("a cluster at byte \(address) of a file of \(file.byteCount)")
    }
    return address
  }

  private func entry(_ index: Int, ofTable address: UInt64) throws(IntegrityError) -> UInt64 {
    let known: UInt64? = cache.withLock { cache in
      guard let found = cache.tables.first(where: { $0.address == address }) else { return nil }
      return found.entries.withRawSpan { $0.u64(index * 8) }
    }
    if let known { return known }
    var entries = [UInt8](repeating: 0, count: 1 << Int(clusterBits))
    try file.read(at: address, into: &entries)
    let result = entries.withRawSpan { $0.u64(index * 8) }
    let loaded = entries
    cache.withLock { cache in
      if cache.tables.count >= Self.cachedTables { cache.tables.removeFirst() }
      cache.tables.append((address, loaded))
    }
    return result
  }

  private static func damaged(_ what: String) -> IntegrityError {
    IntegrityError(.damaged, "damaged QCOW2 image: \(what)", remedy: "check it with qemu-img check")
  }

  private static func unsupported(_ what: String) -> IntegrityError {
    IntegrityError(
      .unsupported, "QCOW2 image with what is not read: \(what)", remedy: "convert it: qemu-img convert -O raw")
  }
}
