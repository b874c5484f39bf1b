import VMFenceCore

/// `flowbits`, `flowint`, `xbits` and `hostbits`.
extension RuleOptionParser {
  /// Letters, digits, and what else names in use have.
  private static func isName(_ text: String) -> Bool {
    !text.isEmpty && text.utf8.count <= 128
      && text.utf8.allSatisfy {
        switch $0 {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
          UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), UInt8(ascii: "."), UInt8(ascii: "-"),
          UInt8(ascii: ":"), UInt8(ascii: "/"), UInt8(ascii: "$"), UInt8(ascii: "+"), UInt8(ascii: "*"),
          UInt8(ascii: "="), UInt8(ascii: "#"), UInt8(ascii: "@"), 0x20:
          true
        default: false
        }
      }
  }

  func bitName(_ option: ArraySlice<UInt8>, _ part: ArraySlice<UInt8>) throws(RuleProblem) -> String {
    let text = part.text
    guard Self.isName(text) else {
      throw RuleProblem(
        part.startIndex, "\(option.shown): \(part.shown) is no name",
        "names are letters, digits, `.`, `_` and `-`, at most 128 of them")
    }
    return text
  }

  // MARK: flowbits

  /// `OPERATION[,NAMES[,GROUP]]`; several names are joined by `|` or `&`.
  mutating func flowBits(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    let operation = parts[0].text.lowercased()
    switch operation {
    case "noalert":
      try atMost(1, parts, name)
      effects.append(.noAlert)
      return
    case "reset":
      try atMost(2, parts, name)
      let group = parts.count > 1 ? try bitName(name, parts[1]) : nil
      effects.append(.flowBits(FlowBitsChange(kind: .unset, bits: .group(group), group: nil)))
      return
    default: break
    }
    try atMost(dialect == .suricata ? 2 : 3, parts, name)
    guard parts.count >= 2 else {
      throw RuleProblem(
        parts[0].startIndex, "\(name.shown): `\(operation.escapedForDisplay)` needs the name of a bit",
        "write `flowbits:OPERATION,NAME;`")
    }
    let group = parts.count > 2 ? try bitName(name, parts[2]) : nil
    switch operation {
    case "set", "unset", "toggle", "setx":
      let kinds: [String: FlowBitsChange.Kind] = ["set": .set, "unset": .unset, "toggle": .toggle, "setx": .setAlone]
      guard let kind = kinds[operation], kind != .setAlone || group != nil else {
        throw RuleProblem(
          parts[0].startIndex, "\(name.shown): `setx` needs a group", "write `flowbits:setx,NAME,GROUP;`")
      }
      let (bits, isAll) = try bitNames(name, parts[1], group)
      // `|` would leave open which.
      guard isAll || dialect == .suricata else {
        throw RuleProblem(parts[1].startIndex, "\(name.shown): only bits joined by `&` can be set", "join them by `&`")
      }
      effects.append(.flowBits(FlowBitsChange(kind: kind, bits: bits, group: group)))
    case "isset", "isnotset":
      let (bits, isAll) = try bitNames(name, parts[1], group)
      let need: FlowBitsTest.Need =
        switch (operation == "isset", isAll) {
        case (true, true): .all
        case (true, false): .any
        // Snort turns the whole round, Suricata each bit.
        case (false, true): dialect == .suricata ? FlowBitsTest.Need.none : .notAll
        case (false, false): dialect == .suricata ? .notAll : FlowBitsTest.Need.none
        }
      tests.append(.state(.flowBits(FlowBitsTest(bits: bits, need: need))))
    default:
      throw RuleProblem(
        parts[0].startIndex, "\(name.shown): \(parts[0].shown) is not known",
        "use set, unset, toggle, isset, isnotset, reset or noalert")
    }
  }

  /// The bits, and whether all of them are meant. With a group the words `any` and `all` stand for its bits.
  private func bitNames(
    _ option: ArraySlice<UInt8>, _ part: ArraySlice<UInt8>, _ group: String?
  ) throws(RuleProblem) -> (FlowBitNames, isAll: Bool) {
    if group != nil, part.isText("any") || part.isText("all") { return (.group(group), part.isText("all")) }
    let hasAnd = part.contains(UInt8(ascii: "&")) && dialect != .suricata
    let hasOr = part.contains(UInt8(ascii: "|"))
    if hasAnd, hasOr {
      throw RuleProblem(part.startIndex, "\(option.shown): both `&` and `|`", "use two options")
    }
    var names: [String] = []
    for item in part.split(at: UInt8(ascii: hasAnd ? "&" : "|")) { names.append(try bitName(option, item)) }
    return (.named(names), isAll: !hasOr)
  }

  private func atMost(_ count: Int, _ parts: [ArraySlice<UInt8>], _ name: ArraySlice<UInt8>) throws(RuleProblem) {
    guard parts.count > count else { return }
    throw RuleProblem(parts[count].startIndex, "\(name.shown): \(parts[count].shown) is too much", "take it out")
  }

  // MARK: flowint

  /// `NAME,OPERATOR,NUMBER|NAME`, `NAME,isset` or `NAME,isnotset`.
  mutating func flowInteger(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    guard parts.count == 2 || parts.count == 3 else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not NAME,OPERATOR,VALUE",
        "write `flowint:NAME,OPERATOR,NUMBER;`, or isset or isnotset after the name")
    }
    let integer = try bitName(name, parts[0])
    let operation = parts[1].text
    func add(_ comparison: FlowIntegerTest.Comparison, _ operand: FlowOperand) {
      tests.append(.state(.flowInteger(FlowIntegerTest(name: integer, comparison: comparison, operand: operand))))
    }
    if parts.count == 2 {
      switch operation {
      case "isset": add(.isSet, .number(0))
      case "isnotset", "notset": add(.isNotSet, .number(0))
      default:
        throw RuleProblem(
          parts[1].startIndex, "\(name.shown): \(parts[1].shown) needs a value", "write it after a comma")
      }
      return
    }
    let operand: FlowOperand =
      if let number = UInt32(parts[2].text) { .number(number) } else { .variable(try bitName(name, parts[2])) }
    let comparisons: [String: FlowIntegerTest.Comparison] = [
      "<": .less, "<=": .lessOrEqual, "==": .equal, "!=": .notEqual, ">=": .greaterOrEqual, ">": .greater,
    ]
    let changes: [String: FlowIntegerChange.Kind] = ["=": .assign, "+": .add, "-": .subtract]
    if let comparison = comparisons[operation] {
      add(comparison, operand)
    } else if let change = changes[operation] {
      effects.append(.flowInteger(FlowIntegerChange(name: integer, kind: change, operand: operand)))
    } else {
      throw RuleProblem(
        parts[1].startIndex, "\(name.shown): \(parts[1].shown) is no operator", "use = + - == != < <= > or >=")
    }
  }

  // MARK: xbits and hostbits

  /// `OPERATION,NAME,track ip_src|ip_dst|ip_pair[,expire SECONDS]`, `set|isset,NAME,track tx`.
  mutating func xbits(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    if parts.count == 1, parts[0].isText("noalert") {
      effects.append(.noAlert)
      return
    }
    let form = "write `xbits:OPERATION,NAME,track ip_src|ip_dst|ip_pair,expire SECONDS;`"
    guard parts.count >= 3 else {
      throw RuleProblem(value.startIndex, "\(name.shown): \(value.shown) lacks parts", form)
    }
    let track = parts[2].split(whereSeparator: { $0 == 0x20 || $0 == 0x09 }).map(\.text)
    let sides: [String: HostSide] = ["ip_src": .source, "ip_dst": .destination, "ip_pair": .pair]
    guard track.count == 2, track[0] == "track" else {
      throw RuleProblem(parts[2].startIndex, "\(name.shown): \(parts[2].shown) is not `track WHAT`", form)
    }
    // Bits of a transaction, which is an application layer's: they are set and asked for, and end with it.
    if track[1] == "tx" {
      _ = try bitName(name, parts[1])
      guard parts.count == 3, parts[0].isText("set") || parts[0].isText("isset") else {
        throw RuleProblem(
          value.startIndex, "\(name.shown): \(value.shown) cannot be with `track tx`",
          "use set or isset, without `expire`")
      }
      refuse("`xbits` with `track tx`", at: parts[2].startIndex)
      return
    }
    guard let side = sides[track[1]] else {
      throw RuleProblem(parts[2].startIndex, "\(name.shown): nothing is tracked by \(parts[2].shown)", form)
    }
    var seconds: UInt32 = 30
    for part in parts.dropFirst(3) {
      let words = part.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 }).map(\.text)
      guard words.count == 2, words[0] == "expire", let number = UInt32(words[1]), number > 0 else {
        throw RuleProblem(part.startIndex, "\(name.shown): \(part.shown) is not `expire SECONDS`", form)
      }
      seconds = number
    }
    try hostBit(name, parts[0], parts[1], side, seconds)
  }

  /// `OPERATION,NAME[,src|dst|both]`.
  mutating func hostBits(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    if parts.count == 1, parts[0].isText("noalert") {
      effects.append(.noAlert)
      return
    }
    let sides: [String: HostSide] = ["src": .source, "dst": .destination, "both": .both]
    guard parts.count == 2 || parts.count == 3, let side = parts.count == 3 ? sides[parts[2].text] : .source else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not OPERATION,NAME,SIDE",
        "write `hostbits:OPERATION,NAME,src|dst|both;`")
    }
    try hostBit(name, parts[0], parts[1], side, 300)
  }

  private mutating func hostBit(
    _ option: ArraySlice<UInt8>, _ operation: ArraySlice<UInt8>, _ bit: ArraySlice<UInt8>, _ side: HostSide,
    _ seconds: UInt32
  ) throws(RuleProblem) {
    let name = try bitName(option, bit)
    let kinds: [String: HostBitChange.Kind] = ["set": .set, "unset": .unset, "toggle": .toggle]
    switch operation.text {
    case "isset": tests.append(.state(.hostBit(HostBitTest(name: name, side: side, isSet: true))))
    case "isnotset": tests.append(.state(.hostBit(HostBitTest(name: name, side: side, isSet: false))))
    case let text:
      guard let kind = kinds[text] else {
        throw RuleProblem(
          operation.startIndex, "\(option.shown): \(operation.shown) is not known",
          "use set, unset, toggle, isset, isnotset or noalert")
      }
      effects.append(.hostBit(HostBitChange(kind: kind, name: name, side: side, seconds: seconds)))
    }
  }
}
