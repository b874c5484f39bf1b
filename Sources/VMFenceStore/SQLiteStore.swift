internal import CSQLite
internal import Synchronization
public import VMFenceCore

/// A `StateStore` in one SQLite file. The corresponding C library is libsqlite3 (https://sqlite.org/c3ref).
///
/// Several processes may read and one may write at a time; a writer waits two seconds for another. With
/// `synchronous=FULL` and a write-ahead log a commit survives a power cut.
public final class SQLiteStore: StateStore {
  /// Of the layout; kept in `PRAGMA user_version`.
  static let version: Int64 = 1

  public let path: String
  private let connection: Mutex<SQLiteConnection>

  /// Opens the file; makes it if it is not there (mode 0600).
  ///
  /// - Throws: `permissionDenied`, `inputOutput`, `corrupt`, `unknownVersion`.
  public init(path: String) throws(StateStoreError) {
    self.path = path
    let fresh = try SQLiteConnection.open(path)
    connection = Mutex(fresh)
    try connection.withLock { connection throws(StateStoreError) in
      try connection.execute("PRAGMA journal_mode=WAL")
      try connection.execute("PRAGMA synchronous=FULL")
      let found = try connection.number("PRAGMA user_version")
      guard found <= Self.version else {
        throw StateStoreError(
          .unknownVersion, "the store has layout \(found), and this version knows \(Self.version)",
          at: SourcePlace(file: path), remedy: "use the version that made it, or another file")
      }
      if found < Self.version {
        try connection.execute(
          """
          BEGIN IMMEDIATE;
          CREATE TABLE IF NOT EXISTS record (
            "table" TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY ("table", key)
          ) WITHOUT ROWID;
          PRAGMA user_version=\(Self.version);
          COMMIT
          """)
      }
    }
  }

  public func commit(_ changes: [StateChange]) throws(StateStoreError) {
    try connection.withLock { connection throws(StateStoreError) in
      try connection.execute("BEGIN IMMEDIATE")
      do throws(StateStoreError) {
        for change in changes { try connection.apply(change) }
        try connection.execute("COMMIT")
      } catch {
        // After some errors SQLite has rolled back by itself, and then this fails.
        try? connection.execute("ROLLBACK")
        throw error
      }
    }
  }

  public func records(
    in table: String, from start: [UInt8], to end: [UInt8]?, limit: Int
  ) throws(StateStoreError) -> [StateRecord] {
    guard limit > 0 else { return [] }
    return try connection.withLock { connection throws(StateStoreError) in
      try connection.records(in: table, from: start, to: end, limit: limit)
    }
  }
}
