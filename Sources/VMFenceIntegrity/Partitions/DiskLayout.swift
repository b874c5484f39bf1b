internal import VMFenceCore

/// A partition of a disk.
public struct DiskPartition: Hashable, Sendable {
  /// As the guest's kernel counts them: 1 to 4 in an MBR, 5 and up in its extended partition, the entry's place in a GPT.
  public var number: Int
  /// In bytes.
  public var start: UInt64
  public var byteCount: UInt64
  /// `0x83`, or a GUID.
  public var type: String
  /// Of a GPT entry; what it names is up to the guest.
  public var name: String
}

/// How a disk is divided: not at all, by an MBR with extended partitions, or by a GPT (the backup when the first is
/// damaged). Every count and chain in the tables is bounded; what cannot be is reported and left out.
///
/// Source: UEFI specification 2.10, chapter 5; `block/partitions/msdos.c` of Linux for extended partitions.
public struct DiskLayout: Sendable {
  public enum Kind: String, Sendable, Hashable {
    /// A file system, or something unknown, from the first byte on.
    case none
    case mbr
    case gpt
  }

  public private(set) var kind = Kind.none
  public private(set) var partitions: [DiskPartition] = []
  public private(set) var damage = DamageLog(limit: 32)
  private let reader: any DiskReader

  /// In bytes; what the tables count in.
  private static let sectorSize: UInt64 = 512
  public static let partitionLimit = 128
  private static let tableLimit: UInt64 = 1 << 20

  /// - Throws: `inputOutput`. A damaged table is no error: what can be read of it is.
  public init(_ reader: any DiskReader) throws(IntegrityError) {
    self.reader = reader
    guard reader.byteCount >= 2 * Self.sectorSize else { return }
    var sector = [UInt8](repeating: 0, count: 512)
    try reader.read(at: 0, into: &sector)
    let hasSignature = sector[510] == 0x55 && sector[511] == 0xAA
    let entries = hasSignature ? Self.entries(sector) : []
    // As the guest's kernel: a table that can be one is one, whatever lies behind it. A file system on the whole disk may have a boot sector
    // before it, which ends as a table does.
    if entries.contains(where: { $0.type == 0xEE }) {
      readGPT()
      if !partitions.isEmpty { return }
    }
    if !isSound(entries), hasFileSystem {
      (kind, partitions, damage) = (.none, [], DamageLog(limit: 32))
      return
    }
    if kind == .gpt || entries.contains(where: { $0.type == 0xEE }) { return }
    if entries.contains(where: { $0.type != 0 && $0.count > 0 }) {
      kind = .mbr
      readMBR(entries)
    } else if !hasSignature {
      readGPT()
    }
  }

  /// A partition as a disk of its own.
  public struct Part: Sendable {
    /// Nil for a disk that is not divided.
    public var partition: DiskPartition?
    public var reader: any DiskReader
  }

  /// All partitions; of a disk that is not divided, the disk.
  public var parts: [Part] {
    if kind == .none { return [Part(partition: nil, reader: reader)] }
    var result: [Part] = []
    for partition in partitions {
      if let part = try? PartitionReader(reader, start: partition.start, byteCount: partition.byteCount) {
        result.append(Part(partition: partition, reader: part))
      }
    }
    return result
  }

  /// Whether a file system begins with the disk. Its magic number alone says little: who may write behind a table can put it there.
  private var hasFileSystem: Bool { (try? ExtFileSystem.readSuperblock(reader, patch: nil)) != nil }

  // MARK: MBR

  private struct Entry {
    /// 0, or 0x80 for the one that is booted from.
    var status: UInt8
    var type: UInt8
    /// In sectors.
    var start: UInt64
    var count: UInt64
  }

  private static func entries(_ sector: [UInt8]) -> [Entry] {
    sector.withRawSpan { bytes in
      (0..<4).map { index in
        let offset = 446 + index * 16
        return Entry(
          status: bytes.u8(offset), type: bytes.u8(offset + 4), start: UInt64(bytes.u32le(offset + 8)),
          count: UInt64(bytes.u32le(offset + 12)))
      }
    }
  }

  /// Whether Linux takes them for a table (`msdos_partition`), and some partition lies on the disk.
  private func isSound(_ entries: [Entry]) -> Bool {
    let sectors = reader.byteCount / Self.sectorSize
    return entries.allSatisfy { $0.status & 0x7F == 0 }
      && entries.contains { entry in
        entry.type != 0 && entry.type != 0xEE && entry.count > 0 && entry.start > 0 && entry.start < sectors
          && entry.count <= sectors - entry.start
      }
  }

  private mutating func readMBR(_ entries: [Entry]) {
    for (index, entry) in entries.enumerated() where entry.type != 0 && entry.count > 0 {
      if [0x05, 0x0F, 0x85].contains(entry.type) {
        readExtended(entry)
      } else {
        add(index + 1, entry.start, entry.count, "0x" + entry.type.hexadecimal(width: 2))
      }
    }
  }

  /// A chain of sectors, each with one partition and the place of the next.
  private mutating func readExtended(_ extended: Entry) {
    var next: UInt64? = extended.start
    var seen: Set<UInt64> = []
    var number = 5
    var sector = [UInt8](repeating: 0, count: 512)
    while let current = next {
      next = nil
      guard seen.count < Self.partitionLimit else {
        return damage.report(inode: 0, "more than \(Self.partitionLimit) partitions in the extended partition")
      }
      guard seen.insert(current).inserted else {
        return damage.report(inode: 0, "the chain of the extended partition runs in a circle")
      }
      guard (try? reader.read(at: current * Self.sectorSize, into: &sector)) != nil, sector[510] == 0x55,
        sector[511] == 0xAA
      else { return damage.report(inode: 0, "a damaged link in the chain of the extended partition") }
      for entry in Self.entries(sector).prefix(2) where entry.type != 0 && entry.count > 0 {
        if [0x05, 0x0F, 0x85].contains(entry.type) {
          next = extended.start + entry.start
        } else {
          add(number, current + entry.start, entry.count, "0x" + entry.type.hexadecimal(width: 2))
          number += 1
        }
      }
    }
  }

  // MARK: GPT

  private mutating func readGPT() {
    let last = reader.byteCount / Self.sectorSize - 1
    for (index, place) in [1, last].enumerated() {
      var log = DamageLog(limit: 8)
      if let found = gpt(at: place, &log) {
        if index == 1 { damage.report(inode: 0, "the first partition table is damaged; the backup is used") }
        kind = .gpt
        for partition in found {
          add(partition.number, partition.start, partition.count, partition.type, partition.name)
        }
        return
      }
      damage.add(log)
    }
    // Neither is there: a disk without any table, or one whose tables are both damaged.
  }

  private struct TableEntry {
    var number: Int
    var start: UInt64
    var count: UInt64
    var type: String
    var name: String
  }

  private func gpt(at sector: UInt64, _ log: inout DamageLog) -> [TableEntry]? {
    var header = [UInt8](repeating: 0, count: 512)
    guard (try? reader.read(at: sector * Self.sectorSize, into: &header)) != nil,
      header.starts(with: Array("EFI PART".utf8))
    else { return nil }
    func bad(_ what: String) -> [TableEntry]? {
      log.report(inode: 0, "damaged partition table at sector \(sector): \(what)")
      return nil
    }
    let fields = header.withRawSpan {
      (
        size: Int($0.u32le(12)), checksum: $0.u32le(16), own: $0.u64le(24), table: $0.u64le(72),
        count: UInt64($0.u32le(80)), entrySize: UInt64($0.u32le(84)), tableChecksum: $0.u32le(88)
      )
    }
    guard 92...512 ~= fields.size else { return bad("a header of \(fields.size) bytes") }
    let hasRightChecksum = header.withRawSpan { bytes in
      var crc = CRC32()
      crc.update(bytes.extracting(0..<16))
      crc.update(zeroes: 4)
      crc.update(bytes.extracting(20..<fields.size))
      return crc.value == fields.checksum
    }
    guard fields.entrySize >= 128, fields.entrySize <= 4096, fields.entrySize & (fields.entrySize - 1) == 0 else {
      return bad("entries of \(fields.entrySize) bytes")
    }
    guard fields.count * fields.entrySize <= Self.tableLimit else { return bad("\(fields.count) entries") }
    guard hasRightChecksum, fields.own == sector else { return bad("a wrong checksum or place of the header") }
    guard fields.table < reader.byteCount / Self.sectorSize else { return bad("entries at sector \(fields.table)") }
    var table = [UInt8](repeating: 0, count: Int(fields.count * fields.entrySize))
    guard (try? reader.read(at: fields.table * Self.sectorSize, into: &table)) != nil else {
      return bad("entries that cannot be read")
    }
    return table.withRawSpan { bytes in
      var crc = CRC32()
      crc.update(bytes)
      guard crc.value == fields.tableChecksum else { return bad("a wrong checksum of the entries") }
      return (0..<Int(fields.count)).compactMap { Self.entry(bytes, Int(fields.entrySize), $0) }
    }
  }

  private static func entry(_ bytes: RawSpan, _ size: Int, _ index: Int) -> TableEntry? {
    let offset = index * size
    guard bytes.u64(offset) != 0 || bytes.u64(offset + 8) != 0 else { return nil }
    let first = bytes.u64le(offset + 32)
    let last = bytes.u64le(offset + 40)
    var units: [UInt16] = []
    for unit in 0..<36 where bytes.u16le(offset + 56 + unit * 2) != 0 {
      units.append(bytes.u16le(offset + 56 + unit * 2))
    }
    let parts = [
      bytes.u32le(offset).hexadecimal(width: 8), bytes.u16le(offset + 4).hexadecimal(width: 4),
      bytes.u16le(offset + 6).hexadecimal(width: 4), bytes.u16(offset + 8).hexadecimal(width: 4),
      bytes.u16(offset + 10).hexadecimal(width: 4) + bytes.u32(offset + 12).hexadecimal(width: 8),
    ]
    return TableEntry(
      number: index + 1, start: first, count: last >= first ? last - first &+ 1 : 0,
      type: parts.joined(separator: "-"), name: String(decoding: units, as: UTF16.self))
  }

  // MARK: Both

  private mutating func add(_ number: Int, _ start: UInt64, _ count: UInt64, _ type: String, _ name: String = "") {
    let sectors = reader.byteCount / Self.sectorSize
    guard start > 0 else {
      return damage.report(inode: 0, "partition \(number) begins at sector 0, over the partition table")
    }
    guard count > 0, start < sectors, count <= sectors - start else {
      return damage.report(inode: 0, "partition \(number) from sector \(start) on does not lie on the disk")
    }
    guard partitions.count < Self.partitionLimit else { return }
    partitions.append(
      DiskPartition(
        number: number, start: start * Self.sectorSize, byteCount: count * Self.sectorSize, type: type, name: name))
  }
}
