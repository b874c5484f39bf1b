import VMFenceCore

/// Options about flows, bits, counters and rates.
extension RuleOptionParser {
  mutating func stateOption(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    case "flow": try flowOption(name, required(name, value))
    case "threshold", "detection_filter": try rate(text, name, value)
    case "noalert" where dialect == .suricata:
      try none(name, value)
      effects.append(.noAlert)
    default: return false
    }
    return true
  }

  mutating func flowOption(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    var test = FlowTest()
    for item in value.split(at: UInt8(ascii: ",")) {
      switch item.text {
      case "to_server", "from_client": test.insert(.toServer)
      case "to_client", "from_server": test.insert(.toClient)
      case "established": test.insert(.established)
      case "not_established": test.insert(.notEstablished)
      case "stateless": test.insert(.stateless)
      case "no_stream": test.insert(.notStream)
      case "no_frag": test.insert(.notFragment)
      case "only_frag": test.insert(.onlyFragment)
      // Streams are not reassembled yet.
      case "only_stream": refuse("`flow:only_stream`", at: item.startIndex)
      default:
        throw RuleProblem(
          item.startIndex, "flow: \(item.shown) is not known",
          "use to_server, to_client, established, not_established, stateless, no_stream, no_frag or only_frag")
      }
    }
    for (a, b, text) in [
      (FlowTest.toServer, FlowTest.toClient, "to_server and to_client"),
      (.established, .notEstablished, "established and not_established"),
      (.established, .stateless, "established and stateless"),
      (.notEstablished, .stateless, "not_established and stateless"),
      (.notFragment, .onlyFragment, "no_frag and only_frag"),
    ] where test.contains(a) && test.contains(b) {
      throw RuleProblem(value.startIndex, "flow: \(text) exclude each other", "keep one of them")
    }
    tests.append(.state(.flow(test)))
  }

  mutating func rate(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) {
    guard threshold == nil, detectionFilter == nil else {
      throw RuleProblem(name.startIndex, "`threshold` and `detection_filter` exclude each other", "keep one of them")
    }
    var options = RateOptions(name: text, dialect: dialect)
    let rate = try options.parse(required(name, value))
    for feature in options.unsupported { unsupported.append(feature) }
    if text == "threshold" { threshold = rate } else { detectionFilter = rate }
  }
}
