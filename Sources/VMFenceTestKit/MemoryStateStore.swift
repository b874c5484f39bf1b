internal import Synchronization
public import VMFenceCore

/// A store in memory, for tests; it can be made to fail.
public final class MemoryStateStore: StateStore {
  private struct State {
    var tables: [String: [[UInt8]: [UInt8]]] = [:]
    var failure: StateStoreError?
  }

  private let state = Mutex(State())

  public init() {}

  /// Every call throws this until it is set to nil.
  public func fail(with error: StateStoreError?) { state.withLock { $0.failure = error } }

  public func commit(_ changes: [StateChange]) throws(StateStoreError) {
    try state.withLock { state throws(StateStoreError) in
      if let failure = state.failure { throw failure }
      for change in changes {
        switch change {
        case .put(let table, let key, let value): state.tables[table, default: [:]][key] = value
        case .remove(let table, let key): state.tables[table]?[key] = nil
        case .removeRange(let table, let start, let end):
          state.tables[table] = state.tables[table]?.filter { !Self.isInside($0.key, start, end) }
        }
      }
    }
  }

  public func records(
    in table: String, from start: [UInt8], to end: [UInt8]?, limit: Int
  ) throws(StateStoreError) -> [StateRecord] {
    try state.withLock { state throws(StateStoreError) in
      if let failure = state.failure { throw failure }
      let found = (state.tables[table] ?? [:]).filter { Self.isInside($0.key, start, end) }
        .sorted { $0.key.lexicographicallyPrecedes($1.key) }
      return found.prefix(max(0, limit)).map { StateRecord(key: $0.key, value: $0.value) }
    }
  }

  private static func isInside(_ key: [UInt8], _ start: [UInt8], _ end: [UInt8]?) -> Bool {
    !key.lexicographicallyPrecedes(start) && end.map { key.lexicographicallyPrecedes($0) } ?? true
  }
}
