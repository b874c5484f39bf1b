import VMFenceCore

/// What a captured value is kept with, or told with. Raw values stand in images.
package enum CaptureScope: UInt8, Hashable, Sendable, CaseIterable, BitwiseCopyable { case flow = 1, packet, alert }

/// A capture of `pcre` that goes to a variable.
package struct VariableCapture: Hashable, Sendable {
  /// Of one expression at the most.
  static let limit = 4
  /// Captures of an expression that have a number.
  static let groupLimit = 15

  /// From 1.
  package var group: Int
  package var scope: CaptureScope
  package var name: String
  /// Of one for the alert: which of `RuleMetadata.captures` it is.
  package var number: UInt8 = 0
}

/// `flowvar` and `pktvar`: some bytes stand in a captured value.
package struct VariableTest: Hashable, Sendable {
  package var scope: CaptureScope
  package var name: String
  package var pattern: [UInt8]
  package var isNegated: Bool
}

extension RuleOptionParser {
  private static let scopes: [(prefix: String, scope: CaptureScope)] = [
    ("flow", .flow), ("pkt", .packet), ("alert", .alert),
  ]

  /// `flow:NAME, pkt:NAME, alert:NAME …`, one for each capture in its order.
  mutating func captures(_ name: ArraySlice<UInt8>, _ text: ArraySlice<UInt8>) throws(RuleProblem) -> [VariableCapture]
  {
    var result: [VariableCapture] = []
    for part in text.split(at: UInt8(ascii: ",")) {
      let words = part.split(at: UInt8(ascii: ":"))
      guard words.count == 2, let scope = Self.scopes.first(where: { words[0].text == $0.prefix })?.scope else {
        throw RuleProblem(
          part.startIndex, "\(name.shown): \(part.shown) is no variable", "write flow:NAME, pkt:NAME or alert:NAME")
      }
      result.append(try capture(name, result.count + 1, scope, bitName(name, words[1]), at: part.startIndex))
    }
    guard result.count <= VariableCapture.limit else {
      throw RuleProblem(
        text.startIndex, "\(name.shown): more than \(VariableCapture.limit) variables",
        "use another `pcre` for the others")
    }
    return result
  }

  private mutating func capture(
    _ option: ArraySlice<UInt8>, _ group: Int, _ scope: CaptureScope, _ name: String, at offset: Int
  ) throws(RuleProblem) -> VariableCapture {
    guard scope == .alert else { return VariableCapture(group: group, scope: scope, name: name) }
    if !metadata.captures.contains(name) { metadata.captures.append(name) }
    guard let number = metadata.captures.firstIndex(of: name), number < VariableCapture.limit else {
      throw RuleProblem(
        offset, "\(option.shown): more than \(VariableCapture.limit) values for the alert of one rule",
        "leave out some of them")
    }
    return VariableCapture(group: group, scope: scope, name: name, number: UInt8(number))
  }

  /// Those that the expression names itself: `(?P<flow_NAME>…)`, `(?P<pkt_NAME>…)`, `(?P<alert_NAME>…)`.
  mutating func namedCaptures(
    _ name: ArraySlice<UInt8>, _ test: RegexTest, _ body: ArraySlice<UInt8>
  ) throws(RuleProblem) -> [VariableCapture] {
    var result: [VariableCapture] = []
    for (group, title) in try check(test, name, body) {
      for (prefix, scope) in Self.scopes where title.hasPrefix(prefix + "_") {
        result.append(
          try capture(name, group, scope, String(title.dropFirst(prefix.count + 1)), at: body.startIndex))
      }
    }
    guard result.count <= VariableCapture.limit, result.allSatisfy({ $0.group <= VariableCapture.groupLimit }) else {
      throw RuleProblem(
        body.startIndex,
        "\(name.shown): more than \(VariableCapture.limit) variables, or beyond capture \(VariableCapture.groupLimit)",
        "use another `pcre` for the others")
    }
    return result
  }

  /// `NAME,[!]"CONTENT"`.
  mutating func variable(
    _ scope: CaptureScope, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>
  ) throws(RuleProblem) {
    guard let comma = value.firstIndex(of: UInt8(ascii: ",")) else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not NAME,\"CONTENT\"",
        "write the variable's name, a comma, and a content in quotation marks")
    }
    let variable = try bitName(name, value[..<comma].trimmed)
    var text = value[(comma + 1)...].trimmed
    let isNegated = text.first == UInt8(ascii: "!")
    if isNegated { text = text.dropFirst().trimmed }
    let (body, tail) = try quotedExpression(name, text)
    if let tail { throw RuleProblem(tail.startIndex, "\(tail.shown) stands after the content", "take it out") }
    let pattern = try Self.pattern(body, dialect)
    guard pattern.count <= CapturedValues.valueLimit else {
      throw RuleProblem(
        body.startIndex, "\(name.shown): a content of \(pattern.count) bytes",
        "values have \(CapturedValues.valueLimit) bytes at the most")
    }
    tests.append(
      .state(.variable(VariableTest(scope: scope, name: variable, pattern: pattern, isNegated: isNegated))))
  }
}
