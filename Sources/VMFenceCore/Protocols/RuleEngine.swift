/// Turns rule texts into compiled rules. What inspects packets is a `PacketInspector`, made from what this compiles.
public protocol RuleEngine: Sendable {
  associatedtype Rules: CompiledRules

  /// Compiles a rule set. Every rule that cannot be used is in the result's diagnostics, with its place.
  ///
  /// - Throws: when nothing usable came out, or anything was wrong and the request says `onBadRule == .fail`.
  func compile(_ request: RuleCompilationRequest) throws(RuleCompilationError) -> RuleCompilation<Rules>
}

/// Rules in the form in which detectors use them: one flat, immutable image, shared by every detector with equal rules,
/// and what the collector needs to say about a rule that fired.
public protocol CompiledRules: Sendable {
  /// The image. Two compilations of equal input give equal bytes.
  var image: RuleImage { get }

  /// Takes over an image that another process compiled. Validates all of it: no index, length or offset in it is used
  /// later without having been checked here.
  init(image: RuleImage) throws(RuleCompilationError)

  var ruleCount: Int { get }

  /// What the inspectors of these rules count, for whoever shows it: the detector hands over numbers alone, and this side has the words. 128 at the most.
  static var inspectorCounters: [InspectorCounter] { get }

  /// What there is to say of rule `index` (0 ..< `ruleCount`), for the collector's side: an alert record names its rule
  /// by this index.
  func metadata(at index: Int) -> RuleMetadata
}

extension CompiledRules {
  /// Nothing is counted.
  public static var inspectorCounters: [InspectorCounter] { [] }
}

/// One thing that an inspector counts.
public struct InspectorCounter: Hashable, Sendable {
  public enum Kind: Sendable, Hashable {
    /// How often something happened; never falls.
    case total
    /// A total of what made the inspection less than it should be: a bound was reached, something was left out or forgotten.
    case limit
    /// How much there is now, or was at the most.
    case level
  }

  /// In lower case, words joined by underscores: `work_limit_hits`.
  public let name: String
  public let kind: Kind
  /// A sentence.
  public let meaning: String

  public init(_ name: String, _ kind: Kind, _ meaning: String) {
    self.name = name
    self.kind = kind
    self.meaning = meaning
  }

  /// A total.
  public init(_ name: String, _ meaning: String) { self.init(name, .total, meaning) }
}

/// Inspects the packets of one domain, in order. Used by one thread at a time.
public protocol PacketInspector: ~Copyable {
  associatedtype Rules: CompiledRules

  static func make(rules: Rules, configuration: InspectorConfiguration) throws(RuleCompilationError) -> Self

  /// Looks at one frame; adds alerts to `output` and sets its verdict. Allocates nothing in steady state. Never traps on any bytes.
  mutating func inspect(_ frame: FrameMetadata, _ bytes: RawSpan, into output: inout InspectionOutput)

  /// There are no more packets: looks at what waits for some (streams that were not acknowledged). Each call adds the alerts of at most
  /// one flow; call it, with an empty `output`, until it returns false.
  mutating func finish(into output: inout InspectionOutput) -> Bool

  /// No packet came before `time`: looks at what has waited for one too long by then (data that its receiver has read, streams and fragments
  /// whose time is over). Each call adds the alerts of at most one flow, and sets no verdict; call it until it returns false, or go on later
  /// where it is to have more room in `output`.
  ///
  /// - `time`: packet time.
  mutating func advance(to time: Timestamp, into output: inout InspectionOutput) -> Bool

  /// Goes on with other rules from the next packet, keeping flow state.
  mutating func replaceRules(with rules: Rules) throws(RuleCompilationError)

  /// What it remembers of flows, streams, fragments and rules, for `restoreState` of another inspector or another process. Changes nothing.
  ///
  /// - `now`: packet time; the saved times are relative to it.
  /// - `limit`: bytes at the most. What matters least is left out, and counted in the report.
  func saveState(at now: Timestamp, limit: Int) -> SavedEngineState

  /// Goes on with a saved state instead of what it remembers now, whatever rules that came from: what these rules do not know is
  /// dropped, and counted.
  ///
  /// `bytes` may come from a process that an attacker owns, or another host: they are checked whole before anything changes.
  ///
  /// - `now`: packet time here, to which the saved times become relative, so that what remained of a timeout remains. nil: the clock
  ///   is the one of the saved state.
  /// - Throws: when the bytes are not a state; nothing has changed then.
  mutating func restoreState(_ bytes: [UInt8], at now: Timestamp?) throws(EngineStateError) -> EngineStateReport

  /// Named counters of the engine, for display: flows, evictions, malformed packets … In a fixed order.
  var statistics: [(name: String, value: UInt64)] { get }

  /// Hands over the values of `Rules.inspectorCounters`, in their order. Allocates nothing.
  func forEachCounter(_ body: (UInt64) -> Void)
}

extension PacketInspector where Self: ~Copyable {
  /// Nothing waits.
  public mutating func finish(into output: inout InspectionOutput) -> Bool { false }
  /// Nothing is counted.
  public func forEachCounter(_ body: (UInt64) -> Void) {}
  /// Nothing waits.
  public mutating func advance(to time: Timestamp, into output: inout InspectionOutput) -> Bool { false }
}

public struct RuleCompilationRequest: Sendable {
  public enum OnBadRule: Hashable, Sendable {
    /// Load the rest and list what was bad.
    case skip
    /// Load nothing.
    case fail
  }

  public var sources: [RuleSource]
  /// Variables by name without the dollar sign; they go before those that the files define.
  public var variables: [String: String]
  public var onBadRule: OnBadRule

  public init(sources: [RuleSource], variables: [String: String] = [:], onBadRule: OnBadRule = .skip) {
    self.sources = sources
    self.variables = variables
    self.onBadRule = onBadRule
  }
}

/// One rule file, read.
public struct RuleSource: Hashable, Sendable {
  /// The name that diagnostics use.
  public var file: String
  public var text: [UInt8]
  /// nil: detected, with a note that says so.
  public var dialect: RuleDialect?

  public init(file: String, text: [UInt8], dialect: RuleDialect? = nil) {
    self.file = file
    self.text = text
    self.dialect = dialect
  }
}

public enum RuleDialect: String, Hashable, Sendable, CaseIterable {
  case snort2
  case snort3
  case suricata
}

public struct RuleCompilation<Rules: CompiledRules>: Sendable {
  public var rules: Rules
  /// Everything to be said: one error for each rule that was left out, warnings, notes.
  public var diagnostics: [Diagnostic]
  public var loaded: Int
  public var rejected: Int
  /// Rules that say themselves that they are for another engine, or another version of it.
  public var skipped: Int

  public init(rules: Rules, diagnostics: [Diagnostic], loaded: Int, rejected: Int, skipped: Int = 0) {
    self.rules = rules
    self.diagnostics = diagnostics
    self.loaded = loaded
    self.rejected = rejected
    self.skipped = skipped
  }
}

/// What a rule says about itself: the constant part of each of its alerts.
public struct RuleMetadata: Hashable, Sendable {
  public var gid: UInt32
  public var sid: UInt32
  public var revision: UInt32
  public var message: String
  public var classification: String
  /// The classification's description, if a `classification.config` gave one.
  public var classificationText: String
  /// 1 is the most severe.
  public var priority: Int
  public var references: [String]
  public var metadata: [String: [String]]
  public var action: RuleAction
  public var place: SourcePlace?
  /// Which side the attack is against, if the rule says so (`target`).
  public var target: Target?
  /// What its expressions capture for the alert, by name (`AlertRecord.captures`).
  public var captures: [String] = []

  public enum Target: UInt8, Hashable, Sendable, CaseIterable { case source = 1, destination }

  public init(
    gid: UInt32 = 1, sid: UInt32, revision: UInt32 = 0, message: String = "", classification: String = "",
    classificationText: String = "", priority: Int = 3, references: [String] = [],
    metadata: [String: [String]] = [:], action: RuleAction = .alert, place: SourcePlace? = nil,
    target: Target? = nil
  ) {
    self.gid = gid
    self.sid = sid
    self.revision = revision
    self.message = message
    self.classification = classification
    self.classificationText = classificationText
    self.priority = priority
    self.references = references
    self.metadata = metadata
    self.action = action
    self.place = place
    self.target = target
  }
}

/// The action a rule's head names, in all dialects together.
public enum RuleAction: UInt8, Hashable, Sendable, CaseIterable, BitwiseCopyable {
  case alert
  case log
  case pass
  case drop
  case reject
  case sdrop
  case block
  case rewrite
  case rejectSource
  case rejectDestination
  case rejectBoth
  /// Snort 2: alert, then turn on the `dynamic` rules that name this one.
  case activate
  /// Snort 2: idle until activated, then log a number of packets.
  case dynamic
  case react
}

public struct InspectorConfiguration: Hashable, Sendable {
  /// Whether checksums in frames of state `unknown` are verified; frames that fail are not inspected further.
  public var verifiesChecksums: Bool
  /// Whether verdicts act on the packet itself, or only tell what would have been.
  public var isInline: Bool
  /// How many flows are kept at the most.
  public var flowCapacity: Int
  /// Seeds the keyed hashes of tables that the network fills. Fixed in a replay, random in the daemon.
  public var hashKey: (UInt64, UInt64) { (hashKeyLow, hashKeyHigh) }
  public var hashKeyLow: UInt64
  public var hashKeyHigh: UInt64
  /// What else the engine is told, by the names that it documents. It checks them in `PacketInspector.make`. All names and values
  /// together have at most `settingsCapacity` bytes, because a detector process is given them in a control page.
  public var settings: [String: String]

  /// In bytes of UTF-8, with two more for each name and each value.
  public static let settingsCapacity = 2048

  public init(
    verifiesChecksums: Bool = true, isInline: Bool = false, flowCapacity: Int = 65_536,
    hashKey: (UInt64, UInt64) = (0, 0), settings: [String: String] = [:]
  ) {
    self.verifiesChecksums = verifiesChecksums
    self.isInline = isInline
    self.flowCapacity = flowCapacity
    self.settings = settings
    hashKeyLow = hashKey.0
    hashKeyHigh = hashKey.1
  }
}

public struct RuleCompilationError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    /// At least one rule is wrong, and the caller wanted all or nothing.
    public static let badRule = Code("bad-rule")
    /// No rule could be used.
    public static let noRules = Code("no-rules")
    /// A rule image is damaged, or of another version or machine.
    public static let badImage = Code("bad-image")
    public static let tooLarge = Code("too-large")
    /// A setting of the inspector is unknown, or has a value that it cannot have.
    public static let badSetting = Code("bad-setting")
    public static let inputOutput = Code("input-output")
    public static let failed = Code("failed")
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace?
  public var remedy: String
  /// All that was found, not just the first.
  public var diagnostics: [Diagnostic]

  public init(
    _ code: Code, _ message: String, at place: SourcePlace? = nil, remedy: String = "", diagnostics: [Diagnostic] = []
  ) {
    self.code = code
    self.message = message
    self.place = place
    self.remedy = remedy
    self.diagnostics = diagnostics
  }
}
