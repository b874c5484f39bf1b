import VMFenceCore

/// Options that look at bytes, and those that choose which bytes.
extension RuleOptionParser {
  mutating func payloadOption(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    case "content": try content(name, value)
    // The payload is the only buffer there is.
    case "pkt_data": try none(name, value)
    // Chooses what is searched for first; never changes what matches.
    case "prefilter": try none(name, value)
    case "nocase", "offset", "depth", "distance", "within", "rawbytes", "fast_pattern", "startswith", "endswith":
      try modifier(name, value)
    default: return false
    }
    return true
  }

  mutating func finishPayload() throws(RuleProblem) {
    for (index, places) in contents {
      guard var content = content(at: index) else { continue }
      try check(&content, places)
      setContent(content, at: index)
    }
    if contents.count(where: { $0.places.fastPattern != 0 }) > 1,
      let last = contents.last(where: { $0.places.fastPattern != 0 })
    {
      throw RuleProblem(last.places.fastPattern, "a second `fast_pattern` in one rule", "keep one of them")
    }
  }

  func content(at index: Int) -> ContentTest? {
    guard case .payload(let test) = tests[index], case .content(let content) = test.check else { return nil }
    return content
  }

  mutating func setContent(_ content: ContentTest, at index: Int) {
    guard case .payload(var test) = tests[index] else { return }
    test.check = .content(content)
    tests[index] = .payload(test)
  }
}
