internal import VMFenceCore

/// What is protected on one disk, and how.
public struct ProtectionPolicy: Sendable {
  /// What is done about changes, the strongest last: where several rules match a path, the strongest counts.
  public enum Action: UInt8, Hashable, Sendable, Comparable, CaseIterable {
    /// Report changes.
    case alert
    /// Report changes, and keep what a protected file contained before them (`KeptContents`), as far as there is room. Nothing
    /// is refused, and nothing is written back while the guest runs: its kernel holds what it wrote in its own memory, and
    /// would not see it. Names, owners and modes are not kept. Without a journal, contents of a file that is truncated,
    /// deleted or replaced are not kept either: their blocks may have been another file's before the disk shows why.
    case rollback
    /// Report changes, and refuse requests that change what a protected file contains at its place. What the guest does
    /// with metadata (renaming another file over it, truncating it) is reported and not refused.
    case denyData
    /// Report, and hold the request that `denyMetadata` would refuse, until somebody decides about it or `freezeLimit` has
    /// passed (`BlockVerdict.hold`). **The whole disk stands still meanwhile**; a guest's kernel complains of tasks that hang
    /// after two minutes. Pausing the domain is for whoever has a hypervisor's control (`FrozenDomains`). What is refused
    /// then is refused as by `denyMetadata`, with the same consequences; of what passes, the contents before are kept as by
    /// `rollback`. Without a journal only contents are judged.
    case freeze
    /// As `denyData`, and refuse what changes a protected file's name, inode or attributes. On a file system with a journal
    /// the commit block of a transaction that holds such a change is refused: **the guest's journal stops**, its file
    /// system becomes read-only, and nothing else in that transaction is kept either. Without a journal metadata reach the
    /// disk one by one and in any order; there this is as `denyData`.
    case denyMetadata

    public static func < (a: Action, b: Action) -> Bool { a.rawValue < b.rawValue }

    /// As it is written in policies: `alert`, `rollback`, `deny-data`, `freeze`, `deny-metadata`.
    public var name: String {
      switch self {
      case .alert: "alert"
      case .rollback: "rollback"
      case .denyData: "deny-data"
      case .freeze: "freeze"
      case .denyMetadata: "deny-metadata"
      }
    }

    /// Nil when no verb has this name.
    public init?(name: String) {
      guard let action = Self.allCases.first(where: { $0.name == name }) else { return nil }
      self = action
    }

    /// Whether what was there before a change is kept.
    var keepsContents: Bool { self == .rollback || self == .freeze }
  }

  /// A path from the root of the file system, or a pattern of such paths.
  ///
  /// In a component `*` stands for any bytes and `?` for any one byte; a component `**` stands for any number of
  /// components (at the end, for at least one). Patterns are compared with the bytes that the disk has. A pattern
  /// that matches a directory protects the directory itself; `/etc/**` protects all that is in it. A pattern that begins
  /// with `!` takes what it matches, and all that is below, out of what the others protect.
  public struct Rule: Hashable, Sendable {
    public var pattern: String
    public var action: Action
    /// Which changes are told. Names that come, go or change are told whatever it says.
    public var attributes: FileAttributes
    /// 1 is the most severe.
    public var severity: Int
    /// A file that loses its protected name and lives on stays followed, and is told of under the name it had. Without
    /// this, the name is what is protected: whatever file has it.
    public var followsObject: Bool
    public init(
      _ pattern: String, action: Action = .alert, attributes: FileAttributes = .standard, severity: Int = 2,
      followsObject: Bool = false
    ) {
      self.pattern = pattern
      self.action = action
      self.attributes = attributes
      self.severity = severity
      self.followsObject = followsObject
    }
  }

  public static let patternLimit = 4096
  public static let patternBytesLimit = 4096

  public let rules: [Rule]
  private let tree: PatternTree

  /// - Throws: `badPattern`, naming the pattern.
  public init(_ rules: [Rule]) throws(IntegrityError) {
    self.rules = rules
    guard rules.count <= Self.patternLimit else {
      throw IntegrityError(
        .badPattern, "\(rules.count) protected paths; at most \(Self.patternLimit) are taken", remedy: "use patterns")
    }
    var paths: [(rule: Rule, components: [[UInt8]], isExcluding: Bool)] = []
    for rule in rules {
      let bytes = Array((rule.pattern.hasPrefix("!") ? rule.pattern.dropFirst() : rule.pattern[...]).utf8)
      func bad(_ why: String) -> IntegrityError {
        IntegrityError(
          .badPattern, "protected path \"\(rule.pattern.escapedForDisplay)\": \(why)",
          remedy: "write a path from the root of the guest's file system, as /etc/passwd or /etc/**")
      }
      guard bytes.first == 0x2F else { throw bad("it does not begin with a slash") }
      guard bytes.count <= Self.patternBytesLimit else {
        throw bad("it is longer than \(Self.patternBytesLimit) bytes")
      }
      guard !bytes.contains(0) else { throw bad("it has a NUL byte in it") }
      let parts = bytes.dropFirst().split(separator: 0x2F, omittingEmptySubsequences: false).map(Array.init)
      if bytes.count > 1, parts.contains(where: { $0.isEmpty || $0 == [0x2E] || $0 == [0x2E, 0x2E] }) {
        throw bad("empty components, . and .. cannot be matched")
      }
      guard parts.count <= 128 else { throw bad("it has more than 128 components") }
      paths.append((rule, bytes.count == 1 ? [] : parts, rule.pattern.hasPrefix("!")))
    }
    tree = PatternTree(paths)
  }

  /// What is to be done for a path from the root; nil when it is not protected.
  public func action(forPath path: [UInt8]) -> Action? { protection(forPath: path)?.action }

  /// What the rules that match a path say together: the strongest action, all attributes, the highest severity.
  public struct Protection: Hashable, Sendable {
    public var action: Action
    public var attributes: FileAttributes
    public var severity: Int
    public var followsObject: Bool
  }

  /// What is said of a path from the root; nil when it is not protected.
  public func protection(forPath path: [UInt8]) -> Protection? {
    var frontier = rootFrontier
    for name in path.split(separator: 0x2F) where !frontier.isEmpty { frontier = advance(frontier, by: Array(name)) }
    return protection(at: frontier)
  }

  private func protection(at frontier: Frontier) -> Protection? {
    var result: Protection?
    for place in frontier.places {
      if let own = tree.places[Int(place)].protection { result = result.with(own) }
    }
    return result
  }

  /// Whether some rule asks for reads.
  var tellsReads: Bool { rules.contains { $0.attributes.contains(.reads) } }

  /// Whether some rule asks for hashes.
  var tellsHashes: Bool { rules.contains { $0.attributes.contains(.sha256) } }

  /// Whether some rule asks for contents to be handed to rules.
  var tellsContents: Bool { rules.contains { $0.attributes.contains(.content) } }

  /// Whether some rule refuses, or holds, changes of contents.
  var refusesContents: Bool { rules.contains { $0.action >= .denyData } }

  /// Whether some rule refuses or holds changes of metadata.
  var judgesMetadata: Bool { rules.contains { $0.action >= .freeze } }

  /// Whether some rule asks for contents to be kept.
  var keepsContents: Bool { rules.contains { $0.action.keepsContents } }

  /// Which patterns are how far matched by a path: all that must be known of a directory to go on to its names.
  package struct Frontier: Hashable, Sendable {
    /// Of the tree of patterns, sorted.
    var places: [UInt32]
    package var isEmpty: Bool { places.isEmpty }
  }

  /// The frontier at the root directory.
  package var rootFrontier: Frontier { Frontier(places: tree.root) }

  /// The frontier one name further; empty when neither that path nor anything below it can match.
  package func advance(_ frontier: Frontier, by name: [UInt8]) -> Frontier {
    Frontier(places: tree.advance(frontier.places, by: name))
  }

  /// What is to be done for a path with this frontier; nil when it is not protected itself.
  func action(at frontier: Frontier) -> Action? { protection(at: frontier)?.action }

  /// Whether something below a directory with this frontier can match.
  package func reachesBelow(_ frontier: Frontier) -> Bool {
    frontier.places.contains { tree.places[Int($0)].leadsOn }
  }
}
