import VMFenceCore

/// What stands before a rule's parenthesis, after its action.
struct RuleHead {
  var ipProtocol: RuleProtocol
  var source: RuleEndpoint
  var destination: RuleEndpoint
  var isBidirectional: Bool
  var text: String

  private static let transports: [String: RuleProtocol] = [
    "tcp": .tcp, "udp": .udp, "icmp": .icmp, "ip": .ip,
  ]
  private static let suricataTransports: [String: RuleProtocol] = ["icmpv4": .icmp, "icmpv6": .icmp]

  static func parse(
    _ scanner: inout RuleScanner, variables: RuleVariables, dialect: RuleDialect, start: Int
  ) throws(RuleProblem) -> RuleHead {
    var words: [ArraySlice<UInt8>] = []
    while let word = try word(&scanner, dialect, start) {
      words.append(word)
      if words.count > 6 {
        throw RuleProblem(
          word.startIndex, "\(word.shown) is too much before the `(`",
          "write ACTION PROTOCOL ADDRESS PORT -> ADDRESS PORT (")
      }
    }
    guard let name = words.first else {
      if dialect == .snort3 {
        throw RuleProblem(
          start, "rules without a head are not supported yet", "give it one: `alert ip any any -> any any (`")
      }
      throw RuleProblem(
        scanner.position, "the protocol is missing", "write ACTION PROTOCOL ADDRESS PORT -> ADDRESS PORT (")
    }
    guard let transport = transports[name.text] ?? (dialect == .suricata ? suricataTransports[name.text] : nil) else {
      if dialect != .snort2, name.allSatisfy(RuleScanner.isNameByte) {
        throw RuleProblem(
          name.startIndex, "the protocol \(name.shown) is not supported yet", "tcp, udp, icmp and ip are")
      }
      throw RuleProblem(name.startIndex, "\(name.shown) is no protocol", "use tcp, udp, icmp or ip")
    }
    guard words.count == 6 else {
      throw RuleProblem(
        words[words.count - 1].startIndex, "the rule's head has \(words.count + 1) of its 7 parts",
        "write ACTION PROTOCOL ADDRESS PORT -> ADDRESS PORT (")
    }
    guard words[3].isText("->") || words[3].isText("<>") else {
      throw RuleProblem(
        words[3].startIndex, "\(words[3].shown) is no direction",
        words[3].isText("<-") ? "write `->` and swap the ends" : "use `->` or `<>`")
    }
    let hasPorts = transport != .icmp
    let source = RuleEndpoint(
      addresses: try variables.addresses(words[1]), ports: hasPorts ? try variables.ports(words[2]) : .any)
    let destination = RuleEndpoint(
      addresses: try variables.addresses(words[4]), ports: hasPorts ? try variables.ports(words[5]) : .any)
    return RuleHead(
      ipProtocol: transport, source: source, destination: destination, isBidirectional: words[3].isText("<>"),
      text: words.map(\.text).joined(separator: " "))
  }

  /// The next word; a list in brackets with blanks in it is one. Nil at the parenthesis.
  private static func word(
    _ scanner: inout RuleScanner, _ dialect: RuleDialect, _ start: Int
  ) throws(RuleProblem) -> ArraySlice<UInt8>? {
    scanner.skipBlanks(acrossLines: dialect == .snort3)
    let from = scanner.position
    var depth = 0
    while let byte = scanner.peek() {
      if byte == 0x0A, dialect != .snort3 { break }
      if byte == UInt8(ascii: "[") { depth += 1 }
      if byte == UInt8(ascii: "]") { depth -= 1 }
      if depth <= 0, byte == 0x20 || byte == 0x09 || byte == 0x0D || byte == 0x0A || byte == UInt8(ascii: "(") { break }
      scanner.position += 1
    }
    if depth > 0 { throw RuleProblem(from, "a list is not closed", "close it with `]`") }
    guard let byte = scanner.peek(), byte != 0x0A || dialect == .snort3 else {
      throw RuleProblem(from, "the rule has no `(`", "the options stand in parentheses after the head")
    }
    return from == scanner.position ? nil : scanner.bytes[from..<scanner.position]
  }
}

/// What can only be said of a rule as a whole.
enum RuleChecks {
  static func check(_ rule: inout Rule, start: Int) throws(RuleProblem) {
    for test in rule.tests {
      guard case .content(let content) = test else { continue }
      let size = Int32(content.pattern.count)
      func wrong(_ message: String, _ remedy: String) -> RuleProblem {
        RuleProblem(start, "content \(content.pattern.shown): \(message)", remedy)
      }
      if let depth = content.depth, depth < size {
        throw wrong("depth \(depth) is less than its \(size) bytes", "use a depth of \(size) or more")
      }
      if let within = content.within, within < size, within != 0 {
        throw wrong("within \(within) is less than its \(size) bytes", "use \(size) or more")
      }
      if content.isRelative, content.offset != nil || content.depth != nil {
        throw wrong("offset or depth with distance or within", "use either the absolute or the relative ones")
      }
      if content.isNegated, content.fastPattern != nil {
        throw wrong("a negated content cannot be the fast pattern", "take fast_pattern out")
      }
    }
    for test in rule.tests {
      switch test {
      case .tcpFlags where rule.ipProtocol != .tcp && rule.ipProtocol != .ip:
        throw RuleProblem(start, "`flags` in a rule that is not for TCP", "make it a tcp rule")
      case .icmpType where rule.ipProtocol != .icmp && rule.ipProtocol != .ip,
        .icmpCode where rule.ipProtocol != .icmp && rule.ipProtocol != .ip:
        throw RuleProblem(start, "`itype` or `icode` in a rule that is not for ICMP", "make it an icmp rule")
      default: break
      }
    }
    if rule.action == .activate, rule.activates == nil {
      throw RuleProblem(start, "an `activate` rule names no group", "add `activates:NUMBER;`")
    }
    if rule.action == .dynamic, rule.activatedBy == nil || rule.count == nil {
      throw RuleProblem(
        start, "a `dynamic` rule needs its group and a count", "add `activated_by:NUMBER; count:NUMBER;`")
    }
    if rule.action == .rewrite || rule.action == .react {
      throw RuleProblem(start, "the action `\(rule.action)` is not supported yet", "the rule is left out")
    }
  }
}
