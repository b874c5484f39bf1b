import VMFenceCore

extension PayloadMatcher {
  /// Every test but `content`.
  mutating func test(
    _ record: Int, _ flags: UInt8, _ level: Int, _ cursor: Int, _ first: Int, _ depth: Int, _ subject: Subject,
    _ bytes: RawSpan, _ frame: RawSpan, _ image: RawSpan
  ) -> Outcome {
    budget -= 1
    let isNegated = flags & OptionRecord.isNegated != 0
    func outcome(_ holds: Bool) -> Outcome { holds != isNegated ? .holds(cursor: cursor) : .fails }
    switch PayloadKind(rawValue: image.u8(record + OptionRecord.kind)) {
    case .regex: return regex(record, flags, level, cursor, subject, bytes, image)
    case .byteTest:
      guard let number = read(record, flags, cursor, subject, bytes, image) else { return .fails }
      return outcome(Self.compare(number.value, value(record, image), image.u8(record + OptionRecord.small2)))
    case .byteJump: return jump(record, flags, cursor, subject, bytes, image)
    case .byteExtract: return extract(record, flags, cursor, subject, bytes, image)
    case .byteMath: return calculate(record, flags, cursor, subject, bytes, image)
    case .dataAt: return outcome(isData(record, flags, cursor, subject, bytes.byteCount, image))
    case .length:
      let isRelative = flags & PayloadFlags.isRelative != 0
      let length = isRelative ? max(0, bytes.byteCount - cursor) : bytes.byteCount
      return NumberRecord.matches(record, UInt64(length), image) ? .holds(cursor: cursor) : .fails
    case .base64:
      return decodedMatches(record, flags, cursor, first, depth, subject, bytes, frame, image)
        ? .holds(cursor: cursor) : .fails
    case .entropy: return outcome(entropy(record, bytes, image))
    case .digest: return digest(record, flags, cursor, bytes, image)
    case .rpc: return outcome(isCall(record, bytes, image))
    case .asn1: return outcome(asn1(record, flags, cursor, bytes, image))
    case .ber: return ber(record, cursor, bytes, image)
    case .cvsEntry: return outcome(Self.hasInvalidEntry(bytes, from: cursor))
    case .sensitiveData: return outcome(sensitiveData(record, bytes, image))
    case .dataSet: return isInDataSet(record, bytes, image) ? .holds(cursor: cursor) : .fails
    case .content, .absent, .buffer, nil: return .fails
    }
  }

  // MARK: Reading

  struct ReadNumber {
    var value: UInt64
    /// Where it begins in the buffer, and how many bytes it has.
    var start: Int
    var count: Int
  }

  @inline(__always)
  private func signed(_ record: Int, _ word: Int, _ image: RawSpan) -> Int {
    Int(Int32(bitPattern: image.u32le(OptionRecord.word(record, word))))
  }

  /// A variable as a position or a count: what is far outside of every buffer stays outside.
  private func variable(_ word: UInt32) -> Int { Int(clamping: min(variables[Int(word)], 1 << 31)) }

  /// What is compared or calculated with: words 3 and 4, or a variable.
  private func value(_ record: Int, _ image: RawSpan) -> UInt64 {
    let word = image.u32le(OptionRecord.word(record, 3))
    if image.u32le(OptionRecord.word(record, 0)) & ReadingRecord.valueIsVariable != 0 { return variables[Int(word)] }
    return UInt64(image.u32le(OptionRecord.word(record, 4))) << 32 | UInt64(word)
  }

  /// nil when it does not lie in the buffer, or no digits are there.
  private func read(
    _ record: Int, _ flags: UInt8, _ cursor: Int, _ subject: Subject, _ bytes: RawSpan, _ image: RawSpan
  ) -> ReadNumber? {
    let head = image.u32le(OptionRecord.word(record, 0))
    var count = Int(head & 0xFF)
    if head & ReadingRecord.countIsVariable != 0 { count = variable(head & 0xFF) }
    let base = UInt8(truncatingIfNeeded: head >> 8)
    let word = image.u32le(OptionRecord.word(record, 1))
    let offset = head & ReadingRecord.offsetIsVariable != 0 ? variable(word) : Int(Int32(bitPattern: word))
    let start = (flags & PayloadFlags.isRelative != 0 ? cursor : 0) + offset
    guard start >= 0, start <= bytes.byteCount, count <= (base == 0 ? 8 : 23) else { return nil }
    // Snort takes what digits there are; Suricata wants all bytes.
    if base != 0, !subject.isSuricata { count = min(count, bytes.byteCount - start) }
    guard count <= bytes.byteCount - start else { return nil }
    var result = ReadNumber(value: 0, start: start, count: count)
    guard let isLittleEndian = Self.isLittleEndian(head, flags, bytes) else { return nil }
    if base != 0 {
      guard let number = Self.digits(bytes, start, count, UInt64(base), subject.isSuricata) else { return nil }
      (result.value, result.count) = number
    } else if isLittleEndian {
      for index in 0..<count { result.value |= UInt64(bytes.u8(start + index)) << UInt64(8 * index) }
    } else {
      for index in 0..<count { result.value = result.value << 8 | UInt64(bytes.u8(start + index)) }
    }
    let mask = UInt64(image.u32le(OptionRecord.word(record, 2)))
    if mask != 0 { result.value = (result.value & mask) >> UInt64(mask.trailingZeroBitCount) }
    return result
  }

  /// The byte order; nil when a message of DCE/RPC is to say it, and there is none (C706 §12.6.3.1, §12.5.2.8: version 5 with its
  /// connection, 4 without; the fifth byte's upper half is 1 for little endian).
  private static func isLittleEndian(_ head: UInt32, _ flags: UInt8, _ bytes: RawSpan) -> Bool? {
    guard head & ReadingRecord.isDCE != 0 else { return flags & PayloadFlags.isLittleEndian != 0 }
    guard bytes.byteCount >= 16, bytes.u8(0) == 5 ? bytes.u8(1) <= 1 : bytes.u8(0) == 4 else { return nil }
    return bytes.u8(4) >> 4 == 1
  }

  /// Like strtoull(3): blanks, a sign, digits; and how many bytes that was.
  private static func digits(
    _ bytes: RawSpan, _ start: Int, _ count: Int, _ base: UInt64, _ isSuricata: Bool
  ) -> (UInt64, Int)? {
    var index = 0
    func peek(_ ahead: Int = 0) -> UInt8? { index + ahead < count ? bytes.u8(start + index + ahead) : nil }
    while let byte = peek(), byte == 0x20 || (0x09...0x0D).contains(byte) { index += 1 }
    var isNegative = false
    if let sign = peek(), sign == UInt8(ascii: "-") || sign == UInt8(ascii: "+") {
      isNegative = sign == UInt8(ascii: "-")
      // Snort takes no negative number.
      if isNegative, !isSuricata { return nil }
      index += 1
    }
    if base == 16, peek() == UInt8(ascii: "0"), let x = peek(1), x | 0x20 == UInt8(ascii: "x"),
      peek(2)?.hexadecimalDigitValue != nil
    {
      index += 2
    }
    var value: UInt64 = 0
    var hasDigits = false
    while let byte = peek(), let digit = byte.hexadecimalDigitValue, UInt64(digit) < base {
      let (product, overflow) = value.multipliedReportingOverflow(by: base)
      let (sum, carry) = product.addingReportingOverflow(UInt64(digit))
      if overflow || carry || !isSuricata && sum > UInt64(UInt32.max) { return nil }
      value = sum
      hasDigits = true
      index += 1
    }
    return hasDigits ? (isNegative ? 0 &- value : value, index) : nil
  }

  static func compare(_ left: UInt64, _ right: UInt64, _ comparison: UInt8) -> Bool {
    switch ByteTest.Comparison(rawValue: comparison) {
    case .less: left < right
    case .greater: left > right
    case .equal: left == right
    case .lessOrEqual: left <= right
    case .greaterOrEqual: left >= right
    case .and: left & right != 0
    case .xor: left ^ right != 0
    case nil: false
    }
  }

  // MARK: Jumps, variables

  private func jump(
    _ record: Int, _ flags: UInt8, _ cursor: Int, _ subject: Subject, _ bytes: RawSpan, _ image: RawSpan
  ) -> Outcome {
    guard let number = read(record, flags, cursor, subject, bytes, image) else { return .fails }
    var distance = number.value &* UInt64(image.u32le(OptionRecord.word(record, 3)))
    // Snort calculates with 32 bits.
    if !subject.isSuricata { distance &= 0xFFFF_FFFF }
    if flags & PayloadFlags.aligns != 0 { distance = (distance &+ 3) & ~3 }
    let word = image.u32le(OptionRecord.word(record, 4))
    let isVariable = image.u32le(OptionRecord.word(record, 0)) & ReadingRecord.valueIsVariable != 0
    let postOffset = isVariable ? variable(word) : Int(Int32(bitPattern: word))
    let base =
      flags & PayloadFlags.fromBeginning != 0
      ? 0 : flags & PayloadFlags.fromEnd != 0 ? bytes.byteCount : number.start + number.count
    // 64-bit values may mean a way back, as they do in Suricata; what overflows is outside.
    let way = subject.isSuricata ? Int(Int64(bitPattern: distance)) : Int(Int64(bitPattern: distance))
    let (target, overflow) = way.addingReportingOverflow(base + postOffset)
    guard !overflow, target <= bytes.byteCount else { return .fails }
    if target < 0 { return subject.isSuricata ? .holds(cursor: 0) : .fails }
    return .holds(cursor: target)
  }

  private mutating func extract(
    _ record: Int, _ flags: UInt8, _ cursor: Int, _ subject: Subject, _ bytes: RawSpan, _ image: RawSpan
  ) -> Outcome {
    guard let number = read(record, flags, cursor, subject, bytes, image) else { return .fails }
    var value = number.value &* UInt64(image.u32le(OptionRecord.word(record, 3)))
    if !subject.isSuricata { value &= 0xFFFF_FFFF }
    let alignment = UInt64(image.u8(record + OptionRecord.small2))
    if alignment > 0 { value = (value &+ alignment &- 1) & ~(alignment - 1) }
    variables[Int(image.u32le(OptionRecord.word(record, 4)))] = value
    return after(number, cursor, subject, bytes.byteCount)
  }

  private mutating func calculate(
    _ record: Int, _ flags: UInt8, _ cursor: Int, _ subject: Subject, _ bytes: RawSpan, _ image: RawSpan
  ) -> Outcome {
    guard let number = read(record, flags, cursor, subject, bytes, image) else { return .fails }
    let right = value(record, image)
    let operation = ByteMath.Operation(rawValue: image.u8(record + OptionRecord.small2)) ?? .add
    // Snort knows no variable of 0; Suricata divides by none.
    if right == 0, !subject.isSuricata || operation == .divide { return .fails }
    var value: UInt64 =
      switch operation {
      case .add: number.value &+ right
      case .subtract: number.value &- right
      case .multiply: number.value &* right
      case .divide: number.value / right
      case .shiftLeft: right < 64 ? number.value << right : 0
      case .shiftRight: right < 64 ? number.value >> right : 0
      }
    if !subject.isSuricata { value &= 0xFFFF_FFFF }
    variables[Int(image.u32le(OptionRecord.word(record, 5)))] = value
    return after(number, cursor, subject, bytes.byteCount)
  }

  /// Where the cursor is after reading a number into a variable: behind it in Suricata, as many bytes further in Snort.
  private func after(_ number: ReadNumber, _ cursor: Int, _ subject: Subject, _ count: Int) -> Outcome {
    .holds(cursor: min(subject.isSuricata ? number.start + number.count : cursor + number.count, count))
  }

  private func isData(
    _ record: Int, _ flags: UInt8, _ cursor: Int, _ subject: Subject, _ count: Int, _ image: RawSpan
  ) -> Bool {
    let word = image.u32le(OptionRecord.word(record, 0))
    let position = image.u8(record + OptionRecord.small2) == 1 ? variable(word) : Int(Int32(bitPattern: word))
    guard flags & PayloadFlags.isRelative != 0 else { return position < count }
    return subject.isSuricata ? cursor + position <= count : cursor + position < count
  }
}
