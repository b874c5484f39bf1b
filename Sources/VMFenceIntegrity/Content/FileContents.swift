public import VMFenceCore

/// What was written to a protected file, read back from the disk: for a file that is new, replaced or renamed its beginning, for
/// another what was written, with up to `lead` bytes before it, so that a pattern across the border is found.
public struct FileContents: Hashable, Sendable {
  /// Bytes before what was written, at the most.
  public static let lead: UInt64 = 4096

  public var time: Timestamp
  public var incarnation: Incarnation
  public var disk: String
  /// The number of the block request that showed the change first.
  public var sequence: UInt64
  public var path: [UInt8]
  public var inode: UInt64
  /// Where in the file `bytes` begin.
  public var offset: UInt64
  public var bytes: [UInt8]
  /// More was written than `contentLimit` allows: these are the first bytes of it.
  public var isCut: Bool

  public init(
    time: Timestamp, incarnation: Incarnation, disk: String, sequence: UInt64, path: [UInt8], inode: UInt64,
    offset: UInt64, bytes: [UInt8], isCut: Bool
  ) {
    self.time = time
    self.incarnation = incarnation
    self.disk = disk
    self.sequence = sequence
    self.path = path
    self.inode = inode
    self.offset = offset
    self.bytes = bytes
    self.isCut = isCut
  }

  /// What is told when a rule matches them.
  public func event(matching rule: RuleMetadata) -> FileEvent {
    FileEvent(
      time: time, incarnation: incarnation, disk: disk, sequence: sequence, operation: .match, path: path, inode: inode,
      offset: offset, length: UInt64(bytes.count),
      changes: [
        .init(
          attribute: "rule", old: "",
          new: "\(rule.gid):\(rule.sid):\(rule.revision) \(rule.message.escapedForDisplay)")
      ], severity: rule.priority)
  }
}
