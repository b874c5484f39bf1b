internal import VMFenceCore

/// One extended attribute.
public struct ExtAttribute: Hashable, Sendable {
  /// With its prefix, as `user.comment`; bytes as the disk has them.
  public var name: [UInt8]
  /// As getxattr(2) gives it; for one whose value lies in an inode of its own, empty until it is read.
  public var value: [UInt8]
  /// In bytes.
  public var size: UInt32
  /// The inode that holds the value; 0 when the value lies beside the name.
  public var valueInode: UInt32

  /// The value for people: printable text as it is, other bytes in hexadecimal, a long one by its length and hash.
  var summary: String {
    if value.count > 256 {
      return "\(value.count) bytes, sha256 " + SHA256.digest(of: value).map { $0.hexadecimal(width: 2) }.joined()
    }
    if !value.isEmpty, value.allSatisfy({ 0x20..<0x7F ~= $0 }) { return String(decoding: value, as: UTF8.self) }
    return value.isEmpty ? "" : "0x" + value.map { $0.hexadecimal(width: 2) }.joined()
  }
}

/// Reads the attributes in an inode or in a block of attributes.
///
/// Source: `fs/ext4/xattr.h` (`struct ext4_xattr_entry`) and `ext4_xattr_check_entries`.
struct ExtAttributeList {
  private(set) var attributes: [ExtAttribute] = []
  /// The value of `system.data`: what of inline contents does not fit into the block numbers.
  private(set) var inlineData: [UInt8]?
  private(set) var damage: String?

  /// The attributes in an inode: `bytes` begin with the magic number, offsets count from behind it.
  init(inInode bytes: RawSpan) {
    guard bytes.byteCount >= 8 else { return }
    read(bytes, from: 4, base: 4)
  }

  /// The attributes in a block.
  init(inBlock bytes: RawSpan) {
    guard bytes.byteCount >= 32, bytes.u32le(0) == 0xEA02_0000 else {
      damage = "damaged extended attributes: no magic number in their block"
      return
    }
    guard bytes.u32le(8) == 1 else {
      damage = "damaged extended attributes: \(bytes.u32le(8)) blocks of them"
      return
    }
    read(bytes, from: 32, base: 0)
  }

  private mutating func read(_ bytes: RawSpan, from start: Int, base: Int) {
    var offset = start
    var firstValue = bytes.byteCount
    // Each entry takes 16 bytes at least, so this ends.
    while offset + 4 <= bytes.byteCount, bytes.u32le(offset) != 0 {
      guard offset + 16 <= bytes.byteCount else { return report("an entry past their end") }
      let nameLength = Int(bytes.u8(offset))
      let next = offset + (16 + nameLength + 3) & ~3
      guard next <= bytes.byteCount, offset + 16 + nameLength <= bytes.byteCount else {
        return report("a name of \(nameLength) bytes past their end")
      }
      let size = bytes.u32le(offset + 8)
      let valueInode = bytes.u32le(offset + 4)
      var value: [UInt8] = []
      if valueInode == 0, size > 0 {
        let from = base + Int(bytes.u16le(offset + 2))
        guard Int(size) <= bytes.byteCount, from <= bytes.byteCount - Int(size) else {
          return report("a value of \(size) bytes past their end")
        }
        firstValue = min(firstValue, from)
        value = bytes.extracting(from..<from + Int(size)).copiedBytes()
      }
      let name = bytes.extracting(offset + 16..<offset + 16 + nameLength).copiedBytes()
      guard !name.contains(0) else { return report("a NUL byte in a name") }
      add(index: bytes.u8(offset + 1), name: name, value: value, size: size, valueInode: valueInode)
      offset = next
    }
    if firstValue < offset { report("a value that lies over the names") }
  }

  private mutating func add(index: UInt8, name: [UInt8], value: [UInt8], size: UInt32, valueInode: UInt32) {
    if index == 7, name == Array("data".utf8) {
      inlineData = value
      return
    }
    let prefixes: [UInt8: String] = [
      1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.",
      7: "system.", 8: "system.richacl", 9: "encryption.", 11: "gnu.",
    ]
    let prefix = prefixes[index] ?? "unknown-\(index)."
    var attribute = ExtAttribute(
      name: Array(prefix.utf8) + name, value: value, size: size, valueInode: valueInode)
    if index == 2 || index == 3 {
      guard let list = Self.accessControlList(value) else { return report("an access control list of \(size) bytes") }
      attribute.value = list
      attribute.size = UInt32(list.count)
    }
    attributes.append(attribute)
  }

  private mutating func report(_ what: String) {
    if damage == nil { damage = "damaged extended attributes: " + what }
  }

  /// An access control list as getxattr(2) gives it (`struct posix_acl_xattr_entry`), from the shorter form on the disk
  /// (`struct ext4_acl_entry`); nil when it is damaged.
  private static func accessControlList(_ value: [UInt8]) -> [UInt8]? {
    value.withRawSpan { bytes in
      guard bytes.byteCount >= 4, bytes.u32le(0) == 1 else { return nil }
      var result: [UInt8] = [2, 0, 0, 0]
      var offset = 4
      while offset < bytes.byteCount {
        guard offset + 4 <= bytes.byteCount else { return nil }
        let tag = bytes.u16le(offset)
        let hasID = tag == 2 || tag == 8
        guard hasID || [1, 4, 16, 32].contains(tag), offset + (hasID ? 8 : 4) <= bytes.byteCount else { return nil }
        result += bytes.extracting(offset..<offset + 4).copiedBytes()
        result += hasID ? bytes.extracting(offset + 4..<offset + 8).copiedBytes() : [0xFF, 0xFF, 0xFF, 0xFF]
        offset += hasID ? 8 : 4
      }
      return result
    }
  }
}
