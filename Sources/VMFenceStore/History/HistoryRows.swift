public import VMFenceCore

/// An alert, as the history keeps it.
public struct HistoryAlert: Hashable, Sendable {
  public var alert: Alert
  /// As EVE JSON, on one line.
  public var eve: [UInt8]

  public init(_ alert: Alert, eve: [UInt8]) {
    self.alert = alert
    self.eve = eve
  }

  static let insertion = """
    INSERT INTO alert (time, vm, source, destination, rule, priority, message, eve)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
    """

  var values: [SQLiteValue] {
    [
      .integer(alert.time.nanoseconds), .text(alert.incarnation.uuid.description), .text(alert.source.description),
      .text(alert.destination.description), .text("\(alert.rule.gid):\(alert.rule.sid)"),
      .integer(Int64(alert.rule.priority)), .text(alert.rule.message), .blob(eve),
    ]
  }
}

/// A decision, as the history keeps it: for people, not to decide by.
public struct HistoryDecision: Hashable, Sendable {
  public var id: UInt64
  public var time: Timestamp
  /// nil for the host as a whole.
  public var vm: DomainUUID?
  /// The domain's name when it was decided, as far as it was known.
  public var name: String?
  /// `block`, `quarantine` …
  public var measure: String
  /// Whom it blocks, or blocked.
  public var network: IPNetwork?
  public var status: Decision.Status
  public var policy: String
  public var reason: String
  public var step: Int
  public var expires: Timestamp?
  public var trigger: String
  public var source: IPNetwork?
  public var isLogged: Bool

  public init(_ decision: Decision, name: String?) {
    id = decision.id
    time = decision.time
    vm = decision.incarnation?.uuid
    self.name = name
    measure = decision.measure.name
    network = decision.measure.network
    status = decision.status
    policy = decision.policy
    reason = decision.reason
    step = decision.step
    expires = decision.expires
    trigger = decision.trigger
    source = decision.source
    isLogged = decision.isLogged
  }

  private static let columns =
    "id, time, vm, name, measure, network, status, policy, reason, step, expires, trigger, source, logged"

  static let insertion = """
    INSERT INTO decision (\(columns)) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
    ON CONFLICT (id, measure, network, vm) DO UPDATE SET time = excluded.time, name = ifnull(excluded.name, name),
    status = excluded.status, policy = excluded.policy, reason = excluded.reason, step = excluded.step,
    expires = excluded.expires, trigger = excluded.trigger, source = excluded.source, logged = excluded.logged
    """
  static let selection = "SELECT \(columns) FROM decision"

  var values: [SQLiteValue] {
    [
      .integer(Int64(bitPattern: id)), .integer(time.nanoseconds), .text(vm?.description ?? ""),
      name.map { .text($0) } ?? .null, .text(measure), .text(network?.description ?? ""), .text(status.rawValue),
      .text(policy), .text(reason), .integer(Int64(step)), expires.map { .integer($0.nanoseconds) } ?? .null,
      .text(trigger), source.map { .text($0.description) } ?? .null, .integer(isLogged ? 1 : 0),
    ]
  }

  /// nil for a row that this version does not understand.
  init?(_ row: SQLiteRow) {
    guard let status = Decision.Status(rawValue: row.text(6)) else { return nil }
    id = UInt64(bitPattern: row.integer(0))
    time = Timestamp(nanoseconds: row.integer(1))
    vm = DomainUUID(row.text(2))
    name = row.isNull(3) ? nil : row.text(3)
    measure = row.text(4)
    network = IPNetwork(row.text(5))
    self.status = status
    policy = row.text(7)
    reason = row.text(8)
    step = Int(row.integer(9))
    expires = row.isNull(10) ? nil : Timestamp(nanoseconds: row.integer(10))
    trigger = row.text(11)
    source = IPNetwork(row.text(12))
    isLogged = row.integer(13) != 0
  }
}
