import VMFenceCore

/// The words that begin a statement of a rule file.
enum RuleWords {
  static let actions: [String: RuleAction] = [
    "alert": .alert, "log": .log, "pass": .pass, "drop": .drop, "reject": .reject, "sdrop": .sdrop, "block": .block,
    "rewrite": .rewrite, "rejectsrc": .rejectSource, "rejectdst": .rejectDestination, "rejectboth": .rejectBoth,
    "activate": .activate, "dynamic": .dynamic, "react": .react,
  ]

  /// Actions that have no counterpart yet.
  static let unsupportedActions: [String: RuleDialect] = [
    "file_id": .snort3, "config": .suricata, "accept": .suricata,
  ]

  static func has(_ action: RuleAction, _ dialect: RuleDialect) -> Bool {
    switch action {
    case .alert, .pass, .drop, .reject: true
    case .log, .block: dialect != .suricata
    case .sdrop, .activate, .dynamic: dialect == .snort2
    case .rewrite, .react: dialect == .snort3
    case .rejectSource, .rejectDestination, .rejectBoth: dialect == .suricata
    }
  }

  /// Lines of a `snort.conf` that are settings of Snort itself, with what to do instead.
  static let settings: [String: String] = [
    "preprocessor": "the engine has its own decoding", "output": "name the outputs in the configuration",
    "dynamicpreprocessor": "there are no plug-ins", "dynamicengine": "there are no plug-ins",
    "dynamicdetection": "there are no plug-ins", "ruletype": "write the action that is meant into the rules",
  ]

  private static let definitions: Set<String> = ["var", "ipvar", "portvar", "config", "include"]

  /// Whether the line that begins at the scanner's position begins a statement: an action and then a blank or the
  /// parenthesis (no option of any dialect can be followed by those), or a definition.
  static func beginStatement(_ scanner: RuleScanner) -> Bool {
    var ahead = scanner
    ahead.skipBlanks(acrossLines: false)
    let word = ahead.name()
    guard !word.isEmpty, word.count <= 12, let next = ahead.peek() else { return false }
    guard next == 0x20 || next == 0x09 || next == UInt8(ascii: "(") else { return false }
    let text = word.text
    if definitions.contains(text) { return true }
    // `reject` and `alert` are options, too, and `replace : "x"` may have a blank: a statement goes on with a word.
    ahead.skipBlanks(acrossLines: false)
    guard let after = ahead.peek(), after != UInt8(ascii: ":"), after != UInt8(ascii: ";") else { return false }
    return RuleFileParser.isAction(text)
  }
}
