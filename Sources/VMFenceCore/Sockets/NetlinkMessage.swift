/// Why bytes are no netlink messages, or the kernel refused.
@usableFromInline
package enum NetlinkError: Error, Equatable {
  /// The bytes break off, or a length in them is wrong.
  case malformed(String)
  /// The kernel refused a request: an errno number, and the kernel's own words if it had some.
  case refused(Int32, String)
  /// The socket failed: an errno number and what was being done.
  case socket(Int32, String)
  /// Another process owns the table of this family: its netlink port.
  case held(UInt32, TableFamily)
  /// Others changed the ruleset while it was read, again and again.
  case interrupted
}

/// Of which kind a table of nf_tables is: NFPROTO numbers of linux/netfilter.h.
@usableFromInline
package enum TableFamily: UInt8, Sendable {
  case inet = 1
  case netdev = 5
  case bridge = 7

  /// As nft(8) writes it.
  package var name: String { "\(self)" }
}

/// One message among the bytes that a netlink socket gave: where its parts lie. Made only with all lengths checked
/// (linux/netlink.h: a header of 16 bytes in host order; the length counts the header, and messages are aligned to 4 bytes).
package struct NetlinkMessage: Equatable {
  package static let headerBytes = 16
  /// struct nfgenmsg: family, version, resource.
  package static let generalBytes = 4

  package enum Kind {
    package static let error: UInt16 = 2
    package static let done: UInt16 = 3
    /// nf_tables' subsystem number, in the high byte.
    package static let tables: UInt16 = 10 << 8
  }
  package enum Flag {
    package static let multi: UInt16 = 2
    package static let interrupted: UInt16 = 0x10
    package static let capped: UInt16 = 0x100
    package static let extended: UInt16 = 0x200
  }

  package var type: UInt16
  package var flags: UInt16
  package var sequence: UInt32
  /// Who caused it: a socket's port; 0 is the kernel.
  package var author: UInt32
  /// What follows the header.
  package var payload: Range<Int>

  /// The nf_tables message number (`NFT_MSG_*`), or nil when it belongs to another subsystem.
  package var tablesMessage: UInt16? { type & 0xFF00 == Kind.tables ? type & 0xFF : nil }

  /// Calls `body` with each message in `bytes`.
  package static func forEach(
    in bytes: RawSpan, _ body: (NetlinkMessage) throws(NetlinkError) -> Void
  ) throws(NetlinkError) {
    var offset = 0
    while offset < bytes.byteCount {
      guard bytes.byteCount - offset >= headerBytes else {
        throw .malformed("\(bytes.byteCount - offset) bytes where a header has \(headerBytes)")
      }
      let length = Int(bytes.hostU32(offset))
      guard length >= headerBytes, length <= bytes.byteCount - offset else {
        throw .malformed("a message of \(length) bytes in \(bytes.byteCount - offset)")
      }
      try body(
        NetlinkMessage(
          type: bytes.hostU16(offset + 4), flags: bytes.hostU16(offset + 6), sequence: bytes.hostU32(offset + 8),
          author: bytes.hostU32(offset + 12), payload: offset + headerBytes..<offset + length))
      offset += min((length + 3) & ~3, bytes.byteCount - offset)
    }
  }

  /// The address family of an nf_tables message, and where its attributes lie.
  package func attributes(of bytes: RawSpan) throws(NetlinkError) -> (family: UInt8, range: Range<Int>) {
    guard payload.count >= Self.generalBytes else { throw .malformed("no general header") }
    return (bytes.u8(payload.lowerBound), payload.dropFirst(Self.generalBytes))
  }
}

/// One attribute: its type without the flags, and where its value lies.
@usableFromInline
package struct NetlinkAttribute: Equatable {
  @usableFromInline package var type: UInt16
  @usableFromInline package var value: Range<Int>

  @inlinable
  package init(type: UInt16, value: Range<Int>) {
    self.type = type
    self.value = value
  }

  /// Calls `body` with each attribute in `range` (struct nlattr: length and type, 16 bits each, in host order; the length counts
  /// the header, and attributes are aligned to 4 bytes).
  @inlinable @inline(__always)
  package static func forEach(
    in bytes: RawSpan, _ range: Range<Int>, _ body: (NetlinkAttribute) throws(NetlinkError) -> Void
  ) throws(NetlinkError) {
    guard range.upperBound <= bytes.byteCount else { throw .malformed("a range outside the bytes") }
    var offset = range.lowerBound
    while range.upperBound - offset >= 4 {
      let length = Int(bytes.hostU16(offset))
      guard length >= 4, length <= range.upperBound - offset else {
        throw .malformed("an attribute of \(length) bytes in \(range.upperBound - offset)")
      }
      try body(NetlinkAttribute(type: bytes.hostU16(offset + 2) & 0x3FFF, value: offset + 4..<offset + length))
      offset += (length + 3) & ~3
    }
  }

  package func u32(_ bytes: RawSpan) throws(NetlinkError) -> UInt32 {
    guard value.count == 4 else { throw .malformed("a number of \(value.count) bytes instead of 4") }
    return bytes.u32(value.lowerBound)
  }

  package func u64(_ bytes: RawSpan) throws(NetlinkError) -> UInt64 {
    guard value.count == 8 else { throw .malformed("a number of \(value.count) bytes instead of 8") }
    return bytes.u64(value.lowerBound)
  }

  /// A text up to its zero, not trusted to be UTF-8.
  package func text(_ bytes: RawSpan) -> String {
    var scalars: [UInt8] = []
    scalars.reserveCapacity(value.count)
    for offset in value {
      let byte = bytes.u8(offset)
      if byte == 0 { break }
      scalars.append(byte)
    }
    return String(decoding: scalars, as: UTF8.self)
  }

  package func copiedBytes(_ bytes: RawSpan) -> [UInt8] { value.map { bytes.u8($0) } }
}

extension RawSpan {
  /// A number in the machine's own order, as netlink's headers have them.
  @inlinable @inline(__always)
  package func hostU16(_ offset: Int) -> UInt16 { UInt16(littleEndian: 1) == 1 ? u16le(offset) : u16(offset) }

  /// A number in the machine's own order.
  @inlinable @inline(__always)
  package func hostU32(_ offset: Int) -> UInt32 { UInt32(littleEndian: 1) == 1 ? u32le(offset) : u32(offset) }
}

extension NetlinkMessage {
  /// What an error message says; nil when it is an acknowledgement (struct nlmsgerr: a negative errno in host order, the header of
  /// the message it is about, and with `extended` attributes, of which 1 is a text).
  package func error(in bytes: RawSpan) throws(NetlinkError) -> NetlinkError? {
    guard payload.count >= 4 else { throw .malformed("an error without a number") }
    let number = Int32(bitPattern: bytes.hostU32(payload.lowerBound))
    guard number != 0 else { return nil }
    var words = ""
    if flags & Flag.extended != 0, flags & Flag.capped != 0, payload.count >= 4 + Self.headerBytes {
      try NetlinkAttribute.forEach(in: bytes, payload.dropFirst(4 + Self.headerBytes)) { attribute in
        if attribute.type == 1 { words = attribute.text(bytes) }
      }
    }
    return .refused(number < 0 && number > Int32.min ? -number : number, words)
  }
}
