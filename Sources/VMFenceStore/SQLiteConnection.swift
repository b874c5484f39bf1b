internal import CSQLite
internal import Glibc
internal import VMFenceCore

/// One connection of SQLite, with its prepared statements. Used by one thread at a time.
@safe struct SQLiteConnection: ~Copyable, @unchecked Sendable {
  // SAFETY: opened in `open`, closed in `deinit`; the statements belong to it and are finalised before.
  private let handle: OpaquePointer
  private var statements: [String: OpaquePointer] = unsafe [:]
  private let path: String

  private init(_ handle: OpaquePointer, _ path: String) {
    unsafe self.handle = handle
    self.path = path
  }

  static func open(_ path: String) throws(StateStoreError) -> SQLiteConnection {
    // SAFETY: made with our permissions before SQLite makes it with others; the path is a C string during the call.
    let file = unsafe Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard file >= 0 else {
      let error = errno
      throw StateStoreError(
        error == EACCES || error == EPERM || error == EROFS
          ? .permissionDenied : error == ENOSPC ? .full : .inputOutput,
        "cannot open the store: \(describeError(error))", at: SourcePlace(file: path),
        remedy: "make the directory, or choose another file")
    }
    close(file)
    var handle: OpaquePointer?
    // SAFETY: SQLite sets `handle`, also when it fails, and then it is to be closed.
    let code = unsafe sqlite3_open_v2(
      path, &handle, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nil)
    guard code == SQLITE_OK, let opened = unsafe handle else {
      unsafe sqlite3_close_v2(handle)
      throw failure(code, "cannot open the store", path)
    }
    unsafe sqlite3_busy_timeout(opened, 2000)
    return unsafe SQLiteConnection(opened, path)
  }

  deinit {
    // SAFETY: made by this connection, and used by nobody any more.
    unsafe statements.values.forEach { unsafe _ = sqlite3_finalize($0) }
    unsafe sqlite3_close_v2(handle)
  }

  /// Runs statements of ours, without results.
  func execute(_ text: String) throws(StateStoreError) {
    // SAFETY: the text is a C string during the call.
    let code = unsafe sqlite3_exec(handle, text, nil, nil, nil)
    guard code == SQLITE_OK else { throw failure(code, "the store failed") }
  }

  mutating func number(_ text: String) throws(StateStoreError) -> Int64 {
    let statement = unsafe try prepared(text)
    // SAFETY: the statement is ours; the column is read while its row stands.
    defer { unsafe sqlite3_reset(statement) }
    let code = unsafe sqlite3_step(statement)
    guard code == SQLITE_ROW else { throw failure(code, "cannot read the store") }
    return unsafe sqlite3_column_int64(statement, 0)
  }

  mutating func apply(_ change: StateChange) throws(StateStoreError) {
    switch change {
    case .put(let table, let key, let value):
      try run("INSERT OR REPLACE INTO record VALUES (?1, ?2, ?3)", table, [key, value])
    case .remove(let table, let key): try run(#"DELETE FROM record WHERE "table" = ?1 AND key = ?2"#, table, [key])
    case .removeRange(let table, let start, let end):
      let upper = end == nil ? "" : " AND key < ?3"
      try run(
        #"DELETE FROM record WHERE "table" = ?1 AND key >= ?2"# + upper, table, [start] + (end.map { [$0] } ?? []))
    }
  }

  private mutating func run(_ text: String, _ table: String, _ blobs: [[UInt8]]) throws(StateStoreError) {
    // SAFETY: the statement is ours.
    let statement = unsafe try prepared(text)
    defer { unsafe sqlite3_reset(statement) }
    unsafe try bind(statement, table, blobs)
    let code = unsafe sqlite3_step(statement)
    guard code == SQLITE_DONE else { throw failure(code, "cannot write to the store") }
  }

  mutating func records(
    in table: String, from start: [UInt8], to end: [UInt8]?, limit: Int
  ) throws(StateStoreError) -> [StateRecord] {
    let upper = end == nil ? "" : " AND key < ?3"
    let text = #"SELECT key, value FROM record WHERE "table" = ?1 AND key >= ?2"# + upper + " ORDER BY key LIMIT ?4"
    // SAFETY: the statement is ours; columns are copied while their row stands.
    let statement = unsafe try prepared(text)
    defer { unsafe sqlite3_reset(statement) }
    unsafe try bind(statement, table, [start] + (end.map { [$0] } ?? []))
    unsafe sqlite3_bind_int64(statement, 4, Int64(limit))
    var result: [StateRecord] = []
    while true {
      let code = unsafe sqlite3_step(statement)
      if code == SQLITE_DONE { return result }
      guard code == SQLITE_ROW else { throw failure(code, "cannot read the store") }
      result.append(StateRecord(key: unsafe Self.column(statement, 0), value: unsafe Self.column(statement, 1)))
    }
  }

  // MARK: Statements

  private mutating func prepared(_ text: String) throws(StateStoreError) -> OpaquePointer {
    // SAFETY: the text is a C string during the call; SQLite sets `statement`.
    if let known = unsafe statements[text] { return unsafe known }
    var statement: OpaquePointer?
    let code = unsafe sqlite3_prepare_v3(handle, text, -1, UInt32(SQLITE_PREPARE_PERSISTENT), &statement, nil)
    guard code == SQLITE_OK, let made = unsafe statement else { throw failure(code, "cannot read the store") }
    unsafe statements[text] = unsafe made
    return unsafe made
  }

  @unsafe private func bind(
    _ statement: OpaquePointer, _ table: String, _ blobs: [[UInt8]]
  ) throws(StateStoreError) {
    // SAFETY: SQLite copies what is bound before the call returns.
    var code = unsafe vmfence_bind_text(statement, 1, table)
    for (index, blob) in blobs.enumerated() where code == SQLITE_OK {
      code = unsafe blob.withUnsafeBytes {
        unsafe vmfence_bind_blob(statement, Int32(index + 2), $0.baseAddress, Int32(clamping: $0.count))
      }
    }
    guard code == SQLITE_OK else { throw failure(code, "cannot use the store") }
  }

  @unsafe private static func column(_ statement: OpaquePointer, _ index: Int32) -> [UInt8] {
    // SAFETY: the blob is valid until the next step, for as many bytes as SQLite says; it is copied here.
    guard let bytes = unsafe sqlite3_column_blob(statement, index) else { return [] }
    return unsafe Array(UnsafeRawBufferPointer(start: bytes, count: Int(sqlite3_column_bytes(statement, index))))
  }

  private func failure(_ code: Int32, _ what: String) -> StateStoreError { Self.failure(code, what, path) }

  private static func failure(_ code: Int32, _ what: String, _ path: String) -> StateStoreError {
    // SAFETY: sqlite3_errstr gives a constant C string.
    let reason = unsafe sqlite3_errstr(code).map { unsafe String(cString: $0) } ?? "error \(code)"
    let kind: StateStoreError.Code
    let remedy: String
    switch code & 0xFF {
    case SQLITE_FULL: (kind, remedy) = (.full, "free space on the file's disk; what was there before is unchanged")
    case SQLITE_BUSY, SQLITE_LOCKED: (kind, remedy) = (.busy, "another process is writing to it: try again")
    case SQLITE_CORRUPT, SQLITE_NOTADB:
      (kind, remedy) = (.corrupt, "restore it from a copy, or begin with another file")
    case SQLITE_PERM, SQLITE_READONLY, SQLITE_AUTH, SQLITE_CANTOPEN:
      (kind, remedy) = (.permissionDenied, "make the file and its directory writable")
    default: (kind, remedy) = (.inputOutput, "check the disk that it lies on")
    }
    return StateStoreError(kind, "\(what): \(reason)", at: SourcePlace(file: path), remedy: remedy)
  }
}
