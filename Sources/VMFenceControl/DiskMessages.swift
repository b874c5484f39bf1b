internal import Foundation

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
    /// Answered at once, and again each time when another request waits for a decision, or none does any more.
    case follow
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

  public init(
    _ verb: Verb, paths: [String]? = nil, duration: Double? = nil, request: UInt64? = nil, verdict: Verdict? = nil
  ) {
    self.verb = verb
    self.paths = paths
    self.duration = duration
    self.request = request
    self.verdict = verdict
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
  }

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
