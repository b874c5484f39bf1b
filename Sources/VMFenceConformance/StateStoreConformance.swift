public import Testing
public import VMFenceCore

/// What every `StateStore` must do, checked from outside. Call it inside a `@Test`:
///
///     @Test func isAStateStore() throws {
///       try StateStoreConformance().check { try MyStore(…) }
///     }
///
/// Each call of `make` must give an empty store.
public struct StateStoreConformance: Sendable {
  public init() {}

  /// Checks: that what was put is there, byte for byte, until it is replaced or removed; that tables do not see each
  /// other; that ranges and limits hold and the order is that of the bytes; that changes are done in their order.
  public func check<Store: StateStore>(
    sourceLocation: SourceLocation = #_sourceLocation, _ make: () throws -> Store
  ) throws {
    try checkValues(try make(), sourceLocation)
    try checkRanges(try make(), sourceLocation)
    try checkOrder(try make(), sourceLocation)
  }

  private func checkValues(_ store: some StateStore, _ sourceLocation: SourceLocation) throws {
    let values: [[UInt8]] = [
      [], [0], [0xFF, 0, 1], Array("text' \"; DROP".utf8), [UInt8](repeating: 7, count: 100_000),
    ]
    for (index, value) in values.enumerated() {
      let table = index % 2 == 0 ? "one" : "two"
      try store.commit([.put(table: table, key: value.isEmpty ? [] : Array(value.prefix(4)), value: value)])
    }
    for (index, value) in values.enumerated() {
      let key = value.isEmpty ? [] : Array(value.prefix(4))
      let found = try store.value(in: index % 2 == 0 ? "one" : "two", for: key)
      #expect(found == value, "what was put is there", sourceLocation: sourceLocation)
      let other = try store.value(in: index % 2 == 0 ? "two" : "one", for: key)
      #expect(other == nil, "and in no other table", sourceLocation: sourceLocation)
    }
    try store.commit([
      .put(table: "one", key: [], value: [1]), .remove(table: "two", key: [0]), .remove(table: "x", key: [9]),
    ])
    #expect(try store.value(in: "one", for: []) == [1], "replaced", sourceLocation: sourceLocation)
    #expect(try store.value(in: "two", for: [0]) == nil, "removed", sourceLocation: sourceLocation)
    try store.commit([])
  }

  private func checkRanges(_ store: some StateStore, _ sourceLocation: SourceLocation) throws {
    let keys: [[UInt8]] = [[], [0], [0, 0], [1], [1, 0xFF], [2], [0x7F], [0x80], [0xFF], [0xFF, 0xFF]]
    try store.commit(keys.reversed().map { .put(table: "t", key: $0, value: $0 + [1]) })
    func found(_ start: [UInt8], _ end: [UInt8]?, _ limit: Int = .max) throws -> [[UInt8]] {
      try store.records(in: "t", from: start, to: end, limit: limit).map(\.key)
    }
    #expect(try found([], nil) == keys, "the order is that of the bytes", sourceLocation: sourceLocation)
    #expect(try found([1], [0x80]) == Array(keys[3..<7]), "the end is left out", sourceLocation: sourceLocation)
    #expect(try found([0, 1], nil, 2) == [[1], [1, 0xFF]], "the limit holds", sourceLocation: sourceLocation)
    #expect(try found([], nil, 0).isEmpty && found([2], [2]).isEmpty, "nothing", sourceLocation: sourceLocation)
    try store.commit([.removeRange(table: "t", from: [1], to: [0x80])])
    #expect(try found([], nil) == Array(keys[..<3] + keys[7...]), "a range is removed", sourceLocation: sourceLocation)
    var seen = 0
    try store.commit((0..<3000).map { .put(table: "many", key: StateKey.number(UInt64($0)), value: []) })
    try store.forEach(in: "many") { _ in seen += 1 }
    #expect(seen == 3000, "every record is shown", sourceLocation: sourceLocation)
  }

  private func checkOrder(_ store: some StateStore, _ sourceLocation: SourceLocation) throws {
    try store.commit([
      .put(table: "t", key: [1], value: [1]), .removeRange(table: "t", from: [], to: nil),
      .put(table: "t", key: [2], value: [1]), .put(table: "t", key: [2], value: [2]),
    ])
    let records = try store.records(in: "t", from: [], to: nil, limit: 10)
    #expect(records == [StateRecord(key: [2], value: [2])], "one after the other", sourceLocation: sourceLocation)
  }
}
