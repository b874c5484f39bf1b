import VMFenceCore

/// Guesses a file's dialect from what only one of them has.
enum DialectDetection {
  /// The first part of a file tells; a dialect does not change within it.
  private static let sampleLength = 262_144

  static func detect(_ text: [UInt8]) -> (dialect: RuleDialect, reason: String) {
    var signs: [(dialect: RuleDialect, sign: String, line: Int)] = []
    var line = 0
    for bytes in text.prefix(sampleLength).split(separator: 0x0A, omittingEmptySubsequences: false) {
      line += 1
      let bytes = bytes.trimmed
      guard let first = bytes.first, first != UInt8(ascii: "#") else { continue }
      if let (dialect, sign) = sign(bytes) { signs.append((dialect, sign, line)) }
    }
    // Most signs win; of equally many those that come first.
    let counts = RuleDialect.allCases.map { dialect in signs.count { $0.dialect == dialect } }
    guard let most = counts.max(), most > 0,
      let best = signs.first(where: { sign in counts[RuleDialect.allCases.firstIndex(of: sign.dialect)!] == most })
    else { return (.snort2, "nothing in it belongs to another dialect alone") }
    return (best.dialect, "line \(best.line) has \(best.sign)")
  }

  private static let lineWords: Set<String> = [
    "var", "ipvar", "portvar", "preprocessor", "dynamicpreprocessor", "dynamicengine", "dynamicdetection", "ruletype",
    "output",
  ]
  private static let actions: [String: RuleDialect] = [
    "sdrop": .snort2, "activate": .snort2, "dynamic": .snort2, "rewrite": .snort3, "react": .snort3,
    "file_id": .snort3, "rejectsrc": .suricata, "rejectdst": .suricata, "rejectboth": .suricata,
  ]
  private static let transports: Set<String> = ["tcp", "udp", "icmp", "ip"]

  /// The first thing in a line that belongs to one dialect only.
  private static func sign(_ line: ArraySlice<UInt8>) -> (RuleDialect, String)? {
    let open = line.firstIndex(of: UInt8(ascii: "(")) ?? line.endIndex
    let head = line[..<open].split(whereSeparator: { $0 == 0x20 || $0 == 0x09 })
    guard let action = head.first?.text else { return bodySign(line) }
    if lineWords.contains(action) { return (.snort2, "a `\(action)` line") }
    if let dialect = actions[action] { return (dialect, "the action `\(action)`") }
    guard RuleFileParser.isAction(action) else { return bodySign(line) }
    if head.count <= 2, open < line.endIndex { return (.snort3, "a rule head without addresses") }
    if head.count > 2, !transports.contains(head[1].text.lowercased()) {
      return (.suricata, "the protocol \(head[1].shown) with addresses")
    }
    if open < line.endIndex, line.last != UInt8(ascii: ")"), line.last != UInt8(ascii: "\\") {
      return (.snort3, "a rule that goes on in the next line without a backslash")
    }
    return bodySign(line[open...].dropFirst())
  }

  /// Looks at the options: names that one dialect has, and where content modifiers stand.
  private static func bodySign(_ body: ArraySlice<UInt8>) -> (RuleDialect, String)? {
    var start = body.startIndex
    var inQuotes = false
    var index = start
    while index < body.endIndex {
      let byte = body[index]
      if byte == UInt8(ascii: "\\") {
        index += 2
        continue
      }
      if byte == UInt8(ascii: "\"") {
        inQuotes.toggle()
      } else if byte == UInt8(ascii: ";"), !inQuotes {
        let option = body[start..<index].trimmed
        start = index + 1
        let name = option.prefix(while: RuleScanner.isNameByte).text
        let dialects = OptionNames.dialects(with: name)
        if dialects.count == 1 { return (dialects[0], "the option `\(name)`") }
        if name == "content", hasModifier(option) { return (.snort3, "a content with modifiers after commas") }
        if name == "threshold" || name == "detection_filter", let word = rateWord(option) {
          return (.suricata, "the option `\(name)` with `\(word)`")
        }
        if name == "target", option.last == UInt8(ascii: "p"), let equal = target(option) { return equal }
      }
      index += 1
    }
    return nil
  }

  private static func rateWord(_ option: ArraySlice<UInt8>) -> String? {
    let words: Set<String> = ["by_rule", "by_both", "by_flow", "backoff", "unique_on"]
    return option.split(whereSeparator: { $0 == 0x20 || $0 == UInt8(ascii: ",") }).map(\.text).first(
      where: words.contains)
  }

  private static func hasModifier(_ content: ArraySlice<UInt8>) -> Bool {
    guard let quote = content.lastIndex(of: UInt8(ascii: "\"")) else { return false }
    return content[(quote + 1)...].trimmed.first == UInt8(ascii: ",")
  }

  private static func target(_ option: ArraySlice<UInt8>) -> (RuleDialect, String)? {
    let value = option.drop { $0 != UInt8(ascii: ":") }.dropFirst().trimmed
    if value.isText("dest_ip") { return (.suricata, "`target:dest_ip`") }
    return value.isText("dst_ip") ? (.snort3, "`target:dst_ip`") : nil
  }
}
