#if Daemon
import Foundation
import VMFenceCore
import VMFenceIntegrity

/// What the guest's owner declared that should be watched: a file with a path or pattern a line, which whoever starts this process writes. The guest
/// chose what is in it, so nothing in it stands in the way of what the operator wants: what cannot be watched is left out, and told.
struct DeclaredPaths {
  /// As many as the policy channel takes of a guest.
  static let limit = 64
  /// Of the file, in bytes; what lies behind is not read.
  static let byteLimit = 64 << 10
  /// Of a path, in bytes: as long as the policy channel takes one.
  static let pathLimit = 255
  /// Of the components of a path, so many may have `*` or `?` in them, `**` among them: each of them can cost a comparison with every name on the disk.
  static let wildcardLimit = 8

  private(set) var rules: [ProtectionPolicy.Rule] = []
  /// What was left out, and why, with its place. Escaped.
  private(set) var problems: [String] = []

  /// - `room`: for so many rules besides the operator's.
  init(file: String, attributes: FileAttributes, room: Int) {
    let bytes: [UInt8]
    do throws(UnreadableFile) { bytes = try WholeFile.readBeginning(file, atMost: Self.byteLimit) } catch {
      problems = ["\(file.escapedForDisplay): it cannot be read: \(error.reason)"]
      return
    }
    let name = file.escapedForDisplay
    if bytes.count == Self.byteLimit { problems.append("\(name): what is behind \(bytes.count) bytes") }
    let lines = bytes.split(separator: 0x0A, omittingEmptySubsequences: false)
    for (index, line) in lines.enumerated() where !line.isEmpty {
      let problem: String
      if rules.count >= min(Self.limit, room) {
        problem = "more paths than there is room for: \(rules.count) are taken"
      } else if line.count > Self.pathLimit {
        problem = "a path of \(line.count) bytes; at most \(Self.pathLimit) are taken"
      } else if line.split(separator: 0x2F).count(where: NamePattern.isOne) > Self.wildcardLimit {
        problem = "more than \(Self.wildcardLimit) components with * or ?"
      } else if let pattern = String(validating: line, as: UTF8.self), pattern.utf8.first == UInt8(ascii: "/") {
        let rule = ProtectionPolicy.Rule(pattern, attributes: attributes)
        do throws(IntegrityError) {
          _ = try ProtectionPolicy([rule])
          rules.append(rule)
          continue
        } catch { problem = error.message }
      } else {
        problem = "no path in UTF-8 that begins with a slash"
      }
      problems.append("\(name):\(index + 1): \(problem)")
      if problems.count > Self.limit { return }
    }
  }

  /// Nil when nothing was left out.
  func alert(of incarnation: Incarnation, at time: Timestamp) -> PlatformAlert? {
    guard let first = problems.first else { return nil }
    return PlatformAlert(
      time: time, incarnation: incarnation, kind: .integrityLimit,
      message: "not all that the guest's owner declared is watched: \(first)"
        + (problems.count > 1 ? ", and \(problems.count - 1) more" : ""), severity: 2, count: UInt64(problems.count))
  }
}
#endif
