import VMFenceCore

/// Tests that know a format.
extension PayloadMatcher {
  /// Shannon's entropy of the bytes: -Σ p·log₂ p.
  func entropy(_ record: Int, _ bytes: RawSpan, _ image: RawSpan) -> Bool {
    let offset = Int(image.u32le(OptionRecord.word(record, 1)))
    let wanted = Int(image.u32le(OptionRecord.word(record, 0)))
    guard offset < bytes.byteCount else { return false }
    let rest = bytes.byteCount - offset
    guard wanted <= rest else { return false }
    let count = wanted == 0 ? rest : wanted
    var counts = InlineArray<256, UInt32>(repeating: 0)
    for index in offset..<offset + count { counts[Int(bytes.u8(index))] += 1 }
    var entropy = 0.0
    for index in 0..<256 where counts[index] > 0 {
      let share = Double(counts[index]) / Double(count)
      entropy -= share * BinaryLogarithm.of(share)
    }
    let low = UInt64(image.u32le(OptionRecord.word(record, 2)))
    let value = Double(bitPattern: UInt64(image.u32le(OptionRecord.word(record, 3))) << 32 | low)
    return switch ByteTest.Comparison(rawValue: image.u8(record + OptionRecord.small2)) {
    case .less: entropy < value
    case .greater: entropy > value
    case .equal: abs(entropy - value) < 1e-9
    case .lessOrEqual: entropy <= value
    case .greaterOrEqual: entropy >= value
    case .and, .xor, nil: false
    }
  }

  func digest(_ record: Int, _ flags: UInt8, _ cursor: Int, _ bytes: RawSpan, _ image: RawSpan) -> Outcome {
    let small = image.u8(record + OptionRecord.small2)
    let word = image.u32le(OptionRecord.word(record, 2))
    let offset =
      small & 128 != 0 ? Int(clamping: min(variables[Int(word)], 1 << 31)) : Int(Int32(bitPattern: word))
    let start = (flags & PayloadFlags.isRelative != 0 ? cursor : 0) + offset
    let length = Int(image.u32le(OptionRecord.word(record, 1)))
    guard start >= 0, start + length <= bytes.byteCount,
      let algorithm = DigestTest.Algorithm(rawValue: small & 127)
    else { return .fails }
    let expected = sections[.patterns].offset + Int(image.u32le(OptionRecord.word(record, 0)))
    let part = bytes.extracting(start..<start + length)
    let isEqual =
      switch algorithm {
      case .md5: MD5.digest(part).isEqual(to: image, at: expected)
      case .sha256: SHA256.digest(part).isEqual(to: image, at: expected)
      case .sha512: SHA512.digest(part).isEqual(to: image, at: expected)
      }
    let isNegated = flags & OptionRecord.isNegated != 0
    guard isEqual != isNegated else { return .fails }
    return .holds(cursor: isNegated ? cursor : start + length)
  }

  /// A call of ONC RPC (RFC 5531 §9): after the record mark of TCP, an identifier, 0 for "call", RPC version 2, program, version,
  /// procedure.
  func isCall(_ record: Int, _ bytes: RawSpan, _ image: RawSpan) -> Bool {
    let start = packet.transport == .tcp ? 4 : 0
    guard bytes.byteCount >= start + 24, bytes.u32(start + 4) == 0, bytes.u32(start + 8) == 2,
      bytes.u32(start + 12) == image.u32le(OptionRecord.word(record, 0))
    else { return false }
    let given = image.u8(record + OptionRecord.small2)
    return (given & 1 == 0 || bytes.u32(start + 16) == image.u32le(OptionRecord.word(record, 1)))
      && (given & 2 == 0 || bytes.u32(start + 20) == image.u32le(OptionRecord.word(record, 2)))
  }

  // MARK: BER

  /// One element (ITU-T X.690 §8.1): where its contents begin, and how many bytes they say to have.
  private struct Element {
    var type: UInt8
    var contents: Int
    var length: Int
  }

  private static func element(_ bytes: RawSpan, at start: Int) -> Element? {
    guard start >= 0, start + 2 <= bytes.byteCount else { return nil }
    let type = bytes.u8(start)
    var index = start + 1
    // Long tags go on while the high bit is set.
    if type & 0x1F == 0x1F {
      while index < bytes.byteCount, index - start < 6, bytes.u8(index) & 0x80 != 0 { index += 1 }
      index += 1
    }
    guard index < bytes.byteCount else { return nil }
    let first = Int(bytes.u8(index))
    index += 1
    guard first & 0x80 != 0 else { return Element(type: type, contents: index, length: first) }
    let count = first & 0x7F
    // An indefinite length is up to the end.
    if count == 0 { return Element(type: type, contents: index, length: bytes.byteCount - index) }
    guard index + count <= bytes.byteCount else { return nil }
    var length = 0
    for offset in 0..<count { length = min(length << 8 | Int(bytes.u8(index + offset)), Int(UInt32.max)) }
    return Element(type: type, contents: index + count, length: length)
  }

  func ber(_ record: Int, _ cursor: Int, _ bytes: RawSpan, _ image: RawSpan) -> Outcome {
    let small = image.u8(record + OptionRecord.small2)
    let isOptional = small & 2 != 0
    guard let element = Self.element(bytes, at: cursor),
      element.type == UInt8(truncatingIfNeeded: image.u32le(OptionRecord.word(record, 0)))
    else { return isOptional ? .holds(cursor: cursor) : .fails }
    if small & 1 == 0 { return .holds(cursor: element.contents) }
    let next = element.contents + element.length
    return next <= bytes.byteCount ? .holds(cursor: next) : .fails
  }

  /// Elements looked at in one test at the most.
  private static let elementLimit = 4096

  /// Whether one of the elements from the offset on is one of the anomalies asked for.
  mutating func asn1(_ record: Int, _ flags: UInt8, _ cursor: Int, _ bytes: RawSpan, _ image: RawSpan) -> Bool {
    let wanted = image.u8(record + OptionRecord.small2)
    let offset = Int(Int32(bitPattern: image.u32le(OptionRecord.word(record, 1))))
    var position = (flags & PayloadFlags.isRelative != 0 ? cursor : 0) + offset
    guard position >= 0 else { return false }
    let oversize = Int(image.u32le(OptionRecord.word(record, 0)))
    for _ in 0..<Self.elementLimit {
      budget -= 1
      guard let element = Self.element(bytes, at: position) else { return false }
      let end = element.contents + element.length
      if wanted & 4 != 0, element.length >= oversize { return true }
      // A bit string begins with the number of unused bits of its last byte.
      if wanted & 1 != 0, element.type == 0x03, element.length > 0, element.contents < bytes.byteCount,
        (element.length - 1) * 8 < Int(bytes.u8(element.contents))
      {
        return true
      }
      // A real number in decimal form that is longer than any number is (MS04-007).
      if wanted & 2 != 0, element.type == 0x09, element.contents < bytes.byteCount,
        bytes.u8(element.contents) & 0xC0 == 0, element.length > 256
      {
        return true
      }
      // Into what is constructed, over what is not.
      position = element.type & 0x20 != 0 ? element.contents : end
    }
    return false
  }

  // MARK: CVS, sensitive data

  /// CVE-2004-0396: a line `Entry ` whose entry, which begins with a slash, has an `=` where an `=` may not be: after the third slash, the
  /// options field.
  static func hasInvalidEntry(_ bytes: RawSpan, from cursor: Int) -> Bool {
    var start = min(max(cursor, 0), bytes.byteCount)
    while start < bytes.byteCount {
      var end = start
      while end < bytes.byteCount, bytes.u8(end) != 0x0A { end += 1 }
      if isInvalidEntry(bytes, start, end) { return true }
      start = end + 1
    }
    return false
  }

  private static func isInvalidEntry(_ bytes: RawSpan, _ start: Int, _ end: Int) -> Bool {
    let head: [UInt8] = [0x45, 0x6E, 0x74, 0x72, 0x79, 0x20, 0x2F]  // "Entry /"
    guard end - start > head.count else { return false }
    for index in head.indices where bytes.u8(start + index) != head[index] { return false }
    var slashes = 1
    for index in start + head.count..<end {
      let byte = bytes.u8(index)
      if byte == UInt8(ascii: "/") { slashes += 1 }
      if slashes == 3,
        byte == UInt8(ascii: "=")
          || byte == UInt8(ascii: "u") && index + 1 < end && bytes.u8(index + 1) == UInt8(ascii: "=")
      {
        return true
      }
    }
    return false
  }

  mutating func sensitiveData(_ record: Int, _ bytes: RawSpan, _ image: RawSpan) -> Bool {
    let index = Int(image.u32le(OptionRecord.word(record, 0)))
    let threshold = image.u32le(OptionRecord.word(record, 1))
    let isCard = image.u8(record + OptionRecord.small2) == 1
    var count: UInt32 = 0
    var from = 0
    while count < threshold, budget >= 0 {
      budget -= (bytes.byteCount - from) / 8 + 16
      let record = sections[.regexes].offset + index * RegexRecord.stride
      guard
        regexes.matches(
          index, record: record, patterns: sections[.patterns].offset, image: image, subject: bytes, from: from)
      else { return false }
      if !isCard || Self.isCardNumber(bytes, regexes.start..<regexes.end) { count += 1 }
      from = max(regexes.end, regexes.start + 1)
      if from > bytes.byteCount { break }
    }
    return count >= threshold
  }

  /// Luhn's check (ISO/IEC 7812-1) of the digits.
  private static func isCardNumber(_ bytes: RawSpan, _ range: Range<Int>) -> Bool {
    var sum = 0
    var isSecond = false
    var count = 0
    for index in range.reversed() {
      let byte = bytes.u8(index)
      guard (0x30...0x39).contains(byte) else { continue }
      var digit = Int(byte) - 0x30
      if isSecond {
        digit *= 2
        if digit > 9 { digit -= 9 }
      }
      sum += digit
      isSecond.toggle()
      count += 1
    }
    return (13...19).contains(count) && sum % 10 == 0
  }
}

/// log₂ without a C library: exact to about 1e-12 for what entropy needs.
enum BinaryLogarithm {
  static func of(_ value: Double) -> Double {
    // value = significand · 2^exponent, the significand in 1 ..< 2: log₂ s = 2/ln 2 · artanh((s - 1)/(s + 1)).
    let ratio = (value.significand - 1) / (value.significand + 1)
    var power = ratio
    var sum = 0.0
    for term in 0..<24 {
      sum += power / Double(2 * term + 1)
      power *= ratio * ratio
    }
    return Double(value.exponent) + 2 * sum * 1.4426950408889634
  }
}
