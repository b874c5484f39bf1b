import VMFenceCore

/// Parses the options of one rule.
struct RuleOptionParser {
  /// Options in one rule.
  static let optionMaximum = 256
  /// Bytes in one pattern.
  static let patternMaximum = 8192

  let dialect: RuleDialect
  let classes: ClassificationTable
  let place: (Int) -> SourcePlace

  /// What was collected so far.
  var tests: [RuleTest] = []
  var flow: FlowTest?
  var threshold: RuleThreshold?
  var detectionFilter: RuleThreshold?
  var activates: UInt32?
  var activatedBy: UInt32?
  var count: UInt32?
  var metadata = RuleMetadata(sid: 0)
  var hasPriority = false
  /// What is known and not evaluated yet, in order.
  var unsupported: [RuleFeature] = []
  /// A class that the table does not have, and where it is named.
  var unknownClass: (name: String, offset: Int)?
  /// Of all contents together.
  var patternBytes = 0
  private var seen = 0
  private var given: Set<String> = []
  /// Where the parts of each content stand, by its index in `tests`; nil when modifiers belong to a pattern that is
  /// not evaluated yet.
  private var contents: [(test: Int, places: ContentPlaces)] = []
  private var lastPattern = LastPattern.none

  private enum LastPattern { case none, content, unsupported }

  /// Offsets in the file; 0 when the part is not there.
  private struct ContentPlaces {
    var content = 0
    var depth = 0
    var within = 0
    /// The first of `offset` and `depth`, and of `distance` and `within`.
    var absolute = 0
    var relative = 0
    var fastPattern = 0
  }

  /// Options of which a rule has one at most.
  private static let single: Set<String> = [
    "msg", "sid", "gid", "rev", "classtype", "priority", "dsize", "flow", "threshold", "detection_filter", "activates",
    "activated_by", "count",
  ]

  init(dialect: RuleDialect, classes: ClassificationTable, place: @escaping (Int) -> SourcePlace) {
    self.dialect = dialect
    self.classes = classes
    self.place = place
  }

  /// Takes one option; false when the dialect has none of this name. `value` is nil when the option has none.
  mutating func option(_ name: ArraySlice<UInt8>, value: ArraySlice<UInt8>?) throws(RuleProblem) -> Bool {
    seen += 1
    let offset = name.startIndex
    guard seen <= Self.optionMaximum else {
      throw RuleProblem(offset, "a rule has \(Self.optionMaximum) options at the most", "split the rule")
    }
    let text = name.text
    guard OptionNames.known(in: dialect).contains(text) else { return false }
    if Self.single.contains(text), !given.insert(text).inserted {
      throw RuleProblem(offset, "a second \(name.shown)", "keep one of them")
    }
    if try general(text, name, value) { return true }
    if try payload(text, name, value) { return true }
    if try header(text, name, value) { return true }
    if try rate(text, name, value) { return true }
    refuse("option `\(text)`", at: offset)
    if text == "uricontent" || text == "protected_content" { lastPattern = .unsupported }
    return true
  }

  private mutating func refuse(_ feature: String, at offset: Int) {
    unsupported.append(RuleFeature(name: feature, offset: offset))
  }

  // MARK: Values

  private func required(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) -> ArraySlice<UInt8>
  {
    guard let value = value?.trimmed, !value.isEmpty else {
      throw RuleProblem(name.startIndex, "\(name.shown) needs a value", "write `\(name.text.escapedForDisplay):VALUE;`")
    }
    return value
  }

  private func none(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    if let value, !value.trimmed.isEmpty { throw RuleProblem(value.startIndex, "\(name.shown) takes no value") }
  }

  private func number(
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
  private func quoted(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) -> String {
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

  // MARK: General options

  private mutating func general(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    case "msg": metadata.message = try quoted(name, value)
    case "sid": metadata.sid = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "gid": metadata.gid = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "rev": metadata.revision = UInt32(try number(name, value, 0...Int(UInt32.max)))
    case "priority":
      metadata.priority = try number(name, value, 1...(dialect == .suricata ? 255 : Int(Int32.max)))
      hasPriority = true
    case "classtype":
      let value = try required(name, value)
      metadata.classification = value.text
      if let found = classes.find(value.text) {
        metadata.classificationText = found.text
        if !hasPriority { metadata.priority = found.priority }
      } else {
        // What a rule matches does not hang on its class.
        unknownClass = (value.text, value.startIndex)
      }
    case "reference":
      let value = try required(name, value)
      guard value.contains(UInt8(ascii: ",")) else {
        throw RuleProblem(value.startIndex, "a reference is TYPE,ID", "for example `reference:cve,2014-6271;`")
      }
      metadata.references.append(value.split(at: UInt8(ascii: ",")).map(\.text).joined(separator: ","))
    case "metadata":
      for item in try required(name, value).split(at: UInt8(ascii: ",")) where !item.isEmpty {
        let words = item.split(separator: 0x20, maxSplits: 1).map(\.trimmed.text)
        metadata.metadata[words[0], default: []].append(words.count > 1 ? words[1] : "")
      }
    case "rem": _ = try quoted(name, value)
    case "activates": activates = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "activated_by": activatedBy = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "count": count = UInt32(try number(name, value, 1...Int(UInt32.max)))
    default: return false
    }
    return true
  }

  // MARK: Payload options

  private mutating func payload(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    case "content": try content(name, value)
    // The payload is the only buffer there is.
    case "pkt_data": try none(name, value)
    // Chooses what is searched for first; never changes what matches.
    case "prefilter": try none(name, value)
    case "dsize":
      if let test = try number(name, value, maximum: 65_535, arrowIncludesEnds: dialect == .snort2) {
        tests.append(.payloadSize(test))
      }
    case "nocase", "offset", "depth", "distance", "within", "rawbytes", "fast_pattern", "startswith", "endswith":
      try modifier(name, value)
    default: return false
    }
    return true
  }

  /// A test of a number; nil when it is of a kind that is not evaluated yet.
  private mutating func number(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, maximum: UInt32, arrowIncludesEnds: Bool
  ) throws(RuleProblem) -> NumberTest? {
    let value = try required(name, value)
    if dialect == .suricata, value.first == UInt8(ascii: "&") {
      refuse("option `\(name.text)` with a bit mask", at: name.startIndex)
      return nil
    }
    let form = NumberForm(dialect: dialect, maximum: maximum, arrowIncludesEnds: arrowIncludesEnds)
    return try form.parse(name, value)
  }

  private mutating func content(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
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
    tests.append(.content(test))
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
    for item in tail.dropFirst().split(at: UInt8(ascii: ",")) {
      let parts = item.split(separator: 0x20, maxSplits: 1)
      guard let modifierName = parts.first else {
        throw RuleProblem(item.startIndex, "a modifier is missing after the comma", "take the comma out")
      }
      try modifier(modifierName, parts.count > 1 ? parts[1].trimmed : nil)
    }
  }

  private mutating func modifier(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    switch lastPattern {
    case .unsupported: return
    case .none:
      throw RuleProblem(
        name.startIndex, "\(name.shown) stands before any content", "put it after the content it is for")
    case .content: break
    }
    guard let (index, _) = contents.last, case .content(var test) = tests[index] else { return }
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
      test.offset = try position(name, value, dialect == .suricata ? 0...65_535 : -65_535...65_535)
      places.absolute = first(places.absolute)
    case "depth":
      try once(test.depth != nil)
      test.depth = try position(name, value, 1...65_535)
      places.absolute = first(places.absolute)
      places.depth = value?.trimmed.startIndex ?? name.startIndex
    case "distance":
      try once(test.distance != nil)
      test.distance = try position(name, value, dialect == .suricata ? -1_048_576...1_048_576 : -65_535...65_535)
      places.relative = first(places.relative)
    case "within":
      try once(test.within != nil)
      test.within = try position(name, value, dialect == .suricata ? 1...1_048_576 : 1...65_535)
      places.relative = first(places.relative)
      places.within = value?.trimmed.startIndex ?? name.startIndex
    case "startswith" where dialect == .suricata:
      try none(name, value)
      try once(test.offset != nil || test.depth != nil)
      test.offset = 0
      test.depth = Int32(test.pattern.count)
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
    case "width" where dialect == .snort3, "endian" where dialect == .snort3:
      refuse("content modifier `\(name.text)`", at: name.startIndex)
    default:
      throw RuleProblem(
        name.startIndex, "\(name.shown) is no modifier of a content",
        "use \(OptionNames.contentModifiers.sorted().joined(separator: ", "))")
    }
    tests[index] = .content(test)
    contents[contents.count - 1].places = places
  }

  private mutating func position(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, _ range: ClosedRange<Int>
  ) throws(RuleProblem) -> Int32 {
    let text = try required(name, value)
    if let first = text.first, (0x61...0x7A).contains(first | 0x20) {
      // A variable of byte_extract or byte_math, which are not evaluated yet.
      refuse("`\(name.text)` with a variable", at: name.startIndex)
      return Int32(clamping: range.upperBound)
    }
    return Int32(try number(name, value, range))
  }

  private func fastPattern(
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

  // MARK: Header and flow options

  private mutating func header(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    case "flags", "tcp.flags":
      tests.append(.tcpFlags(try TCPFlagsTest.parse(required(name, value), dialect: dialect)))
    case "itype":
      if let test = try number(name, value, maximum: 255, arrowIncludesEnds: false) { tests.append(.icmpType(test)) }
    case "icode":
      if let test = try number(name, value, maximum: 255, arrowIncludesEnds: false) { tests.append(.icmpCode(test)) }
    case "flow": try flowOption(name, required(name, value))
    default: return false
    }
    return true
  }

  private mutating func flowOption(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
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
    flow = test
  }

  // MARK: Rates

  private mutating func rate(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    guard text == "threshold" || text == "detection_filter" else { return false }
    guard threshold == nil, detectionFilter == nil else {
      throw RuleProblem(name.startIndex, "`threshold` and `detection_filter` exclude each other", "keep one of them")
    }
    var options = RateOptions(name: text, dialect: dialect)
    let rate = try options.parse(required(name, value))
    for feature in options.unsupported { unsupported.append(feature) }
    if text == "threshold" { threshold = rate } else { detectionFilter = rate }
    return true
  }

  // MARK: The rule as a whole

  /// What can only be said when all options are known. `transport` is nil for a protocol that is not supported yet.
  mutating func finish(action: RuleAction, transport: RuleProtocol?, _ start: Int) throws(RuleProblem) {
    guard metadata.sid != 0 else {
      throw RuleProblem(start, "the rule has no sid", "add `sid:NUMBER;` (1000000 and above are for your own)")
    }
    for (index, places) in contents {
      guard case .content(var content) = tests[index] else { continue }
      try check(&content, places)
      tests[index] = .content(content)
    }
    if contents.count(where: { $0.places.fastPattern != 0 }) > 1,
      let last = contents.last(where: { $0.places.fastPattern != 0 })
    {
      throw RuleProblem(last.places.fastPattern, "a second `fast_pattern` in one rule", "keep one of them")
    }
    for test in tests {
      switch test {
      case .tcpFlags where transport != nil && transport != .tcp && transport != .ip:
        throw RuleProblem(start, "`flags` in a rule that is not for TCP", "make it a tcp rule")
      case .icmpType where transport != nil && transport != .icmp && transport != .ip,
        .icmpCode where transport != nil && transport != .icmp && transport != .ip:
        throw RuleProblem(start, "`itype` or `icode` in a rule that is not for ICMP", "make it an icmp rule")
      default: break
      }
    }
    if action == .activate, activates == nil {
      throw RuleProblem(start, "an `activate` rule names no group", "add `activates:NUMBER;`")
    }
    if action == .dynamic, activatedBy == nil || count == nil {
      throw RuleProblem(
        start, "a `dynamic` rule needs its group and a count", "add `activated_by:NUMBER; count:NUMBER;`")
    }
    for (isGiven, name, needed) in [
      (activates != nil, "activates", RuleAction.activate), (activatedBy != nil, "activated_by", .dynamic),
      (count != nil, "count", .dynamic),
    ] where isGiven && action != needed {
      throw RuleProblem(start, "`\(name)` in a rule whose action is not `\(needed)`", "begin the rule with `\(needed)`")
    }
  }

  private func check(_ content: inout ContentTest, _ places: ContentPlaces) throws(RuleProblem) {
    let size = Int32(content.pattern.count)
    if let depth = content.depth, depth < size {
      throw RuleProblem(places.depth, "depth \(depth) is less than the content's \(size) bytes", "use \(size) or more")
    }
    if let within = content.within, within < size {
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
