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

  var isEmpty: Bool { copies.isEmpty }

  subscript(block: UInt64) -> Copy? {
    get { copies[block] }
    set { copies[block] = newValue }
  }

  mutating func removeAll() { copies.removeAll() }

  /// The blocks whose copies are from transactions before `sequence`, which are at their places now.
  func blocks(before sequence: UInt32) -> [UInt64] {
    copies.filter { Int32(bitPattern: $0.value.sequence &- sequence) < 0 }.map(\.key)
  }
}
