import VMFenceCore

/// Options about flows, bits, counters and rates.
extension RuleOptionParser {
  mutating func stateOption(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    case "flow": try flowOption(name, required(name, value))
    case "threshold", "detection_filter": try rate(text, name, value)
    case "stream-event" where dialect == .suricata: try streamEvent(name, value)
    case "flowbits": try flowBits(name, required(name, value))
    case "flowint": try flowInteger(name, required(name, value))
    case "xbits": try xbits(name, required(name, value))
    case "hostbits": try hostBits(name, required(name, value))
    case "flowvar": try variable(.flow, name, required(name, value))
    case "pktvar": try variable(.packet, name, required(name, value))
    case "noalert":
      try none(name, value)
      effects.append(.noAlert)
    case "alert":
      try none(name, value)
      effects.append(.alert)
    case "bypass":
      try none(name, value)
      effects.append(.bypass)
    case "flow.age": tests.append(.state(.flowAge(try number(name, value, maximum: 0xFFFF_FFFF))))
    case "flow.pkts", "flow.bytes": try flowCount(text == "flow.pkts" ? .packets : .bytes, name, required(name, value))
    case "flow.pkts_toserver": try flowCount(.packets, .client, name, required(name, value))
    case "flow.pkts_toclient": try flowCount(.packets, .server, name, required(name, value))
    case "flow.bytes_toserver": try flowCount(.bytes, .client, name, required(name, value))
    case "flow.bytes_toclient": try flowCount(.bytes, .server, name, required(name, value))
    case "stream_reassemble": try reassembly(name, required(name, value))
    case "stream_size": try streamSize(name, required(name, value))
    case "tcp.session": try tcpSession(name, required(name, value))
    case "tag": try tag(name, required(name, value))
    case "iprep": try hostReputation(name, required(name, value))
    case "geoip": try country(name, required(name, value))
    case "flow.elephant": try elephant(name, required(name, value))
    default: return false
    }
    return true
  }

  private mutating func elephant(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let sides: [String: FlowSide] = ["toserver": .client, "toclient": .server, "either": .either, "both": .both]
    guard let side = sides[value.text] else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not known", "write toserver, toclient, either or both")
    }
    tests.append(.state(.elephant(side)))
  }

  private mutating func tcpSession(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    guard let phase = TCPPhase.allCases.first(where: { value.text == "\($0)" }) else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not known", "write setup, established or closing")
    }
    tests.append(.state(.tcpSession(phase)))
  }

  private mutating func flowOption(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    var test = FlowTest()
    for item in value.split(at: UInt8(ascii: ",")) {
      switch item.text.lowercased() {
      case "to_server", "from_client": test.insert(.toServer)
      case "to_client", "from_server": test.insert(.toClient)
      case "established": test.insert(.established)
      case "not_established": test.insert(.notEstablished)
      case "stateless": test.insert(.stateless)
      case "no_stream": test.insert(.notStream)
      case "only_stream": test.insert(.onlyStream)
      case "no_frag": test.insert(.notFragment)
      case "only_frag": test.insert(.onlyFragment)
      default:
        throw RuleProblem(
          item.startIndex, "flow: \(item.shown) is not known",
          "use to_server, to_client, established, not_established, stateless, no_stream, only_stream, no_frag or only_frag"
        )
      }
    }
    for (a, b, text) in [
      (FlowTest.toServer, FlowTest.toClient, "to_server and to_client"),
      (.established, .notEstablished, "established and not_established"),
      (.established, .stateless, "established and stateless"),
      (.notEstablished, .stateless, "not_established and stateless"),
      (.notFragment, .onlyFragment, "no_frag and only_frag"), (.notStream, .onlyStream, "no_stream and only_stream"),
    ] where test.contains(a) && test.contains(b) {
      throw RuleProblem(value.startIndex, "flow: \(text) exclude each other", "keep one of them")
    }
    tests.append(.state(.flow(test)))
  }

  private mutating func rate(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) {
    guard threshold == nil, detectionFilter == nil else {
      throw RuleProblem(name.startIndex, "`threshold` and `detection_filter` exclude each other", "keep one of them")
    }
    var options = RateOptions(name: text, dialect: dialect)
    let rate = try options.parse(required(name, value))
    if text == "threshold" { threshold = rate } else { detectionFilter = rate }
  }

  // MARK: Counters

  /// `DIRECTION,NUMBER`.
  private mutating func flowCount(
    _ count: FlowCount, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>
  ) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    let sides: [String: FlowSide] = ["toserver": .client, "toclient": .server, "either": .either, "both": .both]
    guard parts.count == 2, let side = sides[parts[0].text] else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not DIRECTION,NUMBER",
        "write toserver, toclient, either or both, a comma, and a test of a number")
    }
    try flowCount(count, side, name, parts[1])
  }

  private mutating func flowCount(
    _ count: FlowCount, _ side: FlowSide, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>
  ) throws(RuleProblem) {
    let maximum: UInt64 = count == .packets ? 0xFFFF_FFFF : UInt64(Int64.max)
    tests.append(.state(.flowCount(count, side, try number(name, value, maximum: maximum))))
  }

  /// Snort 2: `enable|disable,SIDE[,noalert][,fastpath]`. Snort 3: the same with `action` and `direction` before the first two.
  private mutating func reassembly(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ",")).map { part in
      part.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 }).map(\.text)
    }
    let isNamed = dialect == .snort3
    let sides: [String: FlowSide] = ["client": .client, "server": .server, "both": .both]
    func word(_ index: Int, _ label: String) -> String? {
      guard index < parts.count, parts[index].count == (isNamed ? 2 : 1) else { return nil }
      return !isNamed || parts[index][0] == label ? parts[index].last : nil
    }
    guard let action = word(0, "action"), action == "enable" || action == "disable",
      let side = word(1, "direction").flatMap({ sides[$0] }),
      parts.dropFirst(2).allSatisfy({ $0 == ["noalert"] || $0 == ["fastpath"] })
    else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not understood",
        isNamed
          ? "write `action enable|disable, direction client|server|both`, and noalert or fastpath after commas"
          : "write `enable|disable,client|server|both`, and noalert or fastpath after commas")
    }
    effects.append(.reassembly(side, isOn: action == "enable"))
    if parts.contains(["noalert"]) { effects.append(.noAlert) }
    if parts.contains(["fastpath"]) { effects.append(.bypass) }
  }

  /// Snort 2 and Suricata: `SIDE,OPERATOR,NUMBER`, where the side is the sender. Snort 3: `NUMBER[,DIRECTION]`.
  private mutating func streamSize(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    if dialect == .snort3 {
      let sides: [String: FlowSide] = ["to_server": .client, "to_client": .server, "either": .either, "both": .both]
      guard parts.count <= 2, let side = parts.count == 1 ? .either : sides[parts[1].text] else {
        throw RuleProblem(
          value.startIndex, "\(name.shown): \(value.shown) is not NUMBER,DIRECTION",
          "write a test of a number, a comma, and to_server, to_client, either or both")
      }
      tests.append(.state(.streamSize(side, try number(name, parts[0], maximum: 0xFFFF_FFFF))))
      return
    }
    let sides: [String: FlowSide] = ["client": .client, "server": .server, "either": .either, "both": .both]
    guard parts.count == 3, let side = sides[parts[0].text], let number = UInt32(parts[2].text),
      let test = Self.comparison(parts[1].text, number)
    else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not SIDE,OPERATOR,NUMBER",
        "write client, server, either or both; one of < > = != <= >=; and a number")
    }
    tests.append(.state(.streamSize(side, test)))
  }

  static func comparison(_ sign: String, _ number: UInt32) -> NumberTest? {
    switch sign {
    case "=": NumberTest(UInt64(number))
    case "!=": NumberTest(low: number, high: number, isNegated: true)
    case "<": number > 0 ? NumberTest(low: 0 as UInt32, high: number - 1) : nil
    case "<=": NumberTest(low: 0 as UInt32, high: number)
    case ">": number < .max ? NumberTest(low: number + 1, high: UInt32.max) : nil
    case ">=": NumberTest(low: number, high: UInt32.max)
    default: nil
    }
  }
}
