/// What a block of the disk is to a followed inode, or to the file system.
package struct BlockUse: Hashable, Sendable {
  package var role: BlockRole
  /// The inode; for a block of inodes the first of them; 0 for the superblock and the descriptors.
  package var inode: UInt32
  /// Which block of the file; for an indirect block, the first block it leads to.
  package var index: UInt32

  package init(role: BlockRole, inode: UInt32, index: UInt32) {
    self.role = role
    self.inode = inode
    self.index = index
  }
}

/// Block → uses: open addressing with linear probing under a keyed hash, so that a guest, which chooses the block
/// numbers, cannot choose the collisions. A lookup allocates nothing. A block may have several uses (a damaged or
/// hostile file system).
package struct BlockTable: Sendable {
  package enum Insertion: Hashable {
    case inserted
    case present
    /// The table's limit is reached.
    case full
    /// The block has as many uses already as are kept for one block.
    case crowded
  }

  package static let usesPerBlockLimit = 8

  /// 16 bytes. The key is the block number with the role in the low byte; 0 is an empty slot.
  private struct Slot {
    var key: UInt64 = 0
    var inode: UInt32 = 0
    var index: UInt32 = 0
  }

  private var slots: [Slot]
  private var mask: Int
  package private(set) var count = 0
  private let limit: Int
  private let key: (UInt64, UInt64)

  /// - `limit`: how many uses are held at the most.
  /// - `hashKey`: secret where a live guest chooses the blocks.
  package init(limit: Int, hashKey: (UInt64, UInt64)) {
    self.limit = limit
    key = hashKey
    slots = [Slot](repeating: Slot(), count: 256)
    mask = 255
  }

  /// Bytes of memory in use.
  var memory: Int { slots.count * MemoryLayout<Slot>.stride }

  package func contains(_ block: UInt64) -> Bool {
    var position = home(block)
    while slots[position].key != 0 {
      if slots[position].key >> 8 == block { return true }
      position = (position + 1) & mask
    }
    return false
  }

  package func contains(_ block: UInt64, _ use: BlockUse) -> Bool { find(block, use) != nil }

  /// Adds the uses of a block to `uses`.
  package func appendUses(of block: UInt64, to uses: inout [(block: UInt64, use: BlockUse)]) {
    var position = home(block)
    while slots[position].key != 0 {
      if slots[position].key >> 8 == block { uses.append((block, Self.use(slots[position]))) }
      position = (position + 1) & mask
    }
  }

  /// Adds the uses of all blocks in a range, in the order of the blocks; for ranges longer than the table.
  package func appendUses(in range: Range<UInt64>, to uses: inout [(block: UInt64, use: BlockUse)]) {
    let first = uses.count
    for slot in slots where slot.key != 0 && range.contains(slot.key >> 8) {
      uses.append((slot.key >> 8, Self.use(slot)))
    }
    uses[first...].sort { ($0.block, $0.use.inode, $0.use.index) < ($1.block, $1.use.inode, $1.use.index) }
  }

  package mutating func insert(_ block: UInt64, _ use: BlockUse) -> Insertion {
    var position = home(block)
    var uses = 0
    while slots[position].key != 0 {
      if slots[position].key >> 8 == block {
        if Self.use(slots[position]) == use { return .present }
        uses += 1
      }
      position = (position + 1) & mask
    }
    guard uses < Self.usesPerBlockLimit else { return .crowded }
    guard count < limit else { return .full }
    slots[position] = Slot(key: block << 8 | UInt64(use.role.rawValue), inode: use.inode, index: use.index)
    count += 1
    if count * 2 > slots.count { grow() }
    return .inserted
  }

  package mutating func remove(_ block: UInt64, _ use: BlockUse) {
    guard var hole = find(block, use) else { return }
    count -= 1
    // Moves up whatever the hole would cut off from its home (Knuth, algorithm 6.4 R).
    var position = (hole + 1) & mask
    while slots[position].key != 0 {
      let distance = (position &- home(slots[position].key >> 8)) & mask
      if distance >= (position &- hole) & mask {
        slots[hole] = slots[position]
        hole = position
      }
      position = (position + 1) & mask
    }
    slots[hole] = Slot()
  }

  private func find(_ block: UInt64, _ use: BlockUse) -> Int? {
    var position = home(block)
    while slots[position].key != 0 {
      if slots[position].key >> 8 == block, Self.use(slots[position]) == use { return position }
      position = (position + 1) & mask
    }
    return nil
  }

  private static func use(_ slot: Slot) -> BlockUse {
    BlockUse(
      role: BlockRole(rawValue: UInt8(truncatingIfNeeded: slot.key)) ?? .data, inode: slot.inode, index: slot.index)
  }

  private mutating func grow() {
    let old = slots
    slots = [Slot](repeating: Slot(), count: old.count * 2)
    mask = slots.count - 1
    for slot in old where slot.key != 0 {
      var position = home(slot.key >> 8)
      while slots[position].key != 0 { position = (position + 1) & mask }
      slots[position] = slot
    }
  }

  /// The finaliser of MurmurHash3 over the keyed number, keyed again half-way.
  private func home(_ block: UInt64) -> Int {
    var x = block ^ key.0
    x = (x ^ x >> 33) &* 0xFF51_AFD7_ED55_8CCD
    x = (x ^ x >> 33 ^ key.1) &* 0xC4CE_B9FE_1A85_EC53
    return Int(truncatingIfNeeded: x ^ x >> 33) & mask
  }
}
