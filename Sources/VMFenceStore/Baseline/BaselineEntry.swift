internal import VMFenceCore

/// What a baseline says of one name on a disk.
public struct BaselineEntry: Hashable, Sendable {
  /// The partition's number; 0 for a disk without partitions.
  public var partition: UInt32
  /// Bytes as the guest's file system has them.
  public var path: [UInt8]
  public var inode: UInt64
  /// As stat(2) gives it, with the type.
  public var mode: UInt32
  public var userID: UInt32
  public var groupID: UInt32
  /// In bytes.
  public var size: UInt64
  public var links: UInt32
  /// In nanoseconds since the epoch.
  public var modificationTime: Int64
  /// Of the names and values of the extended attributes; empty when there are none.
  public var attributes: [UInt8]
  /// Of the contents, or of a symbolic link's target; empty for what has none, and for what cannot be read.
  public var sha256: [UInt8]

  public init(
    partition: UInt32, path: [UInt8], inode: UInt64, mode: UInt32, userID: UInt32, groupID: UInt32, size: UInt64,
    links: UInt32, modificationTime: Int64, attributes: [UInt8], sha256: [UInt8]
  ) {
    self.partition = partition
    self.path = path
    self.inode = inode
    self.mode = mode
    self.userID = userID
    self.groupID = groupID
    self.size = size
    self.links = links
    self.modificationTime = modificationTime
    self.attributes = attributes
    self.sha256 = sha256
  }

  /// The order of a baseline: by partition, then by the bytes of the path.
  public var key: [UInt8] { Array(StateKey.number(UInt64(partition)).suffix(4)) + path }

  /// Whether its key comes before another's, without making either.
  public func precedes(_ other: BaselineEntry) -> Bool {
    partition == other.partition
      ? path.lexicographicallyPrecedes(other.path) : partition < other.partition
  }

  private static let fixedBytes = 46

  /// Version 1: eight numbers, big-endian, then both hashes with a byte of length each.
  var encoded: [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Self.fixedBytes + attributes.count + sha256.count)
    bytes.append(1)
    for value in [inode, size, UInt64(bitPattern: modificationTime)] { bytes += StateKey.number(value) }
    for value in [mode, userID, groupID, links] { bytes += StateKey.number(UInt64(value)).suffix(4) }
    bytes += [UInt8(clamping: attributes.count), UInt8(clamping: sha256.count)]
    // Whole at all sizes that occur: 0 and 32.
    bytes += [0, 0, 0]
    bytes += attributes
    bytes += sha256
    return bytes
  }

  /// Nil when the bytes are not such a record.
  init?(_ record: StateRecord) {
    let fixed = Self.fixedBytes
    guard record.key.count > 4, record.value.count >= fixed, record.value[0] == 1 else { return nil }
    let (first, second) = (Int(record.value[41]), Int(record.value[42]))
    guard record.value.count == fixed + first + second else { return nil }
    let decoded = record.value.withRawSpan { span in
      (span.u64(1), span.u64(9), span.u64(17), span.u32(25), span.u32(29), span.u32(33), span.u32(37))
    }
    partition = record.key.withRawSpan { $0.u32(0) }
    path = Array(record.key[4...])
    (inode, size) = (decoded.0, decoded.1)
    modificationTime = Int64(bitPattern: decoded.2)
    (mode, userID, groupID, links) = (decoded.3, decoded.4, decoded.5, decoded.6)
    attributes = Array(record.value[fixed..<fixed + first])
    sha256 = Array(record.value[(fixed + first)...])
  }
}
