internal import VMFenceCore

extension ExtAttributeList {
  /// The attributes that lie in an inode itself.
  init(of inode: ExtInode) {
    self = inode.inlineAttributes.withRawSpan { ExtAttributeList(inInode: $0) }
  }
}

extension ExtFileSystem {
  /// The extended attributes of a file, in the inode first, then those in its block of attributes.
  ///
  /// Values in inodes of their own are read; together at most 1 MiB of them.
  public func attributes(of file: ExtListing, damage: inout DamageLog) -> [ExtAttribute] {
    var lists = [ExtAttributeList(of: file.inode)]
    let block = file.inode.attributeBlock
    if block != 0, isOwnable(block) {
      var buffer: [UInt8] = []
      do throws(IntegrityError) {
        try readBlock(block, into: &buffer)
        lists.append(buffer.withRawSpan { ExtAttributeList(inBlock: $0) })
        if !buffer.withRawSpan({ checksums.isRight(attributeBlock: $0, number: block) }) {
          damage.report(inode: file.number, path: file.path, "a wrong checksum of its extended attributes")
        }
      } catch {
        damage.report(inode: file.number, path: file.path, error.message)
      }
    }
    var result: [ExtAttribute] = []
    var left = 1 << 20
    for list in lists {
      if let message = list.damage { damage.report(inode: file.number, path: file.path, message) }
      for var attribute in list.attributes {
        if attribute.valueInode != 0 { readValue(&attribute, of: file, left: &left, damage: &damage) }
        result.append(attribute)
      }
    }
    return result
  }

  private func readValue(
    _ attribute: inout ExtAttribute, of file: ExtListing, left: inout Int, damage: inout DamageLog
  ) {
    var buffer: [UInt8] = []
    guard Int(attribute.size) <= left, let inode = try? inode(attribute.valueInode, buffer: &buffer),
      inode.kind == .regular, inode.flags & ExtInode.Flags.attributeInode != 0, inode.size >= UInt64(attribute.size)
    else {
      return damage.report(inode: file.number, path: file.path, "an extended attribute whose inode cannot be its value")
    }
    left -= Int(attribute.size)
    var value: [UInt8] = []
    let listing = ExtListing(path: file.path, number: attribute.valueInode, inode: inode)
    _ = readContents(of: listing, limit: UInt64(attribute.size), damage: &damage) { value += $0.copiedBytes() }
    attribute.value = value
  }

  /// Reads the contents of a file, or the target of a symbolic link, in order and in pieces of at most 1 MiB; holes are
  /// read as zeroes.
  ///
  /// `limit`: where to end, in bytes. A block that cannot be read is read as zeroes and told as damage; with a damaged map
  /// nothing is read.
  /// - Returns: false when something could not be read.
  public func readContents(
    of file: ExtListing, limit: UInt64 = .max, damage: inout DamageLog, _ body: (RawSpan) -> Void
  ) -> Bool {
    let end = min(file.inode.size, limit)
    if let inline = inlineContents(of: file.inode) {
      let bytes = inline.count > Int(clamping: end) ? Array(inline[..<Int(end)]) : inline
      bytes.withRawSpan { body($0) }
      var position = UInt64(bytes.count)
      zeroes(from: &position, to: end, body)
      return true
    }
    var isWhole = true
    var blocks = Int.max
    let before = damage.count
    let map = map(of: file, blocks: &blocks, damage: &damage)
    if damage.count > before { return false }
    var position: UInt64 = 0
    var buffer: [UInt8] = []
    let size = UInt64(blockSize)
    let piece = max(1, (1 << 20) / size)
    for run in map.runs where !run.isUnwritten && UInt64(run.fileBlock) * size < end {
      zeroes(from: &position, to: UInt64(run.fileBlock) * size, body)
      var index: UInt64 = 0
      while index < UInt64(run.count), position < end {
        let count = overlay.isEmpty ? min(piece, UInt64(run.count) - index) : 1
        do throws(IntegrityError) {
          try read(run.block + index, count: count, into: &buffer)
        } catch {
          damage.report(inode: file.number, path: file.path, error.message)
          isWhole = false
          buffer = [UInt8](repeating: 0, count: Int(count * size))
        }
        let used = Int(min(count * size, end - position))
        buffer.withRawSpan { body($0.extracting(0..<used)) }
        position += UInt64(used)
        index += count
      }
    }
    zeroes(from: &position, to: end, body)
    return isWhole
  }

  private func read(_ block: UInt64, count: UInt64, into buffer: inout [UInt8]) throws(IntegrityError) {
    if count == 1 { return try readBlock(block, into: &buffer) }
    let bytes = Int(count) * blockSize
    if buffer.count != bytes { buffer = [UInt8](repeating: 0, count: bytes) }
    let offset = block * UInt64(blockSize)
    try reader.read(at: offset, into: &buffer)
    patch?.apply(to: &buffer, at: offset)
  }

  /// Reads a part of a file's contents through its map; holes are read as zeroes.
  ///
  /// - Returns: nil when something of it cannot be read.
  func readContents(of inode: ExtInode, _ map: ExtBlockMap, in range: Range<UInt64>) -> [UInt8]? {
    var result = [UInt8](repeating: 0, count: range.count)
    func take(_ bytes: [UInt8], at place: UInt64) {
      let from = max(place, range.lowerBound)
      let to = min(place + UInt64(bytes.count), range.upperBound)
      guard from < to else { return }
      result.replaceSubrange(
        Int(from - range.lowerBound)..<Int(to - range.lowerBound), with: bytes[Int(from - place)..<Int(to - place)])
    }
    if let inline = inlineContents(of: inode) {
      take(inline, at: 0)
      return result
    }
    guard !range.isEmpty else { return result }
    let size = UInt64(blockSize)
    var buffer: [UInt8] = []
    for run in map.runs where !run.isUnwritten {
      let first = max(UInt64(run.fileBlock), range.lowerBound / size)
      let end = min(run.end, (range.upperBound - 1) / size + 1)
      guard first < end else { continue }
      for block in first..<end {
        guard (try? readBlock(run.block + (block - UInt64(run.fileBlock)), into: &buffer)) != nil else { return nil }
        take(buffer, at: block * size)
      }
    }
    return result
  }

  private static let zeroes = [UInt8](repeating: 0, count: 1 << 18)

  private func zeroes(from position: inout UInt64, to end: UInt64, _ body: (RawSpan) -> Void) {
    while position < end {
      let count = Int(min(end - position, UInt64(Self.zeroes.count)))
      Self.zeroes.withRawSpan { body($0.extracting(0..<count)) }
      position += UInt64(count)
    }
  }

  /// Contents that lie in the inode itself; nil when they lie in blocks.
  func inlineContents(of inode: ExtInode) -> [UInt8]? {
    if let target = inode.inlineTarget(blockSize: blockSize) { return target }
    guard inode.hasInlineData, inode.kind != .directory else { return nil }
    let rest = ExtAttributeList(of: inode).inlineData ?? []
    return inode.blockBytes(0..<60) + rest
  }

  /// The target of a symbolic link, at most a block of it.
  public func target(of file: ExtListing, damage: inout DamageLog) -> [UInt8] {
    var target: [UInt8] = []
    _ = readContents(of: file, limit: UInt64(blockSize), damage: &damage) { target += $0.copiedBytes() }
    return target
  }

  /// How many bytes the contents of all files of a file system can have that are worth reading: twice what the disk has
  /// (files may share blocks), and some for holes.
  public var contentsLimit: UInt64 { reader.byteCount &* 2 &+ (64 << 20) }

  /// The SHA-256 of a regular file's contents; nil when they cannot be read, are ciphertext, or are longer than `limit`
  /// bytes (what is hashed is taken from it).
  public func contentHash(of file: ExtListing, limit: inout UInt64, damage: inout DamageLog) -> [UInt8]? {
    guard file.inode.kind == .regular, !file.inode.isEncrypted, file.inode.size <= fileSizeLimit(of: file.inode) else {
      return nil
    }
    guard file.inode.size <= limit else { return nil }
    limit -= file.inode.size
    var hash = SHA256()
    let isWhole = readContents(of: file, damage: &damage) { hash.update($0) }
    return isWhole ? hash.digest() : nil
  }
}
