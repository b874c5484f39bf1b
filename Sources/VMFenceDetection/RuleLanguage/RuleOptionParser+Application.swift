import VMFenceCore
import VMFencePackets

/// Options about application layers, and whatever no other family knows: their arguments are checked, and the rule is refused as not
/// supported yet.
extension RuleOptionParser {
  mutating func applicationOption(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) {
    if text == "decode-event" || text == "engine-event" {
      try decodeEvent(name, required(name, value))
      return
    }
    if let form = ApplicationOptions.form(of: text, in: dialect) { try check(form, name, value) }
    refuse("option `\(text)`", at: name.startIndex, because: ApplicationOptions.reasons[text])
    if case .pattern? = ApplicationOptions.form(of: text, in: dialect) { lastPattern = .unsupported }
  }

  private mutating func decodeEvent(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    var text = value.text
    if text.hasPrefix("decoder.") { text.removeFirst("decoder.".count) }
    guard let event = DecodeEvent(named: text) else {
      var search = NearestName()
      let nearest = search.find(text, among: DecodeEvent.allCases.map(\.name))
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not known",
        nearest.map { "is `\($0)` meant?" } ?? "names are like ipv4.trunc_pkt, tcp.opt_invalid_len")
    }
    tests.append(.header(.decodeEvent([event])))
  }

  private func check(
    _ form: ApplicationOptions.Form, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) {
    switch form {
    case .nothing: try none(name, value)
    case .modifier:
      try none(name, value)
      guard lastPattern != .none else {
        throw RuleProblem(
          name.startIndex, "\(name.shown) stands before any content", "put it after the content it is for")
      }
    case .anything: break
    case .storage where value == nil: break
    case .text:
      // Quotation marks may be left out.
      let value = try required(name, value)
      if value.first == UInt8(ascii: "\"") { _ = try quoted(name, value) }
    case .messagePart where value == nil: break
    case .pattern: try checkPattern(name, required(name, value))
    case .file:
      let value = try required(name, value)
      _ = try required(name, value.first == UInt8(ascii: "!") ? value.dropFirst() : value)
    default: try checkWords(form, name, required(name, value))
    }
  }

  private func checkPattern(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    var rest = value
    if rest.first == UInt8(ascii: "!") { rest = rest.dropFirst().trimmed }
    guard rest.first == UInt8(ascii: "\"") else {
      throw RuleProblem(rest.startIndex, "\(name.shown): the pattern is not in quotation marks", "write \"TEXT\"")
    }
    var end = rest.startIndex + 1
    while end < rest.endIndex, rest[end] != UInt8(ascii: "\"") { end += rest[end] == 0x5C ? 2 : 1 }
    guard end < rest.endIndex else {
      throw RuleProblem(rest.startIndex, "\(name.shown): the pattern is not closed", "close it with `\"`")
    }
    _ = try Self.pattern(rest[rest.startIndex + 1..<end], dialect)
  }

  private func checkWords(
    _ form: ApplicationOptions.Form, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>
  ) throws(RuleProblem) {
    switch form {
    case .number(let maximum): try checkNumber(name, value, maximum)
    case .numberOr(let maximum, let known):
      let parts = value.split(at: UInt8(ascii: ","))
      let word = parts[0].first == UInt8(ascii: "!") ? parts[0].dropFirst() : parts[0]
      if word.starts(with: Array("count ".utf8)) {
        _ = try number(name, word.dropFirst(6).trimmed, maximum: UInt64(UInt32.max))
      } else if word.first.map({ (0x61...0x7A).contains($0 | 0x20) }) == true {
        try checkWord(name, word, known)
      } else {
        _ = try number(name, parts[0], maximum: maximum)
      }
      try checkIndices(name, parts.dropFirst())
    case .word(let known): try checkWord(name, value, known)
    case .list(let known):
      for item in value.unquoted.split(at: UInt8(ascii: ",")) {
        for part in item.split(at: UInt8(ascii: "|")) {
          try checkWord(name, part.first == UInt8(ascii: "!") ? part.dropFirst() : part, known)
        }
      }
    case .numbers(let maximum):
      for item in value.unquoted.split(at: UInt8(ascii: ",")) { try checkNumber(name, item, maximum, plainDash: true) }
    case .messagePart: try checkMessagePart(name, value, hasNumber: false)
    case .messageNumber: try checkMessagePart(name, value, hasNumber: true)
    case .interface: try checkInterface(name, value)
    case .length: try checkLength(name, value)
    case .configuration: try checkConfiguration(name, value)
    case .mark: try checkMark(name, value)
    default: try checkParts(form, name, value)
    }
  }

  /// `urilen`: in Snort 2 `A<>B` has A and B in it.
  private func checkLength(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    _ = try number(name, parts[0], maximum: 65_535, arrowIncludesEnds: dialect == .snort2)
    for part in parts.dropFirst() { try checkWord(name, part, ["raw", "norm"]) }
  }

  private func checkConfiguration(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let known: [String: Set<String>] = [
      "logging": ["disable"], "tracking": ["disable"], "type": ["tx", "flow", "packet"],
      "scope": ["tx", "flow", "packet"],
    ]
    for argument in arguments(value) {
      guard let words = known[argument.text] else {
        throw RuleProblem(
          argument.name.startIndex, "\(name.shown): \(argument.name.shown) is not known",
          "write `config:logging disable, type TYPE, scope SCOPE;`")
      }
      try checkWord(name, required(argument.name, argument.value), words)
    }
  }

  private func checkMark(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    for number in parts[0].split(at: UInt8(ascii: "/")) { _ = try integer(name, number, 0...0xFFFF_FFFF) }
    for part in parts.dropFirst() { try checkWord(name, part, ["packet", "flow"]) }
  }

  func checkWord(
    _ name: ArraySlice<UInt8>, _ word: ArraySlice<UInt8>, _ known: Set<String>
  ) throws(RuleProblem) {
    let text = word.unquoted.text.lowercased()
    guard !text.isEmpty else { throw RuleProblem(word.startIndex, "\(name.shown): a word is missing") }
    guard known.isEmpty || known.contains(text) else {
      throw RuleProblem(
        word.startIndex, "\(name.shown): \(word.shown) is not known", "one of \(known.sorted().joined(separator: ", "))"
      )
    }
  }

  /// A comparison, and in Suricata which of several values is meant (`1,0`, `1,all`).
  private func checkNumber(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, _ maximum: UInt64, plainDash: Bool = false
  ) throws(RuleProblem) {
    let parts = value.unquoted.split(at: UInt8(ascii: ","))
    if plainDash {
      for end in parts[0].split(at: UInt8(ascii: "-")) {
        guard let number = UInt64(end.trimmed.text), number <= maximum else {
          throw RuleProblem(end.startIndex, "\(name.shown): \(end.shown) is not a number from 0 to \(maximum)")
        }
      }
      return
    }
    _ = try number(name, parts[0], maximum: maximum)
    try checkIndices(name, parts.dropFirst())
  }

  private static let messageWords: Set<String> = [
    "request", "with_header", "with_body", "with_trailer", "scheme", "host", "port", "path", "query", "fragment",
    "absent", "numeric", "nocase",
  ]

  private func checkMessagePart(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, hasNumber: Bool
  ) throws(RuleProblem) {
    for (index, item) in value.split(at: UInt8(ascii: ",")).enumerated() {
      let words = item.split(separator: 0x20, maxSplits: 1).map(\.trimmed)
      guard let first = words.first else { throw RuleProblem(item.startIndex, "\(name.shown): a word is missing") }
      if hasNumber, index == 0 {
        _ = try number(name, item, maximum: 65_535)
      } else if first.isText("field") || first.isText("check") || first.isText("numeric") {
        guard words.count == 2 else {
          throw RuleProblem(item.startIndex, "\(name.shown): \(first.shown) needs a name", "write `field NAME`")
        }
      } else if !Self.messageWords.contains(first.text) {
        throw RuleProblem(
          item.startIndex, "\(name.shown): \(item.shown) is not known",
          "one of field NAME, \(Self.messageWords.sorted().joined(separator: ", "))")
      }
    }
  }

  /// `uuid 4b324fc8-1670-01d3-1278-5a47bf6ee188, version <3, any_frag`; the word `uuid` is Snort 3's.
  private func checkInterface(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    var identifier = value.split(at: UInt8(ascii: ","))[0]
    if identifier.starts(with: Array("uuid".utf8)) { identifier = identifier.dropFirst(4).trimmed }
    let groups = identifier.split(at: UInt8(ascii: "-"))
    let digits = Set("0123456789abcdefABCDEF".utf8)
    guard groups.map(\.count) == [8, 4, 4, 4, 12], groups.allSatisfy({ $0.allSatisfy(digits.contains) }) else {
      throw RuleProblem(
        identifier.startIndex, "\(name.shown): \(identifier.shown) is no interface",
        "write a UUID: 4b324fc8-1670-01d3-1278-5a47bf6ee188")
    }
  }
}
