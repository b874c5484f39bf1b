import VMFenceCore

/// The rules that matched one packet (itself, and what it completed), in the order of their list: what they say is done when all are
/// known, so that it does not hang on where a match was found.
///
/// Fixed capacity. When it is full, the finding of the least important rule is left out, and counted.
struct Findings {
  static let capacity = 256

  struct Finding {
    var rule: Int
    var telling: SnortInspector.Telling
    /// The flow's place and identity; -1 and 0 for a packet without.
    var place: Int
    var flow: UInt64
    /// The flow's handshake was seen, or it was picked up without.
    var isEstablished: Bool
    var priority: UInt8
    var record: AlertRecord
  }

  private var entries: [Finding] = []
  private(set) var lost: UInt64 = 0

  init() { entries.reserveCapacity(Self.capacity) }

  var count: Int { entries.count }
  subscript(index: Int) -> Finding { entries[index] }

  func contains(_ rule: Int) -> Bool { entries.contains { $0.rule == rule } }

  mutating func removeAll() { entries.removeAll(keepingCapacity: true) }

  mutating func insert(_ finding: Finding) {
    if entries.count == Self.capacity {
      lost += 1
      guard let least = leastImportant(), isMoreImportant(finding, than: entries[least]) else { return }
      entries.remove(at: least)
    }
    var index = entries.count
    while index > 0, entries[index - 1].rule > finding.rule { index -= 1 }
    entries.insert(finding, at: index)
  }

  private func leastImportant() -> Int? {
    entries.indices.max { isMoreImportant(entries[$0], than: entries[$1]) }
  }

  private func isMoreImportant(_ one: Finding, than other: Finding) -> Bool {
    one.priority == other.priority ? one.rule < other.rule : one.priority < other.priority
  }
}
