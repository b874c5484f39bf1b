public import VMFenceCore

/// What is not as the baseline says.
public struct BaselineDifference: Hashable, Sendable {
  public enum Kind: String, Sendable { case added, removed, changed }

  public var kind: Kind
  /// As it is now, or was if it is gone.
  public var entry: BaselineEntry
  /// For what has changed: attribute, old and new value as text.
  public var changes: [FileEvent.AttributeChange]

  /// Compares entries in the order of their keys, both without repetition.
  public static func between(_ old: [BaselineEntry], _ new: [BaselineEntry]) -> [BaselineDifference] {
    var result: [BaselineDifference] = []
    var (a, b) = (0, 0)
    while a < old.count || b < new.count {
      let before = a < old.count ? old[a] : nil
      let after = b < new.count ? new[b] : nil
      if let before, after.map({ before.precedes($0) }) ?? true {
        result.append(BaselineDifference(kind: .removed, entry: before, changes: []))
        a += 1
      } else if let after, before.map({ after.precedes($0) }) ?? true {
        result.append(BaselineDifference(kind: .added, entry: after, changes: []))
        b += 1
      } else if let before, let after {
        if before != after {
          result.append(BaselineDifference(kind: .changed, entry: after, changes: changes(before, after)))
        }
        a += 1
        b += 1
      }
    }
    return result
  }

  private static func changes(_ old: BaselineEntry, _ new: BaselineEntry) -> [FileEvent.AttributeChange] {
    func octal(_ mode: UInt32) -> String { "0" + String(mode, radix: 8) }
    func hex(_ bytes: [UInt8]) -> String { bytes.map { $0.hexadecimal(width: 2) }.joined() }
    let all: [(String, String, String)] = [
      ("sha256", hex(old.sha256), hex(new.sha256)), ("size", "\(old.size)", "\(new.size)"),
      ("mode", octal(old.mode), octal(new.mode)), ("uid", "\(old.userID)", "\(new.userID)"),
      ("gid", "\(old.groupID)", "\(new.groupID)"), ("inode", "\(old.inode)", "\(new.inode)"),
      ("links", "\(old.links)", "\(new.links)"), ("xattrs", hex(old.attributes), hex(new.attributes)),
      ("mtime", "\(old.modificationTime)", "\(new.modificationTime)"),
    ]
    return all.filter { $0.1 != $0.2 }.map { .init(attribute: $0.0, old: $0.1, new: $0.2) }
  }
}
