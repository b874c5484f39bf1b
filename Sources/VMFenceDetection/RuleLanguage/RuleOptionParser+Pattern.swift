import VMFenceCore

extension RuleOptionParser {
  /// `text`, `|41 42|` and `\"`, mixed.
  static func pattern(_ text: ArraySlice<UInt8>, _ dialect: RuleDialect) throws(RuleProblem) -> [UInt8] {
    var result: [UInt8] = []
    var index = text.startIndex
    while index < text.endIndex {
      let byte = text[index]
      if byte == UInt8(ascii: "|") {
        index = try hexadecimal(text, from: index, &result)
      } else if byte == 0x5C {
        if let length = text.continuationLength(at: index) {
          index += length
          continue
        }
        guard index + 1 < text.endIndex else {
          throw RuleProblem(index, "nothing follows the backslash", "write `\\\\`")
        }
        let escaped = text[index + 1]
        if dialect == .suricata, !":;\\\"".utf8.contains(escaped) {
          throw RuleProblem(
            index, "\(text[index...index + 1].shown) is no escape", "write a backslash as `\\\\`, other bytes as |41|")
        }
        result.append(escaped)
        index += 2
      } else {
        result.append(byte)
        index += 1
      }
    }
    if result.isEmpty { throw RuleProblem(text.startIndex, "the content is empty", "give it at least one byte") }
    if result.count > patternMaximum {
      throw RuleProblem(
        text.startIndex, "the content has \(result.count) bytes; at most \(patternMaximum) are taken", "split it")
    }
    return result
  }

  /// The bytes between two `|`; returns the index after the second.
  private static func hexadecimal(
    _ text: ArraySlice<UInt8>, from start: Int, _ result: inout [UInt8]
  ) throws(RuleProblem) -> Int {
    var half: UInt8?
    for index in text.indices[(start + 1)...] {
      let byte = text[index]
      if byte == UInt8(ascii: "|") {
        if half != nil {
          throw RuleProblem(start, "an odd number of hexadecimal digits", "write two digits a byte: |0A 1B|")
        }
        return index + 1
      } else if let digit = byte.hexadecimalDigitValue {
        if let first = half { result.append(first << 4 | digit) }
        half = half == nil ? digit : nil
      } else if byte != 0x20 {
        throw RuleProblem(index, "\([byte].shown) is no hexadecimal digit", "close the bytes with `|`")
      }
    }
    throw RuleProblem(start, "the bytes in `|` are not closed", "close them with `|`")
  }
}
