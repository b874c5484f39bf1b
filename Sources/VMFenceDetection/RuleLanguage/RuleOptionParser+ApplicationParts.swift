import VMFenceCore

/// Options about application layers whose value has parts.
extension RuleOptionParser {
  func checkParts(
    _ form: ApplicationOptions.Form, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>
  ) throws(RuleProblem) {
    switch form {
    case .names:
      for item in value.unquoted.split(at: UInt8(ascii: ",")) {
        for part in item.split(at: UInt8(ascii: "|")) { try checkName(name, part) }
      }
    case .name: try checkName(name, value.unquoted)
    case .state:
      let isCompared = value.first == UInt8(ascii: "<") || value.first == UInt8(ascii: ">")
      try checkName(name, isCompared ? value.dropFirst().trimmed : value)
    case .numbersOr(let maximum, let known):
      for item in value.unquoted.split(at: UInt8(ascii: ",")) { try checkNumberOrWord(name, item, maximum, known) }
    case .bits(let maximum, let known):
      guard Self.beginsWithLetter(value.first == UInt8(ascii: "!") ? value.dropFirst() : value) else {
        _ = try number(name, value, maximum: maximum)
        return
      }
      for item in value.split(at: UInt8(ascii: ",")) {
        try checkWord(name, item.first == UInt8(ascii: "!") ? item.dropFirst() : item, known)
      }
    case .fields(let maxima): try checkFields(name, value, maxima)
    case .object: try checkObject(name, value)
    case .modbus: try checkModbus(name, value)
    case .attribute(let known, let maximum): try checkAttribute(name, value, known, maximum)
    case .date: try checkDate(name, value)
    case .applicationProtocol:
      let parts = value.split(at: UInt8(ascii: ","))
      try checkName(name, parts[0])
      for part in parts.dropFirst() {
        try checkWord(name, part, ["final", "original", "either", "to_server", "to_client"])
      }
    case .storage: try checkStorage(name, value)
    case .encodings: try checkEncodings(name, value)
    case .fileFacts: try checkFileFacts(name, value)
    default: break
    }
  }

  private static func beginsWithLetter(_ value: ArraySlice<UInt8>) -> Bool {
    value.first.map { (0x61...0x7A).contains($0 | 0x20) } == true
  }

  /// Which of several values is meant: `any`, `all`, an index, a part of them (`2:4`), how many of them (`nb>3`).
  func checkIndices(_ name: ArraySlice<UInt8>, _ parts: ArraySlice<ArraySlice<UInt8>>) throws(RuleProblem) {
    let words: Set<String> = ["any", "all", "all1", "all_or_absent", "or_absent"]
    for part in parts {
      let text = part.text.lowercased()
      if words.contains(text) { continue }
      if text.hasPrefix("nb") {
        _ = try number(name, part.dropFirst(2).trimmed, maximum: UInt64(UInt32.max))
        continue
      }
      let index = part.starts(with: Array("oob_or ".utf8)) ? part.dropFirst(7).trimmed : part
      let ends = index.split(at: UInt8(ascii: ":"))
      guard ends.count <= 2, ends.allSatisfy({ Int32($0.text) != nil || ends.count == 2 && $0.isEmpty }) else {
        throw RuleProblem(
          part.startIndex, "\(name.shown): \(part.shown) does not say which of several values",
          "write any, all, all_or_absent, or_absent, an index, START:END or nb>N")
      }
    }
  }

  /// A name, negated or not.
  private func checkName(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let word = value.first == UInt8(ascii: "!") ? value.dropFirst().trimmed : value.trimmed
    let marks = Set("_.-/+".utf8)
    let isName = word.allSatisfy {
      (0x30...0x39).contains($0) || (0x61...0x7A).contains($0 | 0x20) || marks.contains($0)
    }
    guard isName, !word.isEmpty else {
      throw RuleProblem(
        word.startIndex, "\(name.shown): \(word.isEmpty ? "a name is missing" : "\(word.shown) is no name")",
        "names are of letters, digits and `_.-/+`")
    }
  }

  private func checkNumberOrWord(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, _ maximum: UInt64, _ known: Set<String>
  ) throws(RuleProblem) {
    let word = value.first == UInt8(ascii: "!") ? value.dropFirst().trimmed : value.trimmed
    guard Self.beginsWithLetter(word) else {
      _ = try integer(name, word, 0...Int64(clamping: maximum))
      return
    }
    if known.isEmpty { try checkName(name, word) } else { try checkWord(name, word, known) }
  }

  private func checkFields(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, _ maxima: [UInt64]
  ) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    guard parts.count <= maxima.count else {
      throw RuleProblem(
        parts[maxima.count].startIndex, "\(name.shown): more than \(maxima.count) numbers", "leave out the rest")
    }
    for (part, maximum) in zip(parts, maxima) { _ = try integer(name, part, 0...Int64(clamping: maximum)) }
  }

  private func checkObject(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    guard parts.count == 2 else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not a group and a variation",
        dialect == .snort3 ? "write `group N, var N`" : "write GROUP,VARIATION, each from 0 to 255")
    }
    for (part, word) in zip(parts, ["group", "var"]) {
      var digits = part
      if dialect == .snort3 {
        guard part.starts(with: Array((word + " ").utf8)) else {
          throw RuleProblem(
            part.startIndex, "\(name.shown): \(part.shown) is not `\(word) N`", "write `group N, var N`")
        }
        digits = part.dropFirst(word.utf8.count).trimmed
      }
      _ = try integer(name, digits, 0...255)
    }
  }

  /// `function CODE[, subfunction CODE]`, `function [!]CATEGORY`, `access WHAT [TABLE][, address N[, value N]]`, each also with `unit N`.
  private func checkModbus(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    for argument in arguments(value) {
      let given = try required(argument.name, argument.value)
      switch argument.text {
      case "unit": _ = try number(name, given, maximum: 255)
      case "function", "subfunction":
        let word = given.first == UInt8(ascii: "!") ? given.dropFirst().trimmed : given
        if argument.text == "function", Self.beginsWithLetter(word) {
          try checkWord(name, word, ["assigned", "unassigned", "public", "user", "reserved", "all"])
        } else {
          _ = try integer(name, given, 0...(argument.text == "function" ? 255 : 65_535))
        }
      case "access":
        let words = given.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 })
        guard words.count <= 2 else {
          throw RuleProblem(
            words[2].startIndex, "\(name.shown): \(words[2].shown) is too much", "write `access WHAT TABLE`")
        }
        try checkWord(name, words[0], ["read", "write"])
        if words.count == 2 { try checkWord(name, words[1], ["discretes", "coils", "input", "holding"]) }
      case "address", "value": _ = try number(name, given, maximum: 65_535)
      default:
        throw RuleProblem(
          argument.name.startIndex, "\(name.shown): \(argument.name.shown) is not known",
          "one of function, subfunction, access, address, value, unit")
      }
    }
  }

  private func checkAttribute(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, _ known: Set<String>, _ maximum: UInt64
  ) throws(RuleProblem) {
    let end = value.firstIndex { !(0x61...0x7A).contains($0 | 0x20) && !(0x30...0x39).contains($0) && $0 != 0x5F }
    let attribute = value[..<(end ?? value.endIndex)]
    try checkWord(name, attribute, known)
    _ = try number(name, required(name, value[attribute.endIndex...]), maximum: maximum)
  }

  private func checkDate(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let text = value.text
    var dates: [Substring] = []
    if let arrow = text.firstRange(of: "<>") {
      dates = [text[..<arrow.lowerBound], text[arrow.upperBound...]]
    } else {
      dates = [text.first == "<" || text.first == ">" ? text.dropFirst() : text[...]]
    }
    guard dates.allSatisfy(Self.isDate) else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is no time",
        "write YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS (its later parts may be left out) or seconds since 1970, with < or > before or <> between two"
      )
    }
  }

  /// `2026`, `2026-01` … `2026-01-31T23:59:59`, or seconds since 1970.
  private static func isDate(_ text: Substring) -> Bool {
    var rest = text
    while rest.first == " " { rest.removeFirst() }
    while rest.last == " " { rest.removeLast() }
    if rest.count > 4, UInt64(rest) != nil { return true }
    let halves = rest.split(separator: "T", omittingEmptySubsequences: false)
    let day = halves[0].split(separator: "-", omittingEmptySubsequences: false)
    guard halves.count <= 2, (1...3).contains(day.count), halves.count == 1 || day.count == 3 else { return false }
    let dayRanges = [1970...9999, 1...12, 1...31]
    guard day[0].count == 4, zip(day, dayRanges).allSatisfy({ Int($0).map($1.contains) == true }) else { return false }
    guard halves.count == 2 else { return true }
    let time = halves[1].split(separator: ":", omittingEmptySubsequences: false)
    return (1...3).contains(time.count)
      && zip(time, [0...23, 0...59, 0...60]).allSatisfy { Int($0).map($1.contains) == true }
  }

  private func checkStorage(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    guard parts.count <= 2 else {
      throw RuleProblem(parts[2].startIndex, "\(name.shown): a third part", "write `filestore:DIRECTION,SCOPE;`")
    }
    try checkWord(name, parts[0], ["request", "to_server", "response", "to_client", "both"])
    if parts.count == 2 { try checkWord(name, parts[1], ["file", "tx", "ssn", "flow"]) }
  }

  private func checkEncodings(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    guard parts.count == 2 else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not a place and encodings", "write `uri,utf8`")
    }
    try checkWord(name, parts[0], ["uri", "header", "cookie"])
    for part in parts[1].split(at: UInt8(ascii: "|")) {
      try checkWord(name, part.first == UInt8(ascii: "!") ? part.dropFirst() : part, ApplicationOptions.encodings)
    }
  }

  private func checkFileFacts(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    for argument in arguments(value) {
      let given = try required(argument.name, argument.value)
      switch argument.text {
      case "id": _ = try integer(name, given, 1...1023)
      case "type", "category", "group", "version": _ = try quoted(name, given)
      default:
        throw RuleProblem(
          argument.name.startIndex, "\(name.shown): \(argument.name.shown) is not known",
          "one of type, id, category, group, version")
      }
    }
  }
}
