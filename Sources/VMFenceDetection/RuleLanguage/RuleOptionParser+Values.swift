import VMFenceCore

/// How options take their values.
extension RuleOptionParser {
  func required(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) -> ArraySlice<UInt8> {
    guard let value = value?.trimmed, !value.isEmpty else {
      throw RuleProblem(name.startIndex, "\(name.shown) needs a value", "write `\(name.text.escapedForDisplay):VALUE;`")
    }
    return value
  }

  func none(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    if let value, !value.trimmed.isEmpty { throw RuleProblem(value.startIndex, "\(name.shown) takes no value") }
  }

  func number(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, _ range: ClosedRange<Int>
  ) throws(RuleProblem) -> Int {
    let value = try required(name, value)
    guard let number = Int(value.text), range.contains(number) else {
      throw RuleProblem(
        value.startIndex,
        "\(name.shown): \(value.shown) is not a whole number from \(range.lowerBound) to \(range.upperBound)")
    }
    return number
  }

  /// A text in quotation marks (which Snort 2 also takes without), with `\"`, `\;` and `\\` resolved.
  func quoted(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) -> String {
    var value = try required(name, value)
    if value.first == UInt8(ascii: "\"") {
      guard value.count >= 2, value.last == UInt8(ascii: "\"") else {
        throw RuleProblem(
          value.startIndex, "\(name.shown): the text is not closed",
          dialect == .snort3 ? "close it with `\"`" : "close it with `\"`, and write a semicolon in it as `\\;`")
      }
      value = value.dropFirst().dropLast()
    } else if dialect != .snort2 {
      throw RuleProblem(value.startIndex, "\(name.shown): the text is not in quotation marks", "write \"TEXT\"")
    }
    var bytes: [UInt8] = []
    var index = value.startIndex
    while index < value.endIndex {
      if value[index] == 0x5C {
        if let length = value.continuationLength(at: index) {
          index += length
          continue
        }
        index += 1
      }
      if index < value.endIndex { bytes.append(value[index]) }
      index += 1
    }
    return bytes.text
  }

  func number(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, maximum: UInt64, arrowIncludesEnds: Bool = false,
    dashIncludesEnds: Bool = false, hasSigns: Bool = true
  ) throws(RuleProblem) -> NumberTest {
    let form = NumberForm(
      dialect: dialect, maximum: maximum, arrowIncludesEnds: arrowIncludesEnds, dashIncludesEnds: dashIncludesEnds,
      hasSigns: hasSigns)
    return try form.parse(name, required(name, value))
  }
}
