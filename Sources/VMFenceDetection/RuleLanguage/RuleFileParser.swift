import VMFenceCore

/// What rule files define for all rules after: variables and classes.
struct RuleContext {
  var variables: RuleVariables
  var classes = ClassificationTable()
  var references = ReferenceTable()
  /// Lines about rules, wherever those stand.
  var filters: [RuleFilter] = []
  /// Which rules are used at all, and which drop.
  var selectors = RuleSelectors()
  var dataSets = DataSets()
  var reputations = Reputations()
  var countries: CountryDatabase?
  /// What stands for rules whose text is wrong now.
  var before = RulesBefore()
  /// When that is noted.
  var time = Timestamp.zero
  /// Bytes of the texts of what was kept.
  var keptBytes = 0

  init(variables: [String: String]) { self.variables = RuleVariables(variables) }
}

/// Parses one rule file of any dialect. Every rule that cannot be used gives a diagnostic with its place, and parsing goes
/// on with the next one.
package struct RuleFileParser {
  /// Bytes of one rule, its continuation lines included, and rules of one file.
  static let ruleLengthMaximum = 65_536
  static let ruleMaximum = 200_000
  /// Bytes of all patterns of one file together.
  static let patternTotalMaximum = 64 * 1024 * 1024
  /// More mistakes than these are counted, not listed.
  static let diagnosticMaximum = 20_000

  var scanner: RuleScanner
  let dialect: RuleDialect
  var context: RuleContext
  var result: ParsedRules
  private var nearestOption = NearestName()
  private var nearestWord = NearestName()
  /// Classes that were used and are not known, so that each is told once.
  private var unknownClasses: Set<String> = []
  private var patternTotal = 0
  private var unlisted = 0

  /// `variables`: by name without the dollar sign; they go before those that the file defines.
  package static func parse(_ source: RuleSource, variables: [String: String]) -> ParsedRules {
    var context = RuleContext(variables: variables)
    return parse(source, in: &context)
  }

  /// Parses a file that may use what files before it defined; `context` then has what this one defines, too.
  static func parse(_ source: RuleSource, in context: inout RuleContext) -> ParsedRules {
    var parser = RuleFileParser(source, context)
    parser.run()
    context = parser.context
    parser.result.variables = context.variables.texts
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
      skipToStatement()
      if scanner.isAtEnd { break }
      let start = scanner.position
      guard result.rules.count < Self.ruleMaximum, patternTotal <= Self.patternTotalMaximum else {
        report(
          RuleProblem(
            start,
            "a file has at most \(Self.ruleMaximum) rules, with \(Self.patternTotalMaximum) bytes of patterns in all",
            "split the file"))
        result.rejected += 1
        break
      }
      do throws(RuleProblem) {
        try statement()
      } catch {
        report(error)
        recover(from: start)
        if error.rejectsRule {
          result.rejected += 1
          keep(scanner.bytes[start..<scanner.position], at: start)
        }
      }
    }
    if unlisted > 0 {
      result.diagnostics.append(
        Diagnostic(.error, at: SourcePlace(file: scanner.file), "\(unlisted) more mistakes are not listed"))
    }
  }

  /// Over blanks and comments; not over a rule that was commented out and is to be used.
  private mutating func skipToStatement() {
    guard context.selectors.enablesAny else { return scanner.skipBlanks(acrossLines: true) }
    while true {
      while let byte = scanner.peek(), byte == 0x20 || byte == 0x09 || byte == 0x0D || byte == 0x0A {
        scanner.position += 1
      }
      guard scanner.peek() == UInt8(ascii: "#") else { return scanner.skipBlanks(acrossLines: true) }
      var ahead = scanner
      while ahead.peek() == UInt8(ascii: "#") { ahead.position += 1 }
      ahead.skipBlanks(acrossLines: false)
      let start = ahead.position
      let isStatement = RuleWords.beginStatement(ahead)
      scanner.skipLine()
      guard isStatement,
        context.selectors.enables(scanner.bytes[start..<scanner.position], file: scanner.file)
      else { continue }
      scanner.position = start
      return
    }
  }

  mutating func report(_ problem: RuleProblem, _ severity: Diagnostic.Severity = .error) {
    guard result.diagnostics.count < Self.diagnosticMaximum else {
      unlisted += 1
      return
    }
    result.diagnostics.append(
      Diagnostic(severity, at: scanner.place(at: problem.offset), problem.message, remedy: problem.remedy))
  }

  /// To the next line that a rule may begin on.
  private mutating func recover(from start: Int) {
    scanner.position = start
    scanner.skipLine()
    // Snort 3 rules go over lines: the rest of a wrong one is passed over, up to what begins a statement.
    guard dialect == .snort3 else { return }
    while !scanner.isAtEnd, !RuleWords.beginStatement(scanner) { scanner.skipLine() }
  }

  static func isAction(_ word: String) -> Bool {
    RuleWords.actions[word] != nil || RuleWords.unsupportedActions[word] != nil
  }

  // MARK: Statements

  private mutating func statement() throws(RuleProblem) {
    let start = scanner.position
    let word = scanner.name()
    switch word.text {
    case "var", "ipvar", "portvar":
      try definition(start)
      return
    case "config" where dialect != .suricata || isConfiguration(): return try configuration(start)
    case "include":
      throw RuleProblem(
        start, "`include` is not followed", "name the file \(restOfLine().shown) beside this one instead",
        rejectsRule: false)
    case let text:
      if let remedy = RuleWords.settings[text] {
        report(RuleProblem(start, "`\(text)` has no effect here", remedy), .warning)
        scanner.skipLine()
        return
      }
      if RuleFilterParser.keywords.contains(text) {
        var parser = try RuleFilterParser(text, statementText())
        context.filters.append(try parser.parse(&context.variables, at: scanner.place(at: start)))
        return
      }
    }
    do throws(RuleProblem) {
      try rule(try action(word, start), start)
    } catch {
      guard let (requirement, sid) = unmetRequirement(from: start) else { throw error }
      skip(requirement, sid: sid, start)
    }
  }

  /// Passes over a rule that is for another engine.
  private mutating func skip(_ requirement: String, sid: String, _ start: Int) {
    result.skipped += 1
    report(RuleProblem(start, "rule \(sid) is passed over: it requires \(requirement)", ""), .note)
    recover(from: start)
  }

  /// Suricata has an action `config`, too; the configuration line has a colon after its second word.
  private func isConfiguration() -> Bool {
    var ahead = scanner
    ahead.skipBlanks(acrossLines: false)
    _ = ahead.name()
    ahead.skipBlanks(acrossLines: false)
    return ahead.peek() == UInt8(ascii: ":")
  }

  /// The rest of the statement, continued lines included, whose ends become blanks.
  private mutating func statementText() -> ArraySlice<UInt8> {
    var text = restOfLine()
    for index in text.indices where text[index] == 0x5C || text[index] == 0x0A || text[index] == 0x0D {
      text[index] = 0x20
    }
    return text.trimmed
  }

  private mutating func action(_ word: ArraySlice<UInt8>, _ start: Int) throws(RuleProblem) -> RuleAction? {
    let text = word.text
    if let action = RuleWords.actions[text] {
      guard RuleWords.has(action, dialect) else {
        let others = RuleDialect.allCases.filter { RuleWords.has(action, $0) }.map(\.rawValue).joined(separator: ", ")
        throw RuleProblem(
          start, "\(word.shown) is no action of \(dialect.rawValue) rules",
          "name the dialect (\(others)), or another action")
      }
      return action
    }
    if RuleWords.unsupportedActions[text] == dialect { return nil }
    let shown = word.isEmpty ? scanner.bytes[start...].prefix { $0 != 0x20 && $0 != 0x0A } : word
    let names = RuleWords.actions.filter { RuleWords.has($0.value, dialect) }.keys
    let suggestion = nearestWord.find(text, among: names)
    throw RuleProblem(
      start, "\(shown.shown) begins no rule",
      suggestion.map { "did you mean `\($0)`?" } ?? "rules begin with an action such as alert, drop or pass")
  }

  private mutating func restOfLine() -> ArraySlice<UInt8> {
    let start = scanner.position
    scanner.skipLine()
    return scanner.bytes[start..<scanner.position].trimmed
  }

  private mutating func definition(_ start: Int) throws(RuleProblem) {
    let rest = restOfLine()
    let name = rest.prefix(while: RuleScanner.isNameByte)
    let value = rest[name.endIndex...].trimmed
    guard !name.isEmpty, !value.isEmpty, name.endIndex < value.startIndex else {
      throw RuleProblem(
        name.endIndex, "a variable needs a name and a value", "for example `ipvar HOME_NET 10.0.0.0/8`",
        rejectsRule: false)
    }
    context.variables.define(name.text, value)
  }

  private mutating func configuration(_ start: Int) throws(RuleProblem) {
    let rest = restOfLine()
    let name = rest.prefix { $0 != UInt8(ascii: ":") }.trimmed
    let value = rest.drop { $0 != UInt8(ascii: ":") }.dropFirst().trimmed
    switch name.text {
    case "classification": try context.classes.define(value)
    case "reference": try context.references.define(value)
    default:
      report(RuleProblem(start, "config \(name.shown) has no effect here", "set it in the configuration"), .warning)
    }
  }

  // MARK: A rule

  /// `action` is nil for one that is not supported yet.
  private mutating func rule(_ action: RuleAction?, _ start: Int) throws(RuleProblem) {
    let actionEnd = scanner.position
    let head = try RuleHead.parse(
      &scanner, variables: &context.variables, dialect: dialect, nearest: &nearestWord)
    let scanner = self.scanner
    var options = RuleOptionParser(dialect: dialect, classes: context.classes) { scanner.place(at: $0) }
    options.references = context.references
    options.dataSets = context.dataSets
    options.reputations = context.reputations
    options.countries = context.countries
    if action == nil {
      let name = scanner.bytes[start..<actionEnd].text
      options.unsupported.append(RuleFeature(name: "action `\(name)`", offset: start))
    }
    if let feature = head.unsupported { options.unsupported.append(feature) }
    if let ports = head.ignoredPorts {
      report(
        RuleProblem(
          ports, "Snort 3 takes no notice of ports in a rule for `ip`", "write `tcp` or `udp`, or give the ports as any"
        ),
        .warning)
    }
    try body(&options, start)
    if let requirement = options.unmetRequirement {
      return skip(requirement, sid: "\(options.metadata.sid)", start)
    }
    try options.finishBuiltIn(head.missing, start)
    try options.finish(action: action ?? .alert, transport: head.unsupported == nil ? head.ipProtocol : nil, start)
    if let (name, offset) = options.unknownClass, unknownClasses.insert(name).inserted {
      report(
        RuleProblem(
          offset, "the class `\(name.escapedForDisplay)` is not known; its rules get priority 3",
          "define it: `config classification: SHORTNAME,DESCRIPTION,PRIORITY`"), .warning)
    }
    let text = self.scanner.bytes[start..<self.scanner.position]
    if !options.isEnabled || context.selectors.disables(options.metadata, file: scanner.file, text) {
      result.disabled += 1
      return
    }
    var action = action
    if action == .alert, !options.effects.contains(.noAlert),
      context.selectors.drops(options.metadata, file: scanner.file, text)
    {
      action = .drop
    }
    if let response = options.response, action != .pass { action = response }
    options.metadata.action = action ?? .alert
    options.metadata.place = scanner.place(at: start)
    if let first = options.unsupported.first {
      try refuse(options.unsupported, options.metadata, first)
      keep(text, at: start)
      return
    }
    patternTotal += options.patternBytes
    context.dataSets = options.dataSets
    var rule =
      Rule(
        action: options.metadata.action, ipProtocol: head.ipProtocol, source: head.source,
        destination: head.destination, isBidirectional: head.isBidirectional, view: head.view, tests: options.tests,
        effects: options.effects, threshold: options.threshold, detectionFilter: options.detectionFilter,
        activates: options.activates,
        activatedBy: options.activatedBy, count: options.count, metadata: options.metadata, dialect: dialect,
        head: head.text)
    rule.widenToMalformed()
    if rule.replaces {
      rule.view = .packets
      if dialect == .snort3, rule.action != .rewrite {
        report(
          RuleProblem(
            start,
            "`replace` of rule \(rule.metadata.gid):\(rule.metadata.sid) has no effect without the action `rewrite`",
            "begin the rule with `rewrite`"), .warning)
      }
    }
    result.add(rule, bytes: start..<self.scanner.position)
  }

  /// Leaves out a rule that is right and cannot be evaluated.
  private mutating func refuse(
    _ features: [RuleFeature], _ metadata: RuleMetadata, _ first: RuleFeature
  ) throws(RuleProblem) {
    var names: [String] = []
    for feature in features where !names.contains(feature.name) { names.append(feature.name) }
    result.rejected += 1
    result.unsupported.append(
      UnsupportedRule(
        gid: metadata.gid, sid: metadata.sid, features: names, place: scanner.place(at: first.offset)))
    report(
      RuleProblem(
        first.offset,
        "\(names.joined(separator: ", ")) of rule \(metadata.gid):\(metadata.sid) \(names.count == 1 ? "is" : "are") not supported yet",
        features.lazy.compactMap(\.reason).first.map { "the rule is left out, and will be: \($0)" }
          ?? "the rule is left out"))
  }

  private mutating func body(_ options: inout RuleOptionParser, _ start: Int) throws(RuleProblem) {
    let acrossLines = dialect == .snort3
    scanner.position += 1  // the opening parenthesis
    while true {
      let before = scanner.position
      scanner.skipBlanks(acrossLines: acrossLines)
      guard let byte = scanner.peek(), byte != 0x0A, !beginsNextRule(after: before) else {
        throw RuleProblem(
          before, "the rule that begins in line \(scanner.place(at: start).line) is not closed", "close it with `)`")
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
      let nameEnd = scanner.position
      scanner.skipBlanks(acrossLines: acrossLines)
      var value: ArraySlice<UInt8>?
      if scanner.peek() == UInt8(ascii: ":") {
        scanner.position += 1
        value = try optionValue(name, start)
      }
      guard scanner.peek() == UInt8(ascii: ";") else {
        throw RuleProblem(nameEnd, "a `;` is missing after the option \(name.shown)", "end each option with `;`")
      }
      scanner.position += 1
      if try !options.option(name, value: value) { throw unknown(name) }
    }
  }

  /// The options of the rule that begins at `start`, as far as they can be told apart.
  mutating func optionsAhead(from start: Int) -> [(name: ArraySlice<UInt8>, value: ArraySlice<UInt8>?)] {
    var found: [(name: ArraySlice<UInt8>, value: ArraySlice<UInt8>?)] = []
    scanner.position = start
    while let byte = scanner.peek(), byte != UInt8(ascii: "("), byte != 0x0A { scanner.position += 1 }
    while let byte = scanner.peek(), byte != UInt8(ascii: ")"), byte != 0x0A,
      found.count < RuleOptionParser.optionMaximum
    {
      scanner.position += 1
      scanner.skipBlanks(acrossLines: false)
      let name = scanner.name()
      scanner.skipBlanks(acrossLines: false)
      var value: ArraySlice<UInt8>?
      if scanner.peek() == UInt8(ascii: ":") {
        scanner.position += 1
        value = try? optionValue(name, start)
        if value == nil { break }
      }
      guard scanner.peek() == UInt8(ascii: ";") else { break }
      found.append((name, value))
    }
    return found
  }

  /// Whether a line that begins a statement was reached over the end of the line where `before` lies.
  private func beginsNextRule(after before: Int) -> Bool {
    guard dialect == .snort3, let newline = scanner.bytes[before..<scanner.position].lastIndex(of: 0x0A) else {
      return false
    }
    var ahead = scanner
    ahead.position = newline + 1
    return RuleWords.beginStatement(ahead)
  }

  private mutating func unknown(_ name: ArraySlice<UInt8>) -> RuleProblem {
    let text = name.text
    var remedy = "give the dialect if this is not \(dialect.rawValue)"
    let others = OptionNames.dialects(with: text)
    if dialect == .snort3, OptionNames.contentModifiers.contains(text) {
      remedy = "in Snort 3 it stands inside the content: `content:\"x\",\(text)`"
    } else if !others.isEmpty {
      remedy = "it belongs to \(others.map(\.rawValue).joined(separator: " and ")): name the dialect if that is meant"
    } else if let near = nearestOption.find(text, among: OptionNames.known(in: dialect)) {
      remedy = "did you mean `\(near)`?"
    }
    return RuleProblem(name.startIndex, "\(name.shown) is no option of \(dialect.rawValue) rules", remedy)
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

  /// Up to the `;` that ends the option. In Snort 3 one inside quotation marks does not; in the other dialects every one
  /// does that has no backslash before it. A continued line is blanks, except inside quotation marks.
  private mutating func optionValue(_ name: ArraySlice<UInt8>, _ start: Int) throws(RuleProblem) -> ArraySlice<UInt8> {
    let from = scanner.position
    var inQuotes = false
    var continuations: [Range<Int>] = []
    while let byte = scanner.peek() {
      if scanner.position - start > Self.ruleLengthMaximum {
        throw RuleProblem(start, "a rule has \(Self.ruleLengthMaximum) bytes at the most", "split or shorten it")
      }
      if byte == 0x5C {
        let length = scanner.continuationLength(at: scanner.position)
        if let length, !inQuotes { continuations.append(scanner.position..<scanner.position + length) }
        scanner.position = min(scanner.position + (length ?? 2), scanner.bytes.count)
        continue
      }
      if byte == 0x0A, dialect != .snort3 || inQuotes || RuleWords.beginStatement(scanner.at(scanner.position + 1)) {
        break
      }
      if byte == UInt8(ascii: "\"") { inQuotes.toggle() }
      if byte == UInt8(ascii: ";"), !inQuotes || dialect != .snort3 {
        var value = scanner.bytes[from..<scanner.position]
        for index in continuations.joined() { value[index] = 0x20 }
        return value
      }
      scanner.position += 1
    }
    if inQuotes {
      throw RuleProblem(name.startIndex, "the text of \(name.shown) is not closed", "close it with `\"`")
    }
    throw RuleProblem(name.startIndex, "the option \(name.shown) is not ended", "end it with `;`")
  }
}
