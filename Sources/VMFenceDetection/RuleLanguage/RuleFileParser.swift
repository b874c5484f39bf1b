import VMFenceCore

/// What rule files define for all rules after: variables and classes.
struct RuleContext: Sendable {
  var variables: RuleVariables
  var classes = ClassificationTable()

  init(variables: [String: String]) { self.variables = RuleVariables(variables) }
}

/// Parses one rule file of any dialect. Every rule that cannot be used gives a diagnostic with its place, and parsing goes
/// on with the next one.
package struct RuleFileParser {
  /// Bytes of one rule, and rules of one file.
  static let ruleLengthMaximum = 262_144
  static let ruleMaximum = 1_000_000

  private var scanner: RuleScanner
  private let dialect: RuleDialect
  private var context: RuleContext
  private var result: ParsedRules

  /// - Parameter variables: by name without the dollar sign; they go before those that the file defines.
  package static func parse(_ source: RuleSource, variables: [String: String]) -> ParsedRules {
    var context = RuleContext(variables: variables)
    return parse(source, in: &context)
  }

  /// Parses a file that may use what files before it defined; `context` then has what this one defines, too.
  static func parse(_ source: RuleSource, in context: inout RuleContext) -> ParsedRules {
    var parser = RuleFileParser(source, context)
    parser.run()
    context = parser.context
    return parser.result
  }

  private init(_ source: RuleSource, _ context: RuleContext) {
    scanner = RuleScanner(file: source.file, bytes: source.text)
    self.context = context
    guard let dialect = source.dialect else {
      let detected = DialectDetection.detect(source.text)
      dialect = detected.dialect
      result = ParsedRules(dialect: dialect)
      result.diagnostics.append(
        Diagnostic(
          .note, at: SourcePlace(file: source.file), "taken for \(dialect.rawValue) rules: \(detected.reason)",
          remedy: "name the dialect to be sure"))
      return
    }
    self.dialect = dialect
    result = ParsedRules(dialect: dialect)
  }

  private mutating func run() {
    while true {
      scanner.skipBlanks(acrossLines: true)
      if scanner.isAtEnd { return }
      let start = scanner.position
      if result.rules.count >= Self.ruleMaximum {
        report(RuleProblem(start, "a file has \(Self.ruleMaximum) rules at the most", "split the file"))
        return
      }
      do throws(RuleProblem) {
        try statement()
      } catch {
        report(error)
        result.rejected += 1
        recover(from: start)
      }
    }
  }

  private mutating func report(_ problem: RuleProblem) {
    result.diagnostics.append(
      Diagnostic(.error, at: scanner.place(at: problem.offset), problem.message, remedy: problem.remedy))
  }

  /// To the next line that a rule may begin on.
  private mutating func recover(from start: Int) {
    let stopped = scanner.position
    scanner.position = start
    scanner.skipLine()
    // Snort 3 rules go over lines: a rule that was wrong in a later line is skipped up to the next word that begins one.
    guard dialect == .snort3 else { return }
    while !scanner.isAtEnd {
      let line = scanner.position
      scanner.skipBlanks(acrossLines: false)
      let word = scanner.name()
      scanner.position = line
      let begins = Self.actions[word.text] != nil
      let isComment = scanner.bytes[line] == UInt8(ascii: "#")
      if begins || (isComment && line > stopped) { return }
      scanner.skipLine()
    }
  }

  private static let actions: [String: RuleAction] = [
    "alert": .alert, "log": .log, "pass": .pass, "drop": .drop, "reject": .reject, "sdrop": .sdrop, "block": .block,
    "rewrite": .rewrite, "rejectsrc": .rejectSource, "rejectdst": .rejectDestination, "rejectboth": .rejectBoth,
    "activate": .activate, "dynamic": .dynamic, "react": .react,
  ]

  private static func isAllowed(_ action: RuleAction, in dialect: RuleDialect) -> Bool {
    switch action {
    case .alert, .log, .pass, .drop, .reject: dialect != .suricata || action != .log
    case .sdrop, .activate, .dynamic: dialect == .snort2
    case .block: dialect != .suricata
    case .rewrite, .react: dialect == .snort3
    case .rejectSource, .rejectDestination, .rejectBoth: dialect == .suricata
    }
  }

  private mutating func statement() throws(RuleProblem) {
    let start = scanner.position
    let word = scanner.name()
    switch word.text {
    case "var", "ipvar", "portvar": try definition(start)
    case "config": try configuration(start)
    case "include":
      throw RuleProblem(start, "`include` is not followed", "name the file beside this one instead")
    default:
      guard let action = Self.actions[word.text] else {
        let shown = word.isEmpty ? scanner.bytes[start...].prefix { $0 != 0x20 && $0 != 0x0A } : word
        throw RuleProblem(
          start, "\(shown.shown) begins no rule", "rules begin with an action such as alert, drop or pass")
      }
      guard Self.isAllowed(action, in: dialect) else {
        throw RuleProblem(
          start, "\(word.shown) is no action of \(dialect.rawValue) rules", "give the dialect, or another action")
      }
      try rule(action, start)
    }
  }

  private mutating func restOfLine() -> ArraySlice<UInt8> {
    let start = scanner.position
    scanner.skipLine()
    return scanner.bytes[start..<scanner.position].trimmed
  }

  private mutating func definition(_ start: Int) throws(RuleProblem) {
    let rest = restOfLine()
    let parts = rest.split(maxSplits: 1, whereSeparator: { $0 == 0x20 || $0 == 0x09 })
    guard parts.count == 2 else {
      throw RuleProblem(start, "a variable needs a name and a value", "for example `ipvar HOME_NET 10.0.0.0/8`")
    }
    context.variables.define(parts[0].text, parts[1].trimmed)
  }

  private mutating func configuration(_ start: Int) throws(RuleProblem) {
    let rest = restOfLine()
    guard let colon = rest.firstIndex(of: UInt8(ascii: ":")) else { return }
    switch rest[..<colon].trimmed.text {
    case "classification": try context.classes.define(rest[(colon + 1)...].trimmed)
    case "reference": break  // The systems' addresses; references are shown as they are written.
    default:
      result.diagnostics.append(
        Diagnostic(
          .warning, at: scanner.place(at: start), "config \(rest[..<colon].trimmed.shown) has no effect here",
          remedy: "set it in the configuration"))
    }
  }

  // MARK: A rule

  private mutating func rule(_ action: RuleAction, _ start: Int) throws(RuleProblem) {
    let head = try RuleHead.parse(&scanner, variables: context.variables, dialect: dialect, start: start)
    let scanner = self.scanner
    var options = RuleOptionParser(dialect: dialect, classes: context.classes) { scanner.place(at: $0) }
    try body(&options, start)
    let place = scanner.place(at: start)
    options.metadata.action = action
    options.metadata.place = place
    guard options.metadata.sid != 0 else {
      throw RuleProblem(start, "the rule has no sid", "add `sid:NUMBER;` (1000000 and above are for your own)")
    }
    if let first = options.unsupported.first {
      throw RuleProblem(
        first.offset,
        "option `\(first.name.escapedForDisplay)` of rule \(options.metadata.gid):\(options.metadata.sid) is not supported yet",
        "the rule is left out")
    }
    var rule = Rule(
      action: action, ipProtocol: head.ipProtocol, source: head.source, destination: head.destination,
      isBidirectional: head.isBidirectional, tests: options.tests, flow: options.flow, threshold: options.threshold,
      detectionFilter: options.detectionFilter, activates: options.activates, activatedBy: options.activatedBy,
      count: options.count, metadata: options.metadata, dialect: dialect, head: head.text)
    try RuleChecks.check(&rule, start: start)
    result.rules.append(rule)
  }

  private mutating func body(_ options: inout RuleOptionParser, _ start: Int) throws(RuleProblem) {
    let acrossLines = dialect == .snort3
    scanner.position += 1  // the opening parenthesis
    while true {
      scanner.skipBlanks(acrossLines: acrossLines)
      guard let byte = scanner.peek(), byte != 0x0A else {
        throw RuleProblem(
          min(scanner.position, scanner.bytes.count),
          "the rule that begins in line \(scanner.place(at: start).line) is not closed",
          "close it with `)`")
      }
      if byte == UInt8(ascii: ")") {
        scanner.position += 1
        try end()
        return
      }
      if byte == UInt8(ascii: ";") {
        scanner.position += 1
        continue
      }
      let name = scanner.name()
      guard !name.isEmpty else {
        throw RuleProblem(scanner.position, "\([byte].shown) begins no option", "options are NAME:VALUE; or NAME;")
      }
      scanner.skipBlanks(acrossLines: acrossLines)
      var value: ArraySlice<UInt8>?
      if scanner.peek() == UInt8(ascii: ":") {
        scanner.position += 1
        value = try optionValue(name, start)
      }
      guard scanner.peek() == UInt8(ascii: ";") else {
        throw RuleProblem(
          scanner.position, "a `;` is missing after the option \(name.shown)", "end each option with `;`")
      }
      scanner.position += 1
      try options.option(name, value: value)
    }
  }

  /// Nothing but a comment may follow a rule in its line.
  private mutating func end() throws(RuleProblem) {
    scanner.skipBlanks(acrossLines: false)
    guard let byte = scanner.peek(), byte != 0x0A else { return }
    if byte == UInt8(ascii: "#") {
      scanner.skipLine()
      return
    }
    throw RuleProblem(scanner.position, "something follows the rule's `)`", "put each rule on a line of its own")
  }

  /// Up to the `;` that is not inside quotation marks.
  private mutating func optionValue(_ name: ArraySlice<UInt8>, _ start: Int) throws(RuleProblem) -> ArraySlice<UInt8> {
    let from = scanner.position
    var inQuotes = false
    while let byte = scanner.peek() {
      if scanner.position - start > Self.ruleLengthMaximum {
        throw RuleProblem(start, "a rule has \(Self.ruleLengthMaximum) bytes at the most")
      }
      if byte == 0x5C {
        scanner.position += min(
          scanner.continuationLength(at: scanner.position) ?? 2, scanner.bytes.count - scanner.position)
        continue
      }
      if byte == 0x0A, dialect != .snort3 || inQuotes { break }
      if byte == UInt8(ascii: "\"") { inQuotes.toggle() }
      if byte == UInt8(ascii: ";"), !inQuotes { return scanner.bytes[from..<scanner.position] }
      scanner.position += 1
    }
    throw RuleProblem(
      name.startIndex, inQuotes ? "the text of \(name.shown) is not closed" : "the option \(name.shown) is not ended",
      inQuotes ? "close it with `\"`" : "end it with `;`")
  }
}
