internal import Synchronization

/// Hands dispatch tables from the supervisor to the dispatching threads. A reader looks at one number per batch; the lock is
/// taken only when a new table is there.
public final class DispatchTablePublisher: Sendable {
  private let current: Mutex<DispatchTable>
  private let counter = Atomic<UInt64>(0)

  public init(_ table: DispatchTable = .empty) { current = Mutex(table) }

  /// Puts a table in force: for every dispatcher from its next `refresh()` on.
  public func publish(_ table: DispatchTable) {
    current.withLock { $0 = table }
    counter.add(1, ordering: .releasing)
  }

  /// Rises with each table.
  public var generation: UInt64 { counter.load(ordering: .acquiring) }

  /// At least as new as any generation read before.
  public var table: DispatchTable { current.withLock { $0 } }
}
