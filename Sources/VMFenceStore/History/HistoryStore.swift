internal import Glibc
internal import Synchronization
public import VMFenceCore

/// The alerts and decisions of the past in one SQLite file, for people and programs that ask: a projection. Whatever is in it came from somewhere else
/// (decisions from the decision log), so the file can be thrown away at any time.
///
/// ```sql
/// alert(id, time, vm, source, destination, rule, priority, message, eve)
/// decision(row, id, time, vm, name, measure, network, status, policy, reason, step, expires, trigger, source, logged)
/// ```
/// Times are nanoseconds since 1970 in UTC, `vm` is a UUID in text ('' for the host), `eve` the event as EVE JSON. Others may read the file while
/// it is written (https://sqlite.org/wal.html).
///
/// Bounded in rows and bytes: the oldest go. Safe to use from any thread; calls wait for the disk.
public final class HistoryStore: Sendable {
  /// Of the layout; kept in `PRAGMA user_version`.
  static let version: Int64 = 1

  public struct Limits: Hashable, Sendable {
    public var alerts: Int
    public var decisions: Int
    /// Of the pages in use. The file and its write-ahead log take up to 8 MiB more.
    public var bytes: Int

    public init(alerts: Int = 200_000, decisions: Int = 200_000, bytes: Int = 256 << 20) {
      self.alerts = alerts
      self.decisions = decisions
      self.bytes = bytes
    }
  }

  public struct Figures: Hashable, Sendable {
    public var alerts: UInt64 = 0
    public var decisions: UInt64 = 0
    /// Alerts that made room for younger ones, since the file was made.
    public var forgotten: UInt64 = 0
    public var bytes: UInt64 = 0

    public init() {}
  }

  private let limits: Limits
  private let connection: Mutex<SQLiteConnection>

  private init(_ connection: consuming SQLiteConnection, _ limits: Limits) {
    self.limits = limits
    self.connection = Mutex(connection)
  }

  /// Opens the file; makes it if it is not there (mode 0600). One that is no history, damaged or of another layout is begun anew.
  ///
  /// - `path`: nil: in memory, gone with the process.
  /// - Returns: the store, and why it was begun anew, if it was.
  /// - Throws: `permissionDenied`, `inputOutput`, `full`.
  public static func open(
    path: String?, limits: Limits = Limits()
  ) throws(StateStoreError) -> (store: HistoryStore, begunAnew: String?) {
    guard let path else { return (HistoryStore(try prepare(SQLiteConnection.openInMemory()), limits), nil) }
    do throws(StateStoreError) {
      return (HistoryStore(try prepare(SQLiteConnection.open(path)), limits), nil)
    } catch {
      guard error.code == .corrupt || error.code == .unknownVersion else { throw error }
      // SAFETY: the paths are handed over as strings that end in zero and live during the calls.
      for suffix in ["", "-wal", "-shm"] { _ = unsafe unlink(path + suffix) }
      return (HistoryStore(try prepare(SQLiteConnection.open(path)), limits), error.message)
    }
  }

  private static func prepare(
    _ opened: consuming SQLiteConnection
  ) throws(StateStoreError) -> SQLiteConnection {
    var connection = opened
    try connection.execute("PRAGMA journal_mode=WAL")
    // A power cut may cost the last moments: decisions come again from the log.
    try connection.execute("PRAGMA synchronous=NORMAL")
    try connection.execute("PRAGMA journal_size_limit=4194304")
    let found = try connection.number("PRAGMA user_version")
    let tables = try connection.number("SELECT count(*) FROM sqlite_schema")
    guard found == version || found == 0 && tables == 0 else {
      throw StateStoreError(.unknownVersion, "it has layout \(found), and this version knows \(version)")
    }
    if found == 0 {
      try connection.execute(
        """
        BEGIN IMMEDIATE;
        CREATE TABLE alert (
          id INTEGER PRIMARY KEY, time INTEGER NOT NULL, vm TEXT NOT NULL, source TEXT NOT NULL,
          destination TEXT NOT NULL, rule TEXT NOT NULL, priority INTEGER NOT NULL, message TEXT NOT NULL,
          eve BLOB NOT NULL
        );
        CREATE INDEX alert_source ON alert (vm, source);
        CREATE INDEX alert_destination ON alert (vm, destination);
        CREATE TABLE decision (
          row INTEGER PRIMARY KEY, id INTEGER NOT NULL, time INTEGER NOT NULL, vm TEXT NOT NULL, name TEXT,
          measure TEXT NOT NULL, network TEXT NOT NULL, status TEXT NOT NULL, policy TEXT NOT NULL,
          reason TEXT NOT NULL, step INTEGER NOT NULL, expires INTEGER, trigger TEXT NOT NULL, source TEXT,
          logged INTEGER NOT NULL, UNIQUE (id, measure, network, vm)
        );
        PRAGMA user_version=\(version);
        COMMIT
        """)
    }
    return connection
  }

  // MARK: Writing

  /// Adds alerts, in their order, and decisions, each in place of what it was before. All of them or none.
  ///
  /// - Throws: `full`, `busy`, `inputOutput`.
  public func append(_ alerts: [HistoryAlert], _ decisions: [HistoryDecision]) throws(StateStoreError) {
    let limits = limits
    try connection.withLock { connection throws(StateStoreError) in
      try connection.transaction { connection throws(StateStoreError) in
        for alert in alerts { try connection.run(HistoryAlert.insertion, alert.values) }
        for decision in decisions { try connection.run(HistoryDecision.insertion, decision.values) }
        try Self.forget(&connection, limits, hasAlerts: !alerts.isEmpty, hasDecisions: !decisions.isEmpty)
      }
    }
  }

  /// Makes room: first by rows, then, a twentieth at a time, by bytes.
  private static func forget(
    _ connection: inout SQLiteConnection, _ limits: Limits, hasAlerts: Bool, hasDecisions: Bool
  ) throws(StateStoreError) {
    if hasAlerts {
      try connection.run(
        "DELETE FROM alert WHERE id <= (SELECT max(id) FROM alert) - ?1", [.integer(Int64(limits.alerts))])
    }
    if hasDecisions {
      try connection.run(
        "DELETE FROM decision WHERE row <= (SELECT max(row) FROM decision) - ?1", [.integer(Int64(limits.decisions))])
    }
    for _ in 0..<20 where try usedBytes(&connection) > Int64(limits.bytes) {
      try connection.execute(
        """
        DELETE FROM alert WHERE id <= (SELECT min(id) + (max(id) - min(id)) / 20 FROM alert) AND id < (SELECT max(id) FROM alert);
        DELETE FROM decision WHERE row <= (SELECT min(row) + (max(row) - min(row)) / 20 FROM decision)
          AND (SELECT count(*) FROM (SELECT 1 FROM alert LIMIT 2)) < 2
        """)
    }
  }

  private static func usedBytes(_ connection: inout SQLiteConnection) throws(StateStoreError) -> Int64 {
    let pages = try connection.number("PRAGMA page_count") - connection.number("PRAGMA freelist_count")
    return try pages * connection.number("PRAGMA page_size")
  }

  // MARK: Reading

  /// The youngest alerts as EVE JSON, the oldest of them first.
  ///
  /// - `vm`, `address`: only what concerns this domain; only what this address sent or received.
  public func lastAlerts(
    _ limit: Int, of vm: DomainUUID? = nil, with address: IPAddress? = nil
  ) throws(StateStoreError) -> [[UInt8]] {
    var conditions: [String] = []
    var values: [SQLiteValue] = [.integer(Int64(max(0, limit)))]
    if let vm {
      values.append(.text(vm.description))
      conditions.append("vm = ?\(values.count)")
    }
    if let address {
      values.append(.text(address.description))
      conditions.append("(source = ?\(values.count) OR destination = ?\(values.count))")
    }
    let condition = conditions.isEmpty ? "" : " WHERE " + conditions.joined(separator: " AND ")
    return try connection.withLock { connection throws(StateStoreError) in
      var result: [[UInt8]] = []
      try connection.rows("SELECT eve FROM alert\(condition) ORDER BY id DESC LIMIT ?1", values) { row in
        result.append(row.bytes(0))
        return true
      }
      return result.reversed()
    }
  }

  /// The youngest decisions for which `condition` holds, the oldest of them first.
  ///
  /// - `vm`: only those about this domain, and about the host as a whole.
  public func lastDecisions(
    _ limit: Int, about vm: DomainUUID? = nil, where condition: (HistoryDecision) -> Bool = { _ in true }
  ) throws(StateStoreError) -> [HistoryDecision] {
    guard limit > 0 else { return [] }
    return try connection.withLock { connection throws(StateStoreError) in
      var result: [HistoryDecision] = []
      try connection.rows(
        HistoryDecision.selection + (vm == nil ? "" : " WHERE vm IN (?1, '')") + " ORDER BY row DESC",
        vm.map { [.text($0.description)] } ?? []
      ) { row in
        if let decision = HistoryDecision(row), condition(decision) { result.append(decision) }
        return result.count < limit
      }
      return result.reversed()
    }
  }

  public func figures() throws(StateStoreError) -> Figures {
    try connection.withLock { connection throws(StateStoreError) in
      var figures = Figures()
      figures.alerts = UInt64(try connection.number("SELECT count(*) FROM alert"))
      figures.decisions = UInt64(try connection.number("SELECT count(*) FROM decision"))
      figures.forgotten = UInt64(max(0, try connection.number("SELECT ifnull(min(id), 1) - 1 FROM alert")))
      figures.bytes = UInt64(try Self.usedBytes(&connection))
      return figures
    }
  }
}
