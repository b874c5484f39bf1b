internal import Foundation
public import VMFenceCore

/// What is asked of the process that serves one guest's disk, over its control socket: one JSON object a line, answered by one
/// line in the form of `ControlRequest`'s answers.
///
/// ```
/// {"verb":"expect","paths":["/usr/**"],"duration":7200}
/// {"verb":"decide","request":4711,"verdict":"deny"}
/// ```
public struct DiskControlRequest: Codable, Sendable, Hashable {
  public enum Verb: String, Codable, Sendable, CaseIterable {
    case status
    /// Changes of these paths are told as announced from now on, for so long.
    case expect
    /// The request that is held passes, or fails.
    case decide
    /// Answered at once, and again each time when another request waits for a decision, or none does any more. With `events`, lines with
    /// the changes to protected files come between, those first that nobody has acknowledged: `{"ok":true,"number":7,"event":{…}}`.
    case follow
    /// Whoever follows has taken the events up to `number`: they are not told again to whoever follows after it. Not answered.
    case acknowledge
  }

  public enum Verdict: String, Codable, Sendable { case allow, deny }

  /// The longest time that can be announced, in seconds.
  public static let durationLimit: Double = 7 * 86_400

  public var verb: Verb
  public var paths: [String]?
  /// In seconds.
  public var duration: Double?
  /// The number of the request that is decided about, so that nobody decides about another one than was looked at.
  public var request: UInt64?
  public var verdict: Verdict?
  /// Whoever follows is told of changes to protected files, too.
  public var events: Bool?
  /// The number of an event; those of a process grow by one.
  public var number: UInt64?

  public init(
    _ verb: Verb, paths: [String]? = nil, duration: Double? = nil, request: UInt64? = nil, verdict: Verdict? = nil,
    events: Bool? = nil, number: UInt64? = nil
  ) {
    self.verb = verb
    self.paths = paths
    self.duration = duration
    self.request = request
    self.verdict = verdict
    self.events = events
    self.number = number
  }
}

/// How a disk's process stands; the answer to each of its requests.
public struct DiskControlStatus: Codable, Sendable, Hashable {
  public struct Window: Codable, Sendable, Hashable {
    public var paths: [String]
    /// In seconds from now.
    public var remaining: Double

    public init(paths: [String], remaining: Double) {
      self.paths = paths
      self.remaining = remaining
    }

    /// Whole seconds, for people.
    package var shownRemaining: Int { DiskControlStatus.shown(remaining) }
  }

  /// A request that waits for a decision; the whole disk waits with it.
  public struct Held: Codable, Sendable, Hashable {
    public var request: UInt64
    /// What it would change, escaped for people; long ones cut.
    public var paths: [String]
    /// In seconds, how long it has waited, and when it is decided without anybody.
    public var waiting: Double
    public var remaining: Double

    public init(request: UInt64, paths: [String], waiting: Double, remaining: Double) {
      self.request = request
      self.paths = paths
      self.waiting = waiting
      self.remaining = remaining
    }

    /// Whole seconds, for people.
    package var shownWaiting: Int { DiskControlStatus.shown(waiting) }
    package var shownRemaining: Int { DiskControlStatus.shown(remaining) }
  }

  /// The process may say any number, which need not be one that an `Int` holds: about thirty years at the most are shown.
  private static func shown(_ seconds: Double) -> Int { Int(min(max(0, seconds), 1_000_000_000)) }

  public var expected: [Window]
  public var held: Held?
  public var requests: UInt64
  public var denied: UInt64
  /// Where a policy is carried out in another way than it says, because of what is on the disk.
  public var limits: [String]

  public init(expected: [Window], held: Held?, requests: UInt64, denied: UInt64, limits: [String] = []) {
    self.expected = expected
    self.held = held
    self.requests = requests
    self.denied = denied
    self.limits = limits
  }
}

/// A change to a protected file, as the process of a disk hands it on to those who follow it: a `FileEvent` without the domain, which is for
/// whoever follows to know.
public struct DiskFileEvent: Codable, Sendable, Hashable {
  /// By the system's clock, in nanoseconds since the epoch.
  public var time: Int64
  private var disk: String
  private var request: UInt64
  private var operation: String
  /// Base64, for a path is bytes.
  private var path: String
  private var oldPath: String?
  private var inode: UInt64
  private var offset: UInt64?
  private var length: UInt64?
  private var changes: [Change]
  private var verdict: String
  private var severity: Int
  private var announced: Bool

  private struct Change: Codable, Hashable {
    var attribute: String
    var old: String
    var new: String
  }

  private static let verdicts: [(name: String, verdict: BlockVerdict)] = [
    ("allow", .allow), ("hold", .hold), ("deny", .deny),
  ]

  /// - `offset`: how far the system's clock is ahead of the event's.
  public init(_ event: FileEvent, shiftedBy offset: Duration) {
    time = (event.time + offset).nanoseconds
    disk = event.disk
    request = event.sequence
    operation = event.operation.rawValue
    path = Data(event.path).base64EncodedString()
    oldPath = event.oldPath.map { Data($0).base64EncodedString() }
    inode = event.inode
    self.offset = event.offset
    length = event.length
    changes = event.changes.map { Change(attribute: $0.attribute, old: $0.old, new: $0.new) }
    verdict = Self.verdicts.first { $0.verdict == event.verdict }?.name ?? ""
    severity = event.severity
    announced = event.isAnnounced
  }

  /// What its words take, in bytes.
  var textBytes: Int {
    [disk, operation, path, oldPath ?? "", verdict].reduce(0) { $0 + $1.utf8.count }
      + changes.reduce(0) { $0 + 64 + $1.attribute.utf8.count + $1.old.utf8.count + $1.new.utf8.count }
  }

  /// The event of that domain, at that time of the receiver's clock; nil when it says something that is not known here.
  public func event(of incarnation: Incarnation, at time: Timestamp) -> FileEvent? {
    guard let operation = FileEvent.Operation(rawValue: operation), (1...255).contains(severity),
      let verdict = Self.verdicts.first(where: { $0.name == verdict })?.verdict,
      let path = Data(base64Encoded: path), let oldPath = Data(base64Encoded: oldPath ?? "")
    else { return nil }
    return FileEvent(
      time: time, incarnation: incarnation, disk: disk, sequence: request, operation: operation, path: Array(path),
      oldPath: self.oldPath == nil ? nil : Array(oldPath), inode: inode, offset: offset, length: length,
      changes: changes.map { .init(attribute: $0.attribute, old: $0.old, new: $0.new) }, verdict: verdict,
      severity: severity, isAnnounced: announced)
  }
}

/// A line between the answers to a follower of a disk's process: an event with its number, or how many the process had no room for since the
/// last line, with the number of the last of them.
package struct DiskEventLine: Codable {
  package var ok = true
  package var event: DiskFileEvent?
  package var number: UInt64?
  package var lost: UInt64?

  package init(event: DiskFileEvent? = nil, number: UInt64? = nil, lost: UInt64? = nil) {
    self.event = event
    self.number = number
    self.lost = lost
  }
}

/// One line of an answer, as every control socket gives it.
public enum ControlAnswer {
  /// - `result`: an encoded JSON value.
  public static func encode(_ result: Result<[UInt8], ControlFailure>) -> [UInt8] {
    switch result {
    case .success(let bytes): return Array("{\"ok\":true,\"result\":".utf8) + bytes + Array("}\n".utf8)
    case .failure(let failure):
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
      let text = (try? encoder.encode(failure)).map { Array($0) } ?? Array("{}".utf8)
      return Array("{\"ok\":false,\"error\":".utf8) + text + Array("}\n".utf8)
    }
  }
}
