/// Keeps records across restarts: baselines, the alerts and decisions of the past, whatever else has a name and bytes.
///
/// Records lie in tables, ordered by their keys as bytes; who wants them by time begins the key with the time
/// (`StateKey`). What the bytes mean is the business of whoever writes them. Safe to use from any thread; calls wait for
/// the disk, so they have no place on a packet's or a block request's way.
public protocol StateStore: Sendable {
  /// Does all changes, in their order, or none of them. What was committed is durable.
  func commit(_ changes: [StateChange]) throws(StateStoreError)

  /// The records of a table with `start <= key`, and `key < end` if an end is given, in the order of their keys; at most
  /// `limit` of them.
  func records(
    in table: String, from start: [UInt8], to end: [UInt8]?, limit: Int
  ) throws(StateStoreError) -> [StateRecord]
}

public struct StateRecord: Hashable, Sendable {
  public var key: [UInt8]
  public var value: [UInt8]

  public init(key: [UInt8], value: [UInt8]) {
    self.key = key
    self.value = value
  }
}

public enum StateChange: Hashable, Sendable {
  /// Replaces what the key had.
  case put(table: String, key: [UInt8], value: [UInt8])
  /// A key that is not there is no error.
  case remove(table: String, key: [UInt8])
  /// All keys with `start <= key`, and `key < end` if an end is given.
  case removeRange(table: String, from: [UInt8], to: [UInt8]?)
}

extension StateStore {
  public func value(in table: String, for key: [UInt8]) throws(StateStoreError) -> [UInt8]? {
    try records(in: table, from: key, to: key + [0], limit: 1).first?.value
  }

  /// Shows every record of a range, in the order of the keys, a batch in memory at a time. What is changed meanwhile may
  /// or may not be seen.
  public func forEach(
    in table: String, from start: [UInt8] = [], to end: [UInt8]? = nil,
    _ body: (StateRecord) throws(StateStoreError) -> Void
  ) throws(StateStoreError) {
    var position = start
    while true {
      let batch = try records(in: table, from: position, to: end, limit: 1024)
      for record in batch { try body(record) }
      guard batch.count == 1024, let last = batch.last else { return }
      position = last.key + [0]
    }
  }
}

/// Parts of keys that order as what they stand for.
public enum StateKey {
  /// Eight bytes, big-endian; negative times come before positive ones.
  public static func time(_ time: Timestamp) -> [UInt8] { number(UInt64(bitPattern: time.nanoseconds) ^ 1 << 63) }

  /// Eight bytes, big-endian.
  public static func number(_ number: UInt64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: number >> UInt64(56 - 8 * $0)) }
  }
}

/// Something went wrong with what is to be kept.
public struct StateStoreError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    public static let permissionDenied = Code("permission-denied")
    /// No room: nothing of the commit was done.
    public static let full = Code("full")
    public static let inputOutput = Code("input-output")
    /// What lies there is not a store, or is damaged.
    public static let corrupt = Code("corrupt")
    /// Another process is writing, for longer than is waited.
    public static let busy = Code("busy")
    /// Made by a later version.
    public static let unknownVersion = Code("unknown-version")
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace?
  public var remedy: String

  public init(_ code: Code, _ message: String, at place: SourcePlace? = nil, remedy: String = "") {
    self.code = code
    self.message = message
    self.place = place
    self.remedy = remedy
  }
}
