/// Blocks whose last committed contents lie in the journal and not at their place yet: where to read them instead.
/// Nothing is ever written to the disk. As large as the journal at the most.
struct JournalOverlay: Sendable {
  struct Copy: Hashable, Sendable {
    /// The block of the disk where the copy lies.
    var block: UInt64
    /// The transaction that brought it.
    var sequence: UInt32
    /// The first four bytes were the journal's magic number, and are zeroes in the copy.
    var isEscaped: Bool
  }

  private(set) var copies: [UInt64: Copy] = [:]
  /// Of which block a block of the disk is the copy.
  private var homes: [UInt64: UInt64] = [:]

  var isEmpty: Bool { copies.isEmpty }

  subscript(block: UInt64) -> Copy? {
    get { copies[block] }
    set {
      if let old = copies[block], homes[old.block] == block { homes[old.block] = nil }
      copies[block] = newValue
      if let newValue { homes[newValue.block] = block }
    }
  }

  /// The copies that lie in a range of blocks of the disk: of which block, and where.
  func copies(in blocks: ClosedRange<UInt64>) -> [(home: UInt64, block: UInt64)] {
    guard blocks.upperBound - blocks.lowerBound < UInt64(homes.count) else {
      return homes.compactMap { blocks.contains($0.key) ? ($0.value, $0.key) : nil }
    }
    return blocks.compactMap { block in homes[block].map { ($0, block) } }
  }

  /// The blocks whose copies are from transactions before `sequence`, which are at their places now.
  func blocks(before sequence: UInt32) -> [UInt64] {
    copies.filter { Int32(bitPattern: $0.value.sequence &- sequence) < 0 }.map(\.key)
  }
}
