import VMFenceCore

/// `content` and its modifiers.
extension RuleOptionParser {
  mutating func content(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    var rest = try required(name, value)
    var test = ContentTest(pattern: [], place: place(name.startIndex))
    if rest.first == UInt8(ascii: "!") {
      test.isNegated = true
      rest = rest.dropFirst().trimmed
    }
    guard rest.first == UInt8(ascii: "\"") else {
      throw RuleProblem(rest.startIndex, "a content stands in quotation marks", "write `content:\"TEXT\";`")
    }
    var end = rest.startIndex + 1
    while end < rest.endIndex, rest[end] != UInt8(ascii: "\"") { end += rest[end] == 0x5C ? 2 : 1 }
    guard end < rest.endIndex else {
      throw RuleProblem(
        rest.startIndex, "the content is not closed",
        dialect == .snort3 ? "close it with `\"`" : "close it with `\"`, and write a semicolon in it as `\\;`")
    }
    test.pattern = try Self.pattern(rest[rest.startIndex + 1..<end], dialect)
    contents.append((tests.count, ContentPlaces(content: name.startIndex)))
    tests.append(.payload(PayloadTest(.content(test), in: buffer)))
    patternBytes += test.pattern.count
    lastPattern = .content
    let tail = rest[(end + 1)...].trimmed
    if tail.isEmpty { return }
    guard dialect == .snort3, tail.first == UInt8(ascii: ",") else {
      throw RuleProblem(
        tail.startIndex, "\(tail.shown) stands after the content",
        dialect == .snort3
          ? "put a comma before a modifier" : "modifiers are options of their own: `content:\"x\"; nocase;`")
    }
    var widths = PatternWidth()
    for item in tail.dropFirst().split(at: UInt8(ascii: ",")) {
      let parts = item.split(separator: 0x20, maxSplits: 1)
      guard let modifierName = parts.first else {
        throw RuleProblem(item.startIndex, "a modifier is missing after the comma", "take the comma out")
      }
      try modifier(modifierName, parts.count > 1 ? parts[1].trimmed : nil, &widths)
    }
    if widths.width > 8, let index = contents.last?.test, var test = content(at: index) {
      test.pattern = test.pattern.flatMap { byte in
        let zeros = Array(repeating: UInt8(0), count: widths.width / 8 - 1)
        return widths.isLittleEndian ? [byte] + zeros : zeros + [byte]
      }
      setContent(test, at: index)
    }
  }

  /// What the content before it is overwritten with. As long as the content, in Snort 3 as long as the packet lets it be.
  mutating func replace(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let (body, _) = try quotedExpression(name, required(name, value))
    guard lastPattern == .content, let index = contents.last?.test, var test = content(at: index) else {
      throw RuleProblem(
        name.startIndex, "\(name.shown) stands before any content", "put it after the content it is for")
    }
    guard !test.isNegated, test.replacement == nil, buffer == .payload else {
      throw RuleProblem(
        name.startIndex, "\(name.shown): this content cannot be replaced",
        "it has to stand in the packet's payload, without `!`, and be replaced once")
    }
    let bytes = try Self.pattern(body, dialect)
    guard bytes.count == test.pattern.count || dialect == .snort3 else {
      throw RuleProblem(
        body.startIndex, "\(name.shown): \(bytes.count) bytes for a content of \(test.pattern.count)",
        "write as many bytes as the content has")
    }
    test.replacement = bytes
    patternBytes += bytes.count
    setContent(test, at: index)
  }

  /// Snort 3: each byte of a pattern as a wider number.
  struct PatternWidth {
    var width = 8
    var isLittleEndian = false
  }

  mutating func modifier(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    var widths = PatternWidth()
    try modifier(name, value, &widths)
  }

  private mutating func modifier(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, _ widths: inout PatternWidth
  ) throws(RuleProblem) {
    switch lastPattern {
    case .unsupported: return
    case .digest: return try digestModifier(name.text, name, value)
    case .none:
      throw RuleProblem(
        name.startIndex, "\(name.shown) stands before any content", "put it after the content it is for")
    case .content: break
    }
    guard let (index, _) = contents.last, var test = content(at: index) else { return }
    var places = contents[contents.count - 1].places
    func first(_ place: Int) -> Int { place == 0 ? name.startIndex : place }
    func once(_ isGiven: Bool) throws(RuleProblem) {
      if isGiven { throw RuleProblem(name.startIndex, "a second \(name.shown) for one content", "keep one of them") }
    }
    switch name.text {
    case "nocase": try none(name, value); test.ignoresCase = true
    case "rawbytes": try none(name, value); test.isRaw = true
    case "offset":
      try once(test.offset != nil)
      test.offset = try numberOrVariable(name, value, dialect == .suricata ? 0...65_535 : -65_535...65_535)
      places.absolute = first(places.absolute)
    case "depth":
      try once(test.depth != nil)
      test.depth = try numberOrVariable(name, value, 1...65_535)
      places.absolute = first(places.absolute)
      places.depth = value?.trimmed.startIndex ?? name.startIndex
    case "distance":
      try once(test.distance != nil)
      test.distance = try numberOrVariable(
        name, value, dialect == .suricata ? -1_048_576...1_048_576 : -65_535...65_535)
      places.relative = first(places.relative)
    case "within":
      try once(test.within != nil)
      test.within = try numberOrVariable(name, value, dialect == .suricata ? 1...1_048_576 : 1...65_535)
      places.relative = first(places.relative)
      places.within = value?.trimmed.startIndex ?? name.startIndex
    case "startswith" where dialect == .suricata:
      try none(name, value)
      try once(test.offset != nil || test.depth != nil)
      test.offset = .value(0)
      test.depth = .value(Int64(test.pattern.count))
      places.absolute = first(places.absolute)
    case "endswith" where dialect == .suricata: try none(name, value); test.endsBuffer = true
    case "fast_pattern":
      try once(places.fastPattern != 0)
      test.fastPattern = try fastPattern(name, value, length: test.pattern.count)
      places.fastPattern = name.startIndex
    case "fast_pattern_offset" where dialect == .snort3:
      test.fastPattern = test.fastPattern ?? .init()
      test.fastPattern?.offset = try number(name, value, 0...test.pattern.count - 1)
      places.fastPattern = first(places.fastPattern)
    case "fast_pattern_length" where dialect == .snort3:
      test.fastPattern = test.fastPattern ?? .init()
      test.fastPattern?.length = try number(name, value, 1...test.pattern.count)
      places.fastPattern = first(places.fastPattern)
    case "width" where dialect == .snort3:
      widths.width = Int(try integer(name, value, 8...32))
      guard [8, 16, 32].contains(widths.width) else {
        throw RuleProblem(name.startIndex, "width is 8, 16 or 32", "write one of them")
      }
    case "endian" where dialect == .snort3:
      switch try required(name, value).text {
      case "big": widths.isLittleEndian = false
      case "little": widths.isLittleEndian = true
      default: throw RuleProblem(name.startIndex, "endian is neither `big` nor `little`", "write one of them")
      }
    default:
      throw RuleProblem(
        name.startIndex, "\(name.shown) is no modifier of a content",
        "use \(OptionNames.contentModifiers.sorted().joined(separator: ", "))")
    }
    setContent(test, at: index)
    contents[contents.count - 1].places = places
  }

  func fastPattern(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, length: Int
  ) throws(RuleProblem) -> ContentTest.FastPattern {
    guard let value = value?.trimmed, !value.isEmpty else { return .init() }
    if value.isText("only") { return .init() }
    let parts = value.split(at: UInt8(ascii: ",")).map { Int($0.text) }
    guard dialect != .snort3, parts.count == 2, let offset = parts[0], let count = parts[1], offset >= 0, count > 0,
      offset + count <= length
    else {
      throw RuleProblem(
        value.startIndex,
        "fast_pattern: \(value.shown) is not `only` or OFFSET,LENGTH within the \(length) bytes of the content")
    }
    return .init(offset: offset, length: count)
  }

  func check(_ content: inout ContentTest, _ places: ContentPlaces) throws(RuleProblem) {
    let size = Int64(content.pattern.count)
    if case .value(let depth)? = content.depth, depth < size {
      throw RuleProblem(places.depth, "depth \(depth) is less than the content's \(size) bytes", "use \(size) or more")
    }
    if case .value(let within)? = content.within, within < size {
      throw RuleProblem(
        places.within, "within \(within) is less than the content's \(size) bytes", "use \(size) or more")
    }
    if places.absolute != 0, places.relative != 0 {
      throw RuleProblem(
        max(places.absolute, places.relative), "offset or depth together with distance or within",
        "use either the absolute or the relative ones")
    }
    if let part = content.fastPattern, let offset = part.offset ?? part.length.map({ _ in 0 }),
      offset + (part.length ?? 1) > content.pattern.count
    {
      throw RuleProblem(places.fastPattern, "the fast pattern reaches over the content's \(size) bytes", "shorten it")
    }
    // What must not be there cannot be searched for first.
    if content.isNegated { content.fastPattern = nil }
  }
}
