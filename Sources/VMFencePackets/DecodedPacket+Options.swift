import VMFenceCore

/// What is checked of the options of IPv4 and TCP: their lengths, their form, and that there is one of each. Reading their values is
/// `OptionCursor`'s.
extension DecodedPacket {
  /// RFC 791 §3.1, and the later options that are in use.
  mutating func checkIPv4Options(_ bytes: RawSpan, from start: Int, to end: Int) {
    if (end - start) % 8 != 0 { events.insert(.ipv4OptionPadding) }
    var seen: UInt64 = 0
    var offset = start
    while offset < end {
      let kind = bytes.u8(offset)
      if kind == 0 { return }
      if kind == 1 {
        offset += 1
        continue
      }
      guard end - offset >= 2 else {
        events.insert(.ipv4OptionEndMissing)
        return
      }
      let length = Int(bytes.u8(offset + 1))
      guard length >= 2, length <= end - offset else {
        events.insert(.ipv4OptionLength)
        return
      }
      if let place = Self.place(ofIPv4Option: kind) {
        if seen & 1 << place != 0 {
          events.insert(.ipv4OptionTwice)
        } else if let wrong = wrong(kind, bytes, at: offset, length: length) {
          events.insert(wrong)
          return
        }
        seen |= 1 << place
      } else {
        events.insert(.ipv4OptionInvalid)
      }
      offset += length
    }
  }

  /// A number for each option that is known: record route, quick start, time stamp, security, loose route, CIPSO, stream identifier,
  /// strict route, router alert.
  private static func place(ofIPv4Option kind: UInt8) -> UInt64? {
    switch kind {
    case 0x07: 0
    case 0x19: 1
    case 0x44: 2
    case 0x82: 3
    case 0x83: 4
    case 0x86: 5
    case 0x88: 6
    case 0x89: 7
    case 0x94: 8
    default: nil
    }
  }

  /// What is wrong with an option whose length lies within the header.
  private func wrong(_ kind: UInt8, _ bytes: RawSpan, at offset: Int, length: Int) -> DecodeEvent? {
    switch kind {
    case 0x07, 0x83, 0x89:
      // A pointer, counted from 1, to the next of the addresses.
      guard length >= 3 else { return .ipv4OptionLength }
      let pointer = Int(bytes.u8(offset + 2))
      return pointer >= 4 && pointer % 4 == 0 && pointer <= length + 1 ? nil : .ipv4OptionMalformed
    case 0x44:
      // Pointer, overflow and flag; records of 4 bytes, or 8 with addresses.
      guard length >= 4 else { return .ipv4OptionLength }
      guard length > 5 else { return nil }
      let pointer = Int(bytes.u8(offset + 2))
      let flag = bytes.u8(offset + 3) & 0x0F
      let size = flag == 1 || flag == 3 ? 8 : 4
      return pointer >= 5 && (pointer - 5) % size == 0 && pointer <= length + 1 ? nil : .ipv4OptionMalformed
    // RFC 4782, RFC 1108, RFC 791, RFC 2113.
    case 0x19: return length >= 8 ? nil : .ipv4OptionLength
    case 0x82: return length == 11 ? nil : .ipv4OptionLength
    case 0x88, 0x94: return length == 4 ? nil : .ipv4OptionLength
    default: return wrongSecurityLabel(bytes, at: offset, length: length)
    }
  }

  /// CIPSO (FIPS 188): a domain of four bytes, and tags of type and length.
  private func wrongSecurityLabel(_ bytes: RawSpan, at offset: Int, length: Int) -> DecodeEvent? {
    guard length >= 10 else { return .ipv4OptionLength }
    var tag = offset + 6
    let end = offset + length
    while tag < end {
      guard end - tag >= 2 else { return .ipv4OptionMalformed }
      let tagLength = Int(bytes.u8(tag + 1))
      switch bytes.u8(tag) {
      case 1, 2, 5, 6:
        guard tagLength >= 4, tagLength <= end - tag, bytes.u8(tag + 2) == 0 else { return .ipv4OptionMalformed }
      case 7: guard tagLength >= 4, tagLength <= end - tag else { return .ipv4OptionMalformed }
      default: return .ipv4OptionMalformed
      }
      tag += tagLength
    }
    return nil
  }

  /// RFC 9293 §3.2, RFC 2018, RFC 7323.
  mutating func checkTCPOptions(_ bytes: RawSpan, from start: Int, to end: Int) {
    var seen: UInt16 = 0
    var offset = start
    while offset < end {
      let kind = bytes.u8(offset)
      if kind == 0 { return }
      if kind == 1 {
        offset += 1
        continue
      }
      guard end - offset >= 2 else { return }
      let length = Int(bytes.u8(offset + 1))
      guard length >= 2, length <= end - offset else {
        events.insert(.tcpOptionLength)
        return
      }
      let isRight =
        switch kind {
        case 2: length == 4
        case 3: length == 3
        case 4: length == 2
        case 5: length >= 10 && length <= 34 && (length - 2) % 8 == 0
        case 8: length == 10
        default: true
        }
      if !isRight {
        events.insert(.tcpOptionLength)
      } else if kind <= 8, kind != 6, kind != 7 {
        if seen & 1 << UInt16(kind) != 0 { events.insert(.tcpOptionTwice) }
        seen |= 1 << UInt16(kind)
      }
      offset += length
    }
  }
}
