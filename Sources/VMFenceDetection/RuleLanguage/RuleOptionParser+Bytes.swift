import VMFenceCore

/// Options that read numbers out of a buffer.
extension RuleOptionParser {
  /// One argument of a list: a word, and what follows it.
  struct Argument {
    var name: ArraySlice<UInt8>
    var value: ArraySlice<UInt8>?

    var text: String { name.text.lowercased() }
  }

  /// Splits at commas outside of quotation marks.
  func list(_ value: ArraySlice<UInt8>) -> [ArraySlice<UInt8>] {
    var items: [ArraySlice<UInt8>] = []
    var start = value.startIndex
    var index = start
    var isQuoted = false
    while index < value.endIndex {
      if value[index] == 0x5C {
        index = min(index + 2, value.endIndex)
        continue
      }
      if value[index] == UInt8(ascii: "\"") { isQuoted.toggle() }
      if value[index] == UInt8(ascii: ","), !isQuoted {
        items.append(value[start..<index].trimmed)
        start = index + 1
      }
      index += 1
    }
    items.append(value[start...].trimmed)
    return items
  }

  func arguments(_ value: ArraySlice<UInt8>) -> [Argument] {
    list(value).map { item in
      let words = item.split(maxSplits: 1, whereSeparator: { $0 == 0x20 || $0 == 0x09 })
      return Argument(name: words.first ?? item, value: words.count > 1 ? words[1].trimmed : nil)
    }
  }

  /// A whole number, decimal or with `0x`, of a range.
  func integer(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, _ range: ClosedRange<Int64>
  ) throws(RuleProblem) -> Int64 {
    let text = try required(name, value)
    guard let number = Self.integer(text), range.contains(number) else {
      throw RuleProblem(
        text.startIndex,
        "\(name.shown): \(text.shown) is not a whole number from \(range.lowerBound) to \(range.upperBound)")
    }
    return number
  }

  static func integer(_ text: ArraySlice<UInt8>) -> Int64? {
    let isNegative = text.first == UInt8(ascii: "-")
    let digits = isNegative ? text.dropFirst() : text
    guard let first = digits.first, (0x30...0x39).contains(first) else { return nil }
    let isHexadecimal = digits.count > 2 && first == 0x30 && digits[digits.startIndex + 1] | 0x20 == UInt8(ascii: "x")
    let number = isHexadecimal ? UInt64(digits.dropFirst(2).text, radix: 16) : UInt64(digits.text)
    // 64-bit values keep their bits.
    return number.map { isNegative ? 0 &- Int64(bitPattern: $0) : Int64(bitPattern: $0) }
  }

  /// A number, or the name of a variable that an earlier option sets.
  func numberOrVariable(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, _ range: ClosedRange<Int64>
  ) throws(RuleProblem) -> RuleNumber {
    let text = try required(name, value)
    guard let first = text.first, (0x61...0x7A).contains(first | 0x20) || first == UInt8(ascii: "_") else {
      return .value(try integer(name, text, range))
    }
    guard let variable = variables[text.text] else {
      throw RuleProblem(
        text.startIndex, "\(name.shown): no variable is named \(text.shown)",
        "set it before, with `byte_extract` or `byte_math`")
    }
    // In Suricata a variable lives in its buffer; elsewhere it is 0.
    if dialect == .suricata, variable.buffer != buffer { return .value(0) }
    return .variable(variable.number)
  }

  /// The number of a variable that an option sets.
  mutating func define(_ text: ArraySlice<UInt8>) throws(RuleProblem) -> UInt8 {
    guard let first = text.first, (0x61...0x7A).contains(first | 0x20) || first == UInt8(ascii: "_"),
      text.allSatisfy(RuleScanner.isNameByte)
    else {
      throw RuleProblem(text.startIndex, "\(text.shown) is no name of a variable", "begin it with a letter")
    }
    if let known = variables[text.text], known.buffer == buffer || dialect != .suricata { return known.number }
    let limit = dialect == .suricata ? Self.variableMaximum : 2
    guard variables.count < limit else {
      throw RuleProblem(
        text.startIndex, "a \(dialect.rawValue) rule has \(limit) variables at the most", "use one of them again")
    }
    let number = UInt8(variables.count)
    variables[text.text] = RuleVariable(number: number, buffer: buffer)
    return number
  }

  // MARK: Reading

  /// What all of these options have in common; true when the argument was one of them.
  mutating func reading(
    _ argument: Argument, _ reading: inout NumberReading, isText: inout Bool
  ) throws(RuleProblem) -> Bool {
    switch argument.text {
    case "relative": reading.isRelative = true
    case "big": reading.isLittleEndian = false
    case "little": reading.isLittleEndian = true
    case "endian":
      switch argument.value?.text {
      case "big": reading.isLittleEndian = false
      case "little": reading.isLittleEndian = true
      default: throw RuleProblem(argument.name.startIndex, "endian is neither `big` nor `little`", "write one of them")
      }
    case "string":
      isText = true
      if reading.base == 0 { reading.base = 10 }
      if let value = argument.value { reading.base = try base(value) }
    case "hex", "dec", "oct": reading.base = try base(argument.name)
    case "dce": reading.isDCE = true
    case "bitmask": reading.mask = UInt32(try integer(argument.name, argument.value, 1...0xFFFF_FFFF))
    default: return false
    }
    return true
  }

  private func base(_ name: ArraySlice<UInt8>) throws(RuleProblem) -> UInt8 {
    switch name.text.lowercased() {
    case "hex": return 16
    case "dec": return 10
    case "oct": return 8
    default: throw RuleProblem(name.startIndex, "\(name.shown) is no base", "use hex, dec or oct")
    }
  }

  private func finish(_ reading: NumberReading, isText: Bool, _ name: ArraySlice<UInt8>) throws(RuleProblem) {
    if reading.isDCE, isText || reading.isLittleEndian {
      throw RuleProblem(name.startIndex, "\(name.shown): `dce` is a byte order of its own", "take the other out")
    }
    if reading.base != 0, !isText {
      throw RuleProblem(name.startIndex, "\(name.shown): hex, dec and oct need `string`", "add `string`")
    }
    guard case .value(let count) = reading.count else { return }
    let limit: Int64 = isText ? (dialect == .suricata ? 23 : 10) : (dialect == .suricata ? 8 : 4)
    guard count <= limit else {
      throw RuleProblem(
        name.startIndex, "\(name.shown): \(count) bytes are too many, at most \(limit) can be read",
        isText ? "read less" : "read less, or digits with `string`")
    }
    let maskBytes = (32 - reading.mask.leadingZeroBitCount + 7) / 8
    if reading.mask != 0, Int64(maskBytes) > count, !isText {
      throw RuleProblem(
        name.startIndex, "\(name.shown): the mask is wider than the \(count) bytes read", "shorten the mask")
    }
  }

  private func unknown(_ argument: Argument, of name: ArraySlice<UInt8>) -> RuleProblem {
    RuleProblem(argument.name.startIndex, "\(name.shown): \(argument.name.shown) is not known", "take it out")
  }

  private func few(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, _ form: String) -> RuleProblem {
    RuleProblem(value.startIndex, "\(name.shown): \(value.shown) is too little", "write \(form)")
  }

  private var offsets: ClosedRange<Int64> {
    dialect == .suricata ? Int64(Int32.min)...Int64(Int32.max) : -65_535...65_535
  }

  mutating func byteTest(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    let all = arguments(value)
    let items = list(value)
    guard items.count >= 4 else { throw few(name, value, "BYTES,OPERATOR,VALUE,OFFSET") }
    var test = ByteTest()
    test.reading.count = try numberOrVariable(name, items[0], 1...23)
    (test.comparison, test.isNegated) = try comparison(name, items[1])
    test.value = try numberOrVariable(name, items[2], Int64.min...Int64.max)
    test.reading.offset = try numberOrVariable(name, items[3], offsets)
    var isText = false
    for argument in all.dropFirst(4) where try !reading(argument, &test.reading, isText: &isText) {
      throw unknown(argument, of: name)
    }
    try finish(test.reading, isText: isText, name)
    add(.byteTest(test))
  }

  /// `[!]OPERATOR`; `!` alone is "not equal".
  func comparison(
    _ name: ArraySlice<UInt8>, _ text: ArraySlice<UInt8>
  ) throws(RuleProblem) -> (ByteTest.Comparison, Bool) {
    let isNegated = text.first == UInt8(ascii: "!")
    let sign = isNegated ? text.dropFirst().trimmed : text
    let found: ByteTest.Comparison? =
      switch sign.text {
      case "<": .less
      case ">": .greater
      case "=", "==": .equal
      case "": isNegated ? .equal : nil
      case "<=": .lessOrEqual
      case ">=": .greaterOrEqual
      case "&": .and
      case "^": .xor
      default: nil
      }
    guard let found else {
      throw RuleProblem(
        text.startIndex, "\(name.shown): \(text.shown) is no operator",
        "use <, >, =, <=, >=, & or ^, with ! before it to negate")
    }
    return (found, isNegated)
  }

  mutating func byteJump(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    let items = list(value)
    guard items.count >= 2 else { throw few(name, value, "BYTES,OFFSET") }
    var jump = ByteJump()
    jump.reading.count = try numberOrVariable(name, items[0], 0...23)
    jump.reading.offset = try numberOrVariable(name, items[1], offsets)
    var isText = false
    for argument in arguments(value).dropFirst(2) {
      switch argument.text {
      case "align": jump.aligns = true
      case "from_beginning": jump.fromBeginning = true
      case "from_end": jump.fromEnd = true
      case "multiplier": jump.multiplier = UInt32(try integer(argument.name, argument.value, 1...65_535))
      case "post_offset": jump.postOffset = try numberOrVariable(argument.name, argument.value, offsets)
      default: if try !reading(argument, &jump.reading, isText: &isText) { throw unknown(argument, of: name) }
      }
    }
    if jump.fromBeginning, jump.fromEnd {
      throw RuleProblem(
        value.startIndex, "\(name.shown): from_beginning and from_end exclude each other", "keep one of them")
    }
    try finish(jump.reading, isText: isText, name)
    add(.byteJump(jump))
  }

  mutating func byteExtract(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    let items = list(value)
    guard items.count >= 3 else { throw few(name, value, "BYTES,OFFSET,NAME") }
    var extract = ByteExtract()
    extract.reading.count = .value(try integer(name, items[0], 1...23))
    extract.reading.offset = .value(try integer(name, items[1], offsets))
    var isText = false
    for argument in arguments(value).dropFirst(3) {
      switch argument.text {
      case "multiplier": extract.multiplier = UInt32(try integer(argument.name, argument.value, 1...65_535))
      case "align":
        let number = try integer(argument.name, argument.value, 0...4)
        guard number % 2 == 0 else {
          throw RuleProblem(argument.name.startIndex, "\(name.shown): align is 2 or 4", "write one of them")
        }
        extract.alignment = UInt8(number)
      default: if try !reading(argument, &extract.reading, isText: &isText) { throw unknown(argument, of: name) }
      }
    }
    if !extract.reading.isRelative, case .value(let offset) = extract.reading.offset, offset < 0 {
      throw RuleProblem(items[1].startIndex, "\(name.shown): a negative offset without `relative`", "add `relative`")
    }
    try finish(extract.reading, isText: isText, name)
    extract.variable = try define(items[2])
    add(.byteExtract(extract))
  }

  mutating func byteMath(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    var math = ByteMath()
    var result: ArraySlice<UInt8>?
    var isText = false
    var given: Set<String> = []
    for argument in arguments(value) {
      given.insert(argument.text)
      switch argument.text {
      case "bytes": math.reading.count = try numberOrVariable(argument.name, argument.value, 1...23)
      case "offset": math.reading.offset = try numberOrVariable(argument.name, argument.value, offsets)
      case "oper": math.operation = try operation(argument)
      case "rvalue": math.value = try numberOrVariable(argument.name, argument.value, 0...0xFFFF_FFFF)
      case "result": result = try required(argument.name, argument.value)
      default: if try !reading(argument, &math.reading, isText: &isText) { throw unknown(argument, of: name) }
      }
    }
    guard let result, given.isSuperset(of: ["bytes", "offset", "oper", "rvalue"]) else {
      throw few(name, value, "`bytes N, offset N, oper +|-|*|/|<<|>>, rvalue N, result NAME`")
    }
    if math.value == .value(0), dialect != .suricata {
      throw RuleProblem(value.startIndex, "\(name.shown): rvalue is 0", "use 1 or more")
    }
    try finish(math.reading, isText: isText, name)
    math.variable = try define(result)
    add(.byteMath(math))
  }

  private func operation(_ argument: Argument) throws(RuleProblem) -> ByteMath.Operation {
    switch argument.value?.text {
    case "+": return .add
    case "-": return .subtract
    case "*": return .multiply
    case "/": return .divide
    case "<<": return .shiftLeft
    case ">>": return .shiftRight
    default:
      throw RuleProblem(argument.name.startIndex, "oper is none of + - * / << >>", "write one of them")
    }
  }

  mutating func dataAt(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    var text = try required(name, value)
    var test = DataAtTest(position: .value(0))
    if text.first == UInt8(ascii: "!") {
      test.isNegated = true
      text = text.dropFirst().trimmed
    }
    let items = arguments(text)
    guard let first = items.first else { throw few(name, text, "a position") }
    test.position = try numberOrVariable(name, first.name, 0...65_535)
    for argument in items.dropFirst() {
      switch argument.text {
      case "relative": test.isRelative = true
      case "rawbytes": break
      default: throw unknown(argument, of: name)
      }
    }
    add(.dataAt(test))
  }

  /// Appends a test of the buffer chosen last.
  mutating func add(_ check: PayloadCheck) { tests.append(.payload(PayloadTest(check, in: buffer))) }
}

/// A variable of a rule.
struct RuleVariable {
  var number: UInt8
  var buffer: RuleBuffer
}
