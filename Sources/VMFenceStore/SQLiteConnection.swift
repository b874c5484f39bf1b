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
    return try open(name: path, SQLITE_OPEN_READWRITE)
  }

  /// A database that is gone with the process.
  static func openInMemory() throws(StateStoreError) -> SQLiteConnection {
    try open(name: ":memory:", SQLITE_OPEN_READWRITE | SQLITE_OPEN_MEMORY)
  }

  private static func open(name path: String, _ flags: Int32) throws(StateStoreError) -> SQLiteConnection {
    var handle: OpaquePointer?
    // SAFETY: SQLite sets `handle`, also when it fails, and then it is to be closed.
    let code = unsafe sqlite3_open_v2(path, &handle, flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nil)
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

  /// Does what `body` does, all of it or nothing.
  mutating func transaction(
    _ body: (inout SQLiteConnection) throws(StateStoreError) -> Void
  ) throws(StateStoreError) {
    try execute("BEGIN IMMEDIATE")
    do throws(StateStoreError) {
      try body(&self)
      try execute("COMMIT")
    } catch {
      // After some errors SQLite has rolled back by itself, and then this fails.
      try? execute("ROLLBACK")
      throw error
    }
  }

  /// The first column of the first row.
  mutating func number(_ text: String, _ values: [SQLiteValue] = []) throws(StateStoreError) -> Int64 {
    var result: Int64?
    try rows(text, values) { row in
      result = row.integer(0)
      return false
    }
    guard let result else { throw failure(SQLITE_DONE, "cannot read the store") }
    return result
  }

  /// Runs a statement without results.
  mutating func run(_ text: String, _ values: [SQLiteValue]) throws(StateStoreError) {
    // SAFETY: the statement is ours.
    let statement = unsafe try prepared(text)
    defer { unsafe sqlite3_reset(statement) }
    unsafe try bind(statement, values)
    let code = unsafe sqlite3_step(statement)
    guard code == SQLITE_DONE else { throw failure(code, "cannot write to the store") }
  }

  /// Shows rows until there are none, or `body` says false.
  mutating func rows(
    _ text: String, _ values: [SQLiteValue], _ body: (SQLiteRow) throws(StateStoreError) -> Bool
  ) throws(StateStoreError) {
    // SAFETY: the statement is ours; columns are copied while their row stands.
    let statement = unsafe try prepared(text)
    defer { unsafe sqlite3_reset(statement) }
    unsafe try bind(statement, values)
    while true {
      let code = unsafe sqlite3_step(statement)
      if code == SQLITE_DONE { return }
      guard code == SQLITE_ROW else { throw failure(code, "cannot read the store") }
      guard unsafe try body(SQLiteRow(statement)) else { return }
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

  @unsafe private func bind(_ statement: OpaquePointer, _ values: [SQLiteValue]) throws(StateStoreError) {
    var code = SQLITE_OK
    for (index, value) in values.enumerated() where code == SQLITE_OK {
      let place = Int32(index + 1)
      // SAFETY: SQLite copies what is bound before the call returns.
      code =
        switch value {
        case .null: unsafe sqlite3_bind_null(statement, place)
        case .integer(let number): unsafe sqlite3_bind_int64(statement, place, number)
        case .text(let text): unsafe vmfence_bind_text(statement, place, text)
        case .blob(let bytes):
          unsafe bytes.withUnsafeBytes {
            unsafe vmfence_bind_blob(statement, place, $0.baseAddress, Int32(clamping: $0.count))
          }
        }
    }
    guard code == SQLITE_OK else { throw failure(code, "cannot use the store") }
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

/// What a statement is given for one of its parameters.
enum SQLiteValue {
  case null
  case integer(Int64)
  /// Cut at its first zero character.
  case text(String)
  case blob([UInt8])
}

/// A row of a result, while it stands.
@safe struct SQLiteRow {
  // SAFETY: valid within `SQLiteConnection.rows`, which makes it.
  private let statement: OpaquePointer

  @unsafe init(_ statement: OpaquePointer) { unsafe self.statement = statement }

  /// 0 for NULL.
  func integer(_ column: Int32) -> Int64 {
    // SAFETY: the row stands.
    unsafe sqlite3_column_int64(statement, column)
  }

  func isNull(_ column: Int32) -> Bool {
    // SAFETY: the row stands.
    unsafe sqlite3_column_type(statement, column) == SQLITE_NULL
  }

  func text(_ column: Int32) -> String { String(decoding: bytes(column), as: UTF8.self) }

  func bytes(_ column: Int32) -> [UInt8] {
    // SAFETY: the blob is valid until the next step, for as many bytes as SQLite says; it is copied here.
    guard let bytes = unsafe sqlite3_column_blob(statement, column) else { return [] }
    return unsafe Array(UnsafeRawBufferPointer(start: bytes, count: Int(sqlite3_column_bytes(statement, column))))
  }
}
