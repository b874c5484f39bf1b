import VMFenceCore

extension NumberTest {
  /// `N`, `=N`, `!N`, `!=N`, `<N`, `<=N`, `>N`, `>=N`, `A<>B`, `A<=>B` and `A-B`. Whether `A<>B` has its ends in it is
  /// the dialect's and the option's affair.
  static func parse(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, maximum: UInt32, arrowIncludesEnds: Bool
  ) throws(RuleProblem) -> NumberTest {
    func wrong(_ remedy: String) -> RuleProblem {
      RuleProblem(value.startIndex, "\(name.shown): \(value.shown) cannot be matched", remedy)
    }
    func number(_ text: Substring) throws(RuleProblem) -> Int64 {
      guard let number = UInt32(text.trimmingBlanks), number <= maximum else {
        throw wrong("write a number from 0 to \(maximum), <N, >N, or A<>B")
      }
      return Int64(number)
    }
    var text = Substring(value.text)
    var negated = false
    var low: Int64 = 0
    var high = Int64(maximum)
    if let arrow = text.firstRange(of: "<=>") ?? text.firstRange(of: "<>") {
      let inclusive = arrowIncludesEnds || text[arrow] == "<=>"
      low = try number(text[..<arrow.lowerBound]) + (inclusive ? 0 : 1)
      high = try number(text[arrow.upperBound...]) - (inclusive ? 0 : 1)
    } else if let dash = text.firstIndex(of: "-"), dash != text.startIndex {
      low = try number(text[..<dash]) + (arrowIncludesEnds ? 0 : 1)
      high = try number(text[text.index(after: dash)...]) - (arrowIncludesEnds ? 0 : 1)
    } else {
      if text.hasPrefix("!") {
        negated = true
        text = text.dropFirst()
      }
      if text.hasPrefix("<=") {
        high = try number(text.dropFirst(2))
      } else if text.hasPrefix(">=") {
        low = try number(text.dropFirst(2))
      } else if text.hasPrefix("<") {
        high = try number(text.dropFirst()) - 1
      } else if text.hasPrefix(">") {
        low = try number(text.dropFirst()) + 1
      } else {
        low = try number(text.hasPrefix("=") ? text.dropFirst() : text)
        high = low
      }
    }
    guard low <= high, high >= 0, low <= Int64(maximum) else { throw wrong("no number lies in it") }
    return NumberTest(low: UInt32(low), high: UInt32(high), isNegated: negated)
  }
}

extension Substring {
  fileprivate var trimmingBlanks: Substring {
    var text = self
    while text.first == " " { text.removeFirst() }
    while text.last == " " { text.removeLast() }
    return text
  }
}

extension TCPFlagsTest {
  /// `[!*+=]FLAGS[,IGNORED]` with the letters F S R P A U C E 1 2 0.
  static func parse(_ value: ArraySlice<UInt8>, dialect: RuleDialect) throws(RuleProblem) -> TCPFlagsTest {
    let parts = value.split(at: UInt8(ascii: ","))
    guard parts.count <= 2, var flags = parts.first else {
      throw RuleProblem(value.startIndex, "flags: one mask at most")
    }
    var mode = Mode.exactly
    func modifier(_ byte: UInt8?) -> Mode? {
      switch byte {
      case UInt8(ascii: "+"): .all
      case UInt8(ascii: "*"): .any
      case UInt8(ascii: "!"): dialect == .suricata ? .notAll : Mode.none
      case UInt8(ascii: "="): .exactly
      default: nil
      }
    }
    if let found = modifier(flags.first) {
      mode = found
      flags = flags.dropFirst()
    } else if let found = modifier(flags.last) {
      mode = found
      flags = flags.dropLast()
    }
    guard !flags.isEmpty else {
      throw RuleProblem(value.startIndex, "flags: no flag is named", "for example `flags:S,CE;`")
    }
    return TCPFlagsTest(mode: mode, flags: try mask(flags), ignored: parts.count == 2 ? try mask(parts[1]) : 0)
  }

  private static func mask(_ letters: ArraySlice<UInt8>) throws(RuleProblem) -> UInt8 {
    var result: UInt8 = 0
    for (offset, byte) in zip(letters.indices, letters) {
      switch byte & 0xDF {
      case UInt8(ascii: "F"): result |= 0x01
      case UInt8(ascii: "S"): result |= 0x02
      case UInt8(ascii: "R"): result |= 0x04
      case UInt8(ascii: "P"): result |= 0x08
      case UInt8(ascii: "A"): result |= 0x10
      case UInt8(ascii: "U"): result |= 0x20
      case UInt8(ascii: "E"): result |= 0x40
      case UInt8(ascii: "C"): result |= 0x80
      default:
        switch byte {
        case UInt8(ascii: "2"): result |= 0x40
        case UInt8(ascii: "1"): result |= 0x80
        case UInt8(ascii: "0"): break
        default: throw RuleProblem(offset, "flags: \([byte].shown) is no TCP flag", "use F, S, R, P, A, U, C, E or 0")
        }
      }
    }
    return result
  }
}

extension RuleThreshold {
  /// `type limit, track by_src, count 5, seconds 60`, for `detection_filter` without the type.
  static func parse(_ value: ArraySlice<UInt8>, isFilter: Bool) throws(RuleProblem) -> RuleThreshold {
    var kind: Kind? = isFilter ? .filter : nil
    var track: Track?
    var count: UInt32?
    var seconds: UInt32?
    for item in value.split(at: UInt8(ascii: ",")) {
      let words = item.split(separator: 0x20).map(\.trimmed)
      guard words.count == 2 else {
        throw RuleProblem(item.startIndex, "\(item.shown) is not NAME VALUE", "for example `count 5`")
      }
      switch (words[0].text, words[1].text) {
      case ("type", "limit") where !isFilter: kind = .limit
      case ("type", "threshold") where !isFilter: kind = .threshold
      case ("type", "both") where !isFilter: kind = .both
      case ("track", "by_src"): track = .bySource
      case ("track", "by_dst"): track = .byDestination
      case ("track", "by_rule"): track = .byRule
      case ("track", "by_both"): track = .byBoth
      case ("count", let text):
        guard let number = UInt32(text), number > 0 else {
          throw RuleProblem(words[1].startIndex, "a count is 1 or more")
        }
        count = number
      case ("seconds", let text):
        guard let number = UInt32(text), number > 0 else {
          throw RuleProblem(words[1].startIndex, "seconds are 1 or more")
        }
        seconds = number
      default:
        throw RuleProblem(
          item.startIndex, "\(item.shown) is not known here",
          isFilter
            ? "write `track by_src, count N, seconds N`"
            : "write `type limit|threshold|both, track by_src|by_dst, count N, seconds N`")
      }
    }
    guard let kind, let track, let count, let seconds else {
      throw RuleProblem(
        value.startIndex, "\(isFilter ? "track" : "type, track"), count and seconds are all needed",
        isFilter ? "write `track by_src, count N, seconds N`" : "write `type limit, track by_src, count N, seconds N`")
    }
    return RuleThreshold(kind: kind, track: track, count: count, seconds: seconds)
  }
}
