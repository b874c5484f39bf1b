internal import VMFenceCore

/// A committed transaction: where its copies lie, and what it revokes.
struct JournalTransaction: Sendable {
  struct Copy: Sendable {
    /// The block's place.
    var home: UInt64
    /// Where the copy lies on the disk.
    var block: UInt64
    var isEscaped: Bool
    /// As the tag has it; of the second version the low half only.
    var checksum: UInt32
  }

  var sequence: UInt32
  var copies: [Copy] = []
  /// Blocks that copies of this and earlier transactions say nothing about any more.
  var revoked: [UInt64] = []
  /// In blocks of the log, descriptors and commit block included.
  var length: UInt32 = 0
  /// The block of the log after its commit block.
  var end: UInt32 = 0
}

extension Journal {
  enum ScanResult {
    case transaction(JournalTransaction)
    /// The log ends here, or goes on with what is not committed yet.
    case end
    /// The log goes on with something that cannot be.
    case damaged(String)
  }

  /// Reads the transaction that begins at `next`, if it is committed.
  ///
  /// - `limit`: how many blocks it may have; never more than the log.
  mutating func scan(_ fileSystem: ExtFileSystem, limit: UInt32) -> ScanResult {
    guard var position = next else { return .end }
    var transaction = JournalTransaction(sequence: nextSequence)
    var old = CRC32BigEndian()
    var buffer: [UInt8] = []
    let limit = min(limit, header.logLength)
    while transaction.length < limit {
      guard let block = diskBlock(position), (try? fileSystem.readDiskBlock(block, into: &buffer)) != nil else {
        return .damaged("block \(position) of the log cannot be read")
      }
      transaction.length += 1
      position = following(position)
      let head = buffer.withRawSpan { ($0.u32(0), $0.u32(4), $0.u32(8)) }
      guard head.0 == Self.magic, head.2 == transaction.sequence else { return .end }
      switch head.1 {
      case 1:
        let problem = readDescriptor(buffer, &position, &transaction, fileSystem, &old)
        if let problem { return problem }
      case 2:
        guard isRight(commit: buffer, old: old.state) else { return .damaged("a wrong checksum of a transaction") }
        transaction.end = position
        return .transaction(transaction)
      case 5:
        if let problem = readRevocations(buffer, &transaction, fileSystem) { return problem }
      default: return .end
      }
    }
    return .end
  }

  private func readDescriptor(
    _ block: [UInt8], _ position: inout UInt32, _ transaction: inout JournalTransaction, _ fileSystem: ExtFileSystem,
    _ old: inout CRC32BigEndian
  ) -> ScanResult? {
    guard isRight(tail: block) else { return .end }
    let usesOld = header.hasOldChecksums && !header.hasChecksums
    if usesOld { block.withRawSpan { old.update($0) } }
    let end = block.count - (header.hasChecksums ? 4 : 0)
    var offset = 12
    var data: [UInt8] = []
    while offset + header.tagSize <= end {
      let (home, flags, checksum) = block.withRawSpan { readTag($0, at: offset) }
      offset += header.tagSize + (flags & 0x2 == 0 ? 16 : 0)
      guard let copy = diskBlock(position) else { return .damaged("block \(position) of the log cannot be found") }
      if usesOld {
        guard (try? fileSystem.readDiskBlock(copy, into: &data)) != nil else {
          return .damaged("block \(position) of the log cannot be read")
        }
        data.withRawSpan { old.update($0) }
      }
      position = following(position)
      transaction.length += 1
      guard transaction.length <= header.logLength else { return .damaged("a transaction longer than the log") }
      transaction.copies.append(
        JournalTransaction.Copy(home: home, block: copy, isEscaped: flags & 0x1 != 0, checksum: checksum))
      if flags & 0x8 != 0 { break }
    }
    return nil
  }

  /// - Precondition: a tag lies in `bytes` from `offset` on.
  private func readTag(_ bytes: RawSpan, at offset: Int) -> (home: UInt64, flags: UInt32, checksum: UInt32) {
    let low = UInt64(bytes.u32(offset))
    if header.hasChecksums3 {
      let high = header.is64Bit ? UInt64(bytes.u32(offset + 8)) << 32 : 0
      return (low | high, bytes.u32(offset + 4), bytes.u32(offset + 12))
    }
    let high = header.is64Bit ? UInt64(bytes.u32(offset + 8)) << 32 : 0
    return (low | high, UInt32(bytes.u16(offset + 6)), UInt32(bytes.u16(offset + 4)))
  }

  /// A log can name as many blocks as a disk has, each many times. Beyond this number only those are kept that the journal has copies of:
  /// the rest changes nothing.
  private static let revocationLimit = 1 << 16

  private func readRevocations(
    _ block: [UInt8], _ transaction: inout JournalTransaction, _ fileSystem: ExtFileSystem
  ) -> ScanResult? {
    guard isRight(tail: block) else { return .end }
    let size = header.is64Bit ? 8 : 4
    let count = block.withRawSpan { Int($0.u32(12)) }
    guard count >= 16, count <= block.count - (header.hasChecksums ? 4 : 0) else {
      return .damaged("a block of revocations with \(count) bytes")
    }
    block.withRawSpan { bytes in
      for offset in stride(from: 16, through: count - size, by: size) {
        transaction.revoked.append(size == 8 ? bytes.u64(offset) : UInt64(bytes.u32(offset)))
      }
    }
    let copies = fileSystem.overlay.copies
    if transaction.revoked.count > max(Self.revocationLimit, copies.count * 2) {
      transaction.revoked = Set(transaction.revoked.lazy.filter { copies[$0] != nil }).sorted()
    }
    return nil
  }

  // MARK: Checksums

  /// The checksum in the last four bytes of a descriptor or of a block of revocations.
  private func isRight(tail block: [UInt8]) -> Bool {
    guard header.hasChecksums else { return true }
    return block.withRawSpan { bytes in
      var crc = CRC32C(state: header.seed)
      crc.update(bytes.extracting(0..<bytes.byteCount - 4))
      crc.update(zeroes: 4)
      return crc.state == bytes.u32(bytes.byteCount - 4)
    }
  }

  private func isRight(commit block: [UInt8], old: UInt32) -> Bool {
    block.withRawSpan { bytes in
      if header.hasChecksums {
        var crc = CRC32C(state: header.seed)
        crc.update(bytes.extracting(0..<16))
        crc.update(zeroes: 4)
        crc.update(bytes.extracting(20..<bytes.byteCount))
        return crc.state == bytes.u32(16)
      }
      // Without a type and a size there is no checksum, which is right too.
      guard header.hasOldChecksums, bytes.u8(12) == 1, bytes.u8(13) == 4 else { return true }
      return bytes.u32(16) == old
    }
  }

  /// Whether a copy fits the checksum in its tag.
  func isRight(_ copy: JournalTransaction.Copy, sequence: UInt32, contents: [UInt8]) -> Bool {
    guard header.hasChecksums else { return true }
    var crc = CRC32C(state: header.seed)
    crc.update(littleEndian: sequence.byteSwapped)
    contents.withRawSpan { crc.update($0) }
    return header.hasChecksums3
      ? crc.state == copy.checksum
      : UInt16(truncatingIfNeeded: crc.state) == UInt16(truncatingIfNeeded: copy.checksum)
  }
}
