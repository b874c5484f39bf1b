import VMFenceCore

/// `pcre`, `regex` and `sd_pattern`.
extension RuleOptionParser {
  /// The letters of Snort 2 and Suricata that choose a buffer of an application layer.
  private static let bufferLetters: Set<UInt8> = Set("UIPQHDMCKSYVWZ".utf8)

  mutating func pcre(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    var text = try required(name, value)
    var isNegated = false
    if text.first == UInt8(ascii: "!") {
      isNegated = true
      text = text.dropFirst().trimmed
    }
    let (body, tail) = try quotedExpression(name, text)
    // Names of variables that captures go to.
    var variables = tail
    if let extra = tail, dialect != .suricata {
      throw RuleProblem(extra.startIndex, "\(extra.shown) stands after the expression", "take it out")
    }
    var (test, letters) = try expression(name, body)
    test.isNegated = isNegated
    if dialect == .suricata, variables == nil, let comma = letters.firstIndex(of: UInt8(ascii: ",")) {
      // Within the quotation marks.
      variables = letters[(comma + 1)...].trimmed
      letters = letters[..<comma].trimmed
    }
    for index in letters.indices {
      let letter = letters[index]
      switch letter {
      case UInt8(ascii: "i"): test.options |= Regex.caseless
      case UInt8(ascii: "s"): test.options |= Regex.dotAll
      case UInt8(ascii: "m"): test.options |= Regex.multiline
      case UInt8(ascii: "x"): test.options |= Regex.extended
      case UInt8(ascii: "A"): test.options |= Regex.anchored
      case UInt8(ascii: "E"): test.options |= Regex.dollarEndOnly
      case UInt8(ascii: "G"): test.options |= Regex.ungreedy
      case UInt8(ascii: "R"): test.isRelative = true
      // No limits of the match, which stand fast here; and the payload as it came, which it is.
      case UInt8(ascii: "O"),
        UInt8(ascii: "B") where dialect != .snort3:
        break
      case _ where Self.bufferLetters.contains(letter) && dialect != .snort3:
        refuse("`pcre` in a buffer of an application layer (\([letter].text))", at: index)
      default:
        throw RuleProblem(index, "\(name.shown): \([letter].shown) is no flag", "use i, s, m, x, A, E, G, R or O")
      }
    }
    if dialect == .suricata {
      test.captures = try namedCaptures(name, test, body)
      if let variables { test.captures = try captures(name, variables) }
    } else {
      try check(test, name, body)
    }
    add(.regex(test))
  }

  /// Snort 3's `regex`: an expression for Hyperscan, which PCRE2 takes as well.
  mutating func regex(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let items = list(try required(name, value))
    var isNegated = false
    var text = items[0]
    if text.first == UInt8(ascii: "!") {
      isNegated = true
      text = text.dropFirst().trimmed
    }
    let (body, _) = try quotedExpression(name, text)
    var (test, letters) = try expression(name, body)
    test.isNegated = isNegated
    for index in letters.indices {
      switch letters[index] {
      case UInt8(ascii: "i"): test.options |= Regex.caseless
      case UInt8(ascii: "s"): test.options |= Regex.dotAll
      case UInt8(ascii: "m"): test.options |= Regex.multiline
      default: throw RuleProblem(index, "\(name.shown): \([letters[index]].shown) is no flag", "use i, s or m")
      }
    }
    for item in items.dropFirst() {
      switch item.text {
      case "fast_pattern": break
      case "nocase": test.options |= Regex.caseless
      case "dotall": test.options |= Regex.dotAll
      case "multiline": test.options |= Regex.multiline
      case "relative": test.isRelative = true
      default:
        throw RuleProblem(item.startIndex, "\(name.shown): \(item.shown) is not known", "use fast_pattern or relative")
      }
    }
    try check(test, name, body)
    add(.regex(test))
  }

  /// What stands in quotation marks, and what after a comma behind them.
  func quotedExpression(
    _ name: ArraySlice<UInt8>, _ text: ArraySlice<UInt8>
  ) throws(RuleProblem) -> (ArraySlice<UInt8>, ArraySlice<UInt8>?) {
    if dialect == .suricata, text.first == UInt8(ascii: "/") { return (text, nil) }
    guard text.first == UInt8(ascii: "\"") else {
      throw RuleProblem(text.startIndex, "\(name.shown): the expression is not in quotation marks", "write \"…\"")
    }
    var end = text.startIndex + 1
    while end < text.endIndex, text[end] != UInt8(ascii: "\"") { end += text[end] == 0x5C ? 2 : 1 }
    guard end < text.endIndex else {
      throw RuleProblem(text.startIndex, "\(name.shown): the text is not closed", "close it with `\"`")
    }
    let tail = text[(end + 1)...].trimmed
    if !tail.isEmpty, tail.first != UInt8(ascii: ",") {
      throw RuleProblem(tail.startIndex, "\(tail.shown) stands after the expression", "take it out")
    }
    return (text[text.startIndex + 1..<end], tail.isEmpty ? nil : tail.dropFirst().trimmed)
  }

  /// `/EXPRESSION/LETTERS`, or `mXEXPRESSIONXLETTERS` with another separator.
  private func expression(
    _ name: ArraySlice<UInt8>, _ body: ArraySlice<UInt8>
  ) throws(RuleProblem) -> (RegexTest, ArraySlice<UInt8>) {
    var rest = body.trimmed
    if rest.first == UInt8(ascii: "m"), rest.count > 1 { rest = rest.dropFirst() }
    guard let separator = rest.first, let last = rest.dropFirst().lastIndex(of: separator), last > rest.startIndex + 1
    else {
      throw RuleProblem(
        body.startIndex, "\(name.shown): \(body.shown) is not /EXPRESSION/", "write \"/EXPRESSION/flags\"")
    }
    var pattern: [UInt8] = []
    var index = rest.startIndex + 1
    while index < last {
      if rest[index] == 0x5C, let length = rest.continuationLength(at: index) {
        index += length
        continue
      }
      pattern.append(rest[index])
      index += 1
    }
    return (RegexTest(pattern: pattern, options: 0), rest[(last + 1)...].trimmed)
  }

  /// The names of its captures that have one, with their numbers.
  @discardableResult
  func check(
    _ test: RegexTest, _ name: ArraySlice<UInt8>, _ body: ArraySlice<UInt8>
  ) throws(RuleProblem) -> [(group: Int, name: String)] {
    do throws(Regex.Mistake) {
      return try Regex.check(test.pattern, options: test.options)
    } catch {
      let place = min(body.startIndex + 1 + error.offset, body.endIndex)
      throw RuleProblem(place, "\(name.shown): \(error.message.escapedForDisplay)", "mend the expression")
    }
  }

  // MARK: Sensitive data

  private static let sensitive: [String: (pattern: String, isCard: Bool)] = [
    "credit_card": (#"\b\d{4}[ -]?\d{4}[ -]?\d{2}(?:\d{2}|[ -]?\d{2}(?:\d{1,3})?)(?:[ -]?\d{1,4})?\b"#, true),
    "us_social": (#"\b\d{3}-\d{2}-\d{4}\b"#, false), "us_social_nodashes": (#"\b\d{9}\b"#, false),
    "email": (#"\b[\w.%+-]+@[\w.-]+\.[A-Za-z]{2,}\b"#, false),
    "us_phone": (#"\b(?:\+?1[ .-])?\(?\d{3}\)?[ .-]?\d{3}[ .-]\d{4}\b"#, false),
  ]

  /// Snort 3: `"PATTERN"[, threshold N]`; Snort 2: `N,PATTERN`.
  mutating func sensitivePattern(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    let items = list(value)
    var threshold: Int64 = 1
    var text: ArraySlice<UInt8>
    if dialect == .snort2 {
      guard items.count >= 2 else { throw RuleProblem(value.startIndex, "sd_pattern is COUNT,PATTERN", "write both") }
      threshold = try integer(name, items[0], 1...255)
      text = value[items[1].startIndex...].trimmed
    } else {
      (text, _) = try quotedExpression(name, items[0])
      for argument in arguments(value[items[0].endIndex...]).dropFirst() {
        guard argument.text == "threshold" else {
          throw RuleProblem(argument.name.startIndex, "\(argument.name.shown) is not known", "use threshold")
        }
        threshold = try integer(argument.name, argument.value, 1...0xFFFF_FFFF)
      }
    }
    let known = Self.sensitive[text.text]
    let test = RegexTest(pattern: known.map { Array($0.pattern.utf8) } ?? Array(text), options: 0)
    try check(test, name, text)
    add(
      .sensitiveData(
        SensitiveDataTest(regex: test, threshold: UInt32(threshold), isCardNumber: known?.isCard ?? false)))
  }
}
