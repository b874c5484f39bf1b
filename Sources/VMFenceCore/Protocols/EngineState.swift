/// What an inspector remembers of the traffic, as bytes: to go on elsewhere (a migration) or later (a restart).
///
/// The bytes are the engine's own, versioned, and hold no compiled rules. Times in them are relative to the moment of saving.
public struct SavedEngineState: Sendable, Hashable {
  public var bytes: [UInt8]
  /// What is in them, and what there was no room for.
  public var report: EngineStateReport

  public init(bytes: [UInt8], report: EngineStateReport) {
    self.bytes = bytes
    self.report = report
  }
}

/// How much of a state was saved or restored, kind by kind.
public struct EngineStateReport: Sendable, Hashable, CustomStringConvertible {
  public struct Item: Sendable, Hashable {
    /// In the plural: flows, streams …
    public var name: String
    public var kept: Int
    /// No room, or no rule knows it any more.
    public var dropped: Int

    public init(_ name: String, kept: Int = 0, dropped: Int = 0) {
      self.name = name
      self.kept = kept
      self.dropped = dropped
    }
  }

  /// In a fixed order.
  public var items: [Item]

  public init(_ items: [Item] = []) { self.items = items }

  public var description: String {
    items.map { $0.dropped == 0 ? "\($0.kept) \($0.name)" : "\($0.kept) \($0.name) (\($0.dropped) dropped)" }
      .joined(separator: ", ")
  }
}

public struct EngineStateError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// The engine keeps no state that could be restored.
    public static let unsupported = Code("unsupported")
    /// Not a state, or one of another version.
    public static let unknownFormat = Code("unknown-format")
    /// Cut off, changed, or never made by an engine.
    public static let damaged = Code("damaged")
  }

  public var code: Code
  public var message: String
  public var remedy: String
  public var place: SourcePlace? { nil }

  public init(_ code: Code, _ message: String, remedy: String = "") {
    self.code = code
    self.message = message
    self.remedy = remedy
  }
}

extension PacketInspector where Self: ~Copyable {
  /// Nothing is remembered.
  public func saveState(at now: Timestamp, limit: Int) -> SavedEngineState {
    SavedEngineState(bytes: [], report: EngineStateReport())
  }

  public mutating func restoreState(
    _ bytes: [UInt8], at now: Timestamp?
  ) throws(EngineStateError) -> EngineStateReport {
    guard bytes.isEmpty else {
      throw EngineStateError(.unsupported, "this engine cannot take over a state", remedy: "start it without one")
    }
    return EngineStateReport()
  }
}
