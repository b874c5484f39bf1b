import VMFenceCore

/// Parses the options of one rule.
struct RuleOptionParser {
  /// Options in one rule.
  static let optionMaximum = 1024
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
  /// Options that are known and not evaluated yet, in order.
  var unsupported: [(name: String, offset: Int)] = []
  private var seen = 0

  init(dialect: RuleDialect, classes: ClassificationTable, place: @escaping (Int) -> SourcePlace) {
    self.dialect = dialect
    self.classes = classes
    self.place = place
  }

  /// `value` is nil when the option has none.
  mutating func option(
    _ name: ArraySlice<UInt8>, value: ArraySlice<UInt8>?
  ) throws(RuleProblem) {
    seen += 1
    let offset = name.startIndex
    if seen > Self.optionMaximum { throw RuleProblem(offset, "a rule has \(Self.optionMaximum) options at the most") }
    if try general(name, value) { return }
    if try payload(name, value) { return }
    if try header(name, value) { return }
    if try rate(name, value) { return }
    let text = name.text
    if OptionNames.known(in: dialect).contains(text) || (dialect == .suricata && OptionNames.isDottedBuffer(text)) {
      unsupported.append((text, offset))
      return
    }
    let near = OptionNames.suggestion(for: text, in: dialect)
    throw RuleProblem(
      offset, "\(name.shown) is no option of \(dialect.rawValue) rules",
      near.map { "did you mean `\($0)`?" } ?? "give the dialect if this is not \(dialect.rawValue)")
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

  /// A text in quotation marks (which Snort also takes without) with `\"`, `\;` and `\\` resolved.
  private func quoted(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) -> String {
    var value = try required(name, value)
    if value.first == UInt8(ascii: "\"") {
      guard value.count >= 2, value.last == UInt8(ascii: "\"") else {
        throw RuleProblem(value.startIndex, "\(name.shown): the text is not closed", "close it with `\"`")
      }
      value = value.dropFirst().dropLast()
    }
    var bytes: [UInt8] = []
    var escaped = false
    for byte in value {
      if byte == 0x5C, !escaped {
        escaped = true
        continue
      }
      bytes.append(byte)
      escaped = false
    }
    return bytes.text
  }

  // MARK: General options

  private mutating func general(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch name.text {
    case "msg": metadata.message = try quoted(name, value)
    case "sid": metadata.sid = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "gid": metadata.gid = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "rev": metadata.revision = UInt32(try number(name, value, 0...Int(UInt32.max)))
    case "priority":
      metadata.priority = try number(name, value, 1...(dialect == .suricata ? 255 : Int(Int32.max)))
      hasPriority = true
    case "classtype":
      let value = try required(name, value)
      guard let found = classes.find(value.text) else {
        throw RuleProblem(
          value.startIndex, "the class \(value.shown) is not known",
          "define it: `config classification: SHORTNAME,DESCRIPTION,PRIORITY`")
      }
      metadata.classification = value.text
      metadata.classificationText = found.text
      if !hasPriority { metadata.priority = found.priority }
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
    case "rem" where dialect == .snort3: _ = try quoted(name, value)
    case "activates" where dialect == .snort2: activates = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "activated_by" where dialect == .snort2: activatedBy = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "count" where dialect == .snort2: count = UInt32(try number(name, value, 1...Int(UInt32.max)))
    default: return false
    }
    return true
  }

  // MARK: Payload options

  private mutating func payload(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch name.text {
    case "content": try content(name, value)
    case "pkt_data": try none(name, value)
    case "dsize":
      let inclusive = dialect == .snort2
      tests.append(
        .payloadSize(try NumberTest.parse(name, required(name, value), maximum: 65_535, arrowIncludesEnds: inclusive)))
    case "nocase", "offset", "depth", "distance", "within", "rawbytes", "fast_pattern", "startswith", "endswith":
      guard dialect != .snort3, OptionNames.known(in: dialect).contains(name.text) else { return false }
      try modifier(name, value)
    default: return false
    }
    return true
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
      throw RuleProblem(rest.startIndex, "the content is not closed", "close it with `\"`")
    }
    test.pattern = try Self.pattern(rest[rest.startIndex + 1..<end])
    tests.append(.content(test))
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
      guard let modifierName = parts.first else { throw RuleProblem(tail.startIndex, "an empty modifier") }
      try modifier(modifierName, parts.count > 1 ? parts[1].trimmed : nil)
    }
  }

  /// `text`, `|41 42|` and `\"`, mixed.
  static func pattern(_ text: ArraySlice<UInt8>) throws(RuleProblem) -> [UInt8] {
    var result: [UInt8] = []
    var index = text.startIndex
    var hexStart: Int?
    var half: UInt8?
    while index < text.endIndex {
      let byte = text[index]
      if byte == UInt8(ascii: "|") {
        if let start = hexStart {
          if half != nil {
            throw RuleProblem(start, "an odd number of hexadecimal digits", "write two digits a byte: |0A 1B|")
          }
          hexStart = nil
        } else {
          hexStart = index
        }
      } else if hexStart != nil {
        if let digit = byte.hexadecimalDigitValue {
          if let first = half {
            result.append(first << 4 | digit)
            half = nil
          } else {
            half = digit
          }
        } else if byte != 0x20 {
          throw RuleProblem(index, "\([byte].shown) is no hexadecimal digit", "close the bytes with `|`")
        }
      } else if byte == 0x5C, index + 1 < text.endIndex {
        index += 1
        result.append(text[index])
      } else {
        result.append(byte)
      }
      index += 1
    }
    if let hexStart { throw RuleProblem(hexStart, "the bytes in `|` are not closed", "close them with `|`") }
    if result.isEmpty { throw RuleProblem(text.startIndex, "the content is empty", "give it at least one byte") }
    if result.count > patternMaximum {
      throw RuleProblem(text.startIndex, "the content has \(result.count) bytes; at most \(patternMaximum) are taken")
    }
    return result
  }

  private mutating func modifier(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    guard case .content(var test)? = tests.last else {
      throw RuleProblem(
        name.startIndex, "\(name.shown) stands before any content", "put it after the content it is for")
    }
    switch name.text {
    case "nocase": try none(name, value); test.ignoresCase = true
    case "rawbytes": try none(name, value); test.isRaw = true
    case "offset": test.offset = try position(name, value, dialect == .suricata ? 0...65_535 : -65_535...65_535)
    case "depth": test.depth = try position(name, value, 1...65_535)
    case "distance":
      test.distance = try position(name, value, dialect == .suricata ? -1_048_576...1_048_576 : -65_535...65_535)
    case "within": test.within = try position(name, value, dialect == .suricata ? 0...1_048_576 : 1...65_535)
    case "startswith" where dialect == .suricata:
      try none(name, value)
      test.offset = 0
      test.depth = Int32(test.pattern.count)
    case "endswith" where dialect == .suricata: try none(name, value); test.endsBuffer = true
    case "fast_pattern": test.fastPattern = try fastPattern(name, value, length: test.pattern.count)
    case "fast_pattern_offset" where dialect == .snort3:
      var part = test.fastPattern ?? .init()
      part.offset = try number(name, value, 0...test.pattern.count - 1)
      test.fastPattern = part
    case "fast_pattern_length" where dialect == .snort3:
      var part = test.fastPattern ?? .init()
      part.length = try number(name, value, 1...test.pattern.count)
      test.fastPattern = part
    case "width", "endian":
      unsupported.append((name.text, name.startIndex))
    default:
      throw RuleProblem(name.startIndex, "\(name.shown) is no modifier of a content")
    }
    tests[tests.count - 1] = .content(test)
  }

  private mutating func position(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, _ range: ClosedRange<Int>
  ) throws(RuleProblem) -> Int32 {
    let text = try required(name, value)
    if let first = text.first, (0x61...0x7A).contains(first | 0x20) {
      // A variable of byte_extract or byte_math, which are not evaluated yet.
      unsupported.append(("\(name.text) with a variable", name.startIndex))
      return 0
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
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch name.text {
    case "flags":
      tests.append(.tcpFlags(try TCPFlagsTest.parse(required(name, value), dialect: dialect)))
    case "itype":
      tests.append(.icmpType(try NumberTest.parse(name, required(name, value), maximum: 255, arrowIncludesEnds: false)))
    case "icode":
      tests.append(.icmpCode(try NumberTest.parse(name, required(name, value), maximum: 255, arrowIncludesEnds: false)))
    case "flow": try flowOption(name, required(name, value))
    default: return false
    }
    return true
  }

  private mutating func flowOption(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    if flow != nil { throw RuleProblem(name.startIndex, "a second `flow`", "put all of it into one") }
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
      case "only_stream": unsupported.append(("flow:only_stream", item.startIndex))
      default:
        throw RuleProblem(
          item.startIndex, "flow: \(item.shown) is not known",
          "use to_server, to_client, established, not_established, stateless, no_stream, no_frag or only_frag")
      }
    }
    for (a, b, text) in [
      (FlowTest.toServer, FlowTest.toClient, "to_server and to_client"),
      (.established, .notEstablished, "established and not_established"),
      (.notFragment, .onlyFragment, "no_frag and only_frag"),
    ] where test.contains(a) && test.contains(b) {
      throw RuleProblem(value.startIndex, "flow: \(text) exclude each other", "keep one of them")
    }
    flow = test
  }

  // MARK: Rates

  private mutating func rate(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch name.text {
    case "threshold" where dialect != .snort3:
      if threshold != nil { throw RuleProblem(name.startIndex, "a second `threshold`", "keep one of them") }
      threshold = try RuleThreshold.parse(required(name, value), isFilter: false)
    case "detection_filter":
      if detectionFilter != nil {
        throw RuleProblem(name.startIndex, "a second `detection_filter`", "keep one of them")
      }
      detectionFilter = try RuleThreshold.parse(required(name, value), isFilter: true)
    default: return false
    }
    return true
  }
}
