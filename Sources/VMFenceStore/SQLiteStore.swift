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
      try connection.transaction { connection throws(StateStoreError) in
        for change in changes { try Self.apply(change, connection: &connection) }
      }
    }
  }

  private static func apply(_ change: StateChange, connection: inout SQLiteConnection) throws(StateStoreError) {
    switch change {
    case .put(let table, let key, let value):
      try connection.run("INSERT OR REPLACE INTO record VALUES (?1, ?2, ?3)", [.text(table), .blob(key), .blob(value)])
    case .remove(let table, let key):
      try connection.run(#"DELETE FROM record WHERE "table" = ?1 AND key = ?2"#, [.text(table), .blob(key)])
    case .removeRange(let table, let start, let end):
      let upper = end == nil ? "" : " AND key < ?3"
      try connection.run(
        #"DELETE FROM record WHERE "table" = ?1 AND key >= ?2"# + upper,
        [.text(table), .blob(start)] + (end.map { [.blob($0)] } ?? []))
    }
  }

  public func records(
    in table: String, from start: [UInt8], to end: [UInt8]?, limit: Int
  ) throws(StateStoreError) -> [StateRecord] {
    guard limit > 0 else { return [] }
    let upper = end == nil ? "" : " AND key < ?4"
    let text = #"SELECT key, value FROM record WHERE "table" = ?1 AND key >= ?2"# + upper + " ORDER BY key LIMIT ?3"
    return try connection.withLock { connection throws(StateStoreError) in
      var result: [StateRecord] = []
      try connection.rows(
        text, [.text(table), .blob(start), .integer(Int64(limit))] + (end.map { [.blob($0)] } ?? [])
      ) { row in
        result.append(StateRecord(key: row.bytes(0), value: row.bytes(1)))
        return true
      }
      return result
    }
  }
}
