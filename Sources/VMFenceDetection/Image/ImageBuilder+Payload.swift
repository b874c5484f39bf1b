import VMFenceCore

/// Kinds of payload tests: 1 ... 63. Small number 1 of each is the level to go back to when it fails (`PayloadFlags.noLevel`: none).
enum PayloadKind: UInt8 {
  /// Pattern (words 0, 1: offset in `patterns`, length), offset, depth, distance, within (words 2 ... 5, signed; those whose bits are
  /// in small 2 are numbers of variables), what it is replaced by (words 6, 7: as the pattern; 0 bytes for nothing).
  case content = 1
  /// The number of its expression (word 0); how many captures go to variables (word 1), the hashes of their names (words 2 ... 9, two
  /// for each), and for each its group and `CaptureScope` (four bits each, in word 10).
  case regex = 2
  /// Numbers: what is read (words 0 ... 2, see `ReadingRecord`), and by kind: comparison (small 2), value (words 3, 4).
  case byteTest = 3
  /// Multiplier (word 3), post_offset (word 4).
  case byteJump = 4
  /// Alignment (small 2), multiplier (word 3), variable (word 4).
  case byteExtract = 5
  /// Operation (small 2), value (words 3, 4), variable (word 5).
  case byteMath = 6
  /// Position (word 0), which is a variable's number when small 2 is 1.
  case dataAt = 7
  /// A number (`NumberRecord`).
  case length = 8
  /// Encoded bytes (word 0), offset (word 1), the tests of what was decoded: first and count (words 2, 3).
  case base64 = 9
  /// Bytes (word 0), offset (word 1), comparison (small 2), value (words 2, 3: a double's bits).
  case entropy = 10
  /// Digest (word 0: offset in `patterns`), length (word 1), offset (word 2, a variable when small 2 & 128), algorithm (small 2).
  case digest = 11
  /// Program, version, procedure (words 0 ... 2); which of them are given (small 2: 1 version, 2 procedure).
  case rpc = 12
  /// What is looked for (small 2: 1 bit string, 2 double, 4 length), length (word 0), offset (word 1).
  case asn1 = 13
  /// Type (word 0); small 2: 1 skips, 2 is optional.
  case ber = 14
  case cvsEntry = 15
  /// The number of its expression (word 0), threshold (word 1), small 2: 1 card numbers.
  case sensitiveData = 16
  /// Small 2: 1 or else.
  case absent = 17
  /// `DataSetTest.Operation` (small 2), the set (word 0); comparison and number of a reputation (words 1, 2).
  case dataSet = 18
  /// Begins the tests of one buffer: source (small 2), transforms (words 0, 1: first, count), how many tests (word 2).
  case buffer = 63
}

/// Flags of payload tests, besides `OptionRecord.isNegated`.
enum PayloadFlags {
  /// Content.
  static let ignoresCase: UInt8 = 2
  /// Counted from the end of the last match.
  static let isRelative: UInt8 = 4
  /// Content.
  static let hasDepth: UInt8 = 8
  static let hasWithin: UInt8 = 16
  static let endsBuffer: UInt8 = 32
  /// Numbers and jumps.
  static let isLittleEndian: UInt8 = 2
  static let aligns: UInt8 = 8
  static let fromBeginning: UInt8 = 16
  static let fromEnd: UInt8 = 32
  /// What was tried is tried again when an earlier test moved on, because its place does not only move upwards.
  static let restarts: UInt8 = 64

  static let noLevel: UInt8 = 255
}

/// How a number is read: words 0 ... 2 of its record.
enum ReadingRecord {
  /// Word 0: count (8 bits), base (8 bits), which numbers are variables (8 bits). Word 1: offset. Word 2: mask.
  static let countIsVariable: UInt32 = 1 << 16
  static let offsetIsVariable: UInt32 = 2 << 16
  static let valueIsVariable: UInt32 = 4 << 16
  /// Byte order as the DCE/RPC message at the payload's beginning says.
  static let isDCE: UInt32 = 8 << 16
}

struct RegexKey: Hashable {
  var pattern: [UInt8]
  var options: UInt32
}

extension ImageBuilder {
  /// The records of all payload tests, and how many come before those of what `base64_decode` makes.
  mutating func drafts(
    _ tests: [PayloadTest], _ rule: Rule
  ) throws(RuleCompilationError) -> ([OptionDraft], topCount: Int) {
    // Each run needs a record of its own.
    guard tests.count * 2 < OptionRecord.payloadLimit else {
      throw RuleCompilationError(
        .badRule, "a rule with \(tests.count) tests of bytes; \(OptionRecord.payloadLimit / 2) are possible",
        at: rule.metadata.place, remedy: "split the rule")
    }
    let top = Self.runs(of: tests.filter { $0.buffer.source != .base64 }, rule.dialect)
    var result: [OptionDraft] = []
    var decoders: [Int] = []
    for run in top {
      result.append(draft(run))
      for (index, test) in run.enumerated() {
        if case .base64 = test.check { decoders.append(result.count + index) }
      }
      try result += drafts(ofRun: run)
    }
    let topCount = result.count
    for (decoder, tests) in zip(decoders, Self.decodedTests(tests)) {
      let start = result.count
      for run in Self.runs(of: tests, rule.dialect) {
        result.append(draft(run))
        try result += drafts(ofRun: run)
      }
      result[decoder].words[2] = UInt32(start)
      result[decoder].words[3] = UInt32(result.count - start)
    }
    return (result, topCount)
  }

  /// Tests of one buffer each: in Snort as they follow each other, in Suricata all of a buffer together.
  private static func runs(of tests: [PayloadTest], _ dialect: RuleDialect) -> [[PayloadTest]] {
    var result: [[PayloadTest]] = []
    for test in tests {
      let known =
        dialect == .suricata
        ? result.firstIndex { $0[0].buffer == test.buffer }
        : result.last?[0].buffer == test.buffer ? result.count - 1 : nil
      if let known { result[known].append(test) } else { result.append([test]) }
    }
    return result
  }

  /// For each `base64_decode`, the tests of what it makes.
  private static func decodedTests(_ tests: [PayloadTest]) -> [[PayloadTest]] {
    var result: [[PayloadTest]] = []
    for test in tests {
      if case .base64 = test.check { result.append([]) }
      if test.buffer.source == .base64, !result.isEmpty { result[result.count - 1].append(test) }
    }
    return result
  }

  private mutating func draft(_ run: [PayloadTest]) -> OptionDraft {
    let buffer = run[0].buffer
    let start = UInt32(count(.transforms))
    for transform in buffer.transforms { append(transform) }
    return OptionDraft(
      kind: PayloadKind.buffer.rawValue, small2: buffer.source.rawValue,
      words: [start, UInt32(buffer.transforms.count), UInt32(run.count)])
  }

  private mutating func drafts(ofRun run: [PayloadTest]) throws(RuleCompilationError) -> [OptionDraft] {
    let plan = ChainPlan(run.map(\.check))
    var result: [OptionDraft] = []
    for (index, test) in run.enumerated() {
      var draft = try draft(test.check)
      draft.small1 = plan.retryLevels[index]
      if test.check.isRelative { draft.flags |= PayloadFlags.isRelative }
      if test.check.isNegated { draft.flags |= OptionRecord.isNegated }
      if plan.restarts[index] { draft.flags |= PayloadFlags.restarts }
      result.append(draft)
    }
    return result
  }

  private mutating func draft(_ check: PayloadCheck) throws(RuleCompilationError) -> OptionDraft {
    switch check {
    case .content(let content): return try draft(content)
    case .regex(let regex): return draft(regex)
    case .byteTest(let test):
      return number(.byteTest, test.reading, test.value, small2: test.comparison.rawValue)
    case .byteJump(let jump):
      var draft = number(.byteJump, jump.reading, jump.postOffset)
      // The value is post_offset, of 32 bits; the multiplier comes before it.
      draft.words = Array(draft.words[0..<3]) + [jump.multiplier, draft.words[3]]
      if jump.aligns { draft.flags |= PayloadFlags.aligns }
      if jump.fromBeginning { draft.flags |= PayloadFlags.fromBeginning }
      if jump.fromEnd { draft.flags |= PayloadFlags.fromEnd }
      return draft
    case .byteExtract(let extract):
      var draft = number(.byteExtract, extract.reading, .value(0), small2: extract.alignment)
      draft.words = Array(draft.words[0..<3]) + [extract.multiplier, UInt32(extract.variable)]
      return draft
    case .byteMath(let math):
      var draft = number(.byteMath, math.reading, math.value, small2: math.operation.rawValue)
      draft.words.append(UInt32(math.variable))
      return draft
    case .dataAt(let test):
      let (word, isVariable) = Self.word(test.position)
      return OptionDraft(kind: PayloadKind.dataAt.rawValue, small2: isVariable ? 1 : 0, words: [word])
    case .length(let test): return test.number.draft(PayloadKind.length.rawValue)
    case .base64(let decode):
      return OptionDraft(kind: PayloadKind.base64.rawValue, words: [decode.bytes, decode.offset, 0, 0])
    case .entropy(let test):
      let bits = test.value.bitPattern
      return OptionDraft(
        kind: PayloadKind.entropy.rawValue, small2: test.comparison.rawValue,
        words: [test.bytes, test.offset, UInt32(truncatingIfNeeded: bits), UInt32(truncatingIfNeeded: bits >> 32)])
    case .digest(let test):
      let (offset, isVariable) = Self.word(test.offset)
      return OptionDraft(
        kind: PayloadKind.digest.rawValue, small2: test.algorithm.rawValue | (isVariable ? 128 : 0),
        words: [self.offset(ofPattern: test.digest), test.length, offset])
    case .rpc(let test):
      return OptionDraft(
        kind: PayloadKind.rpc.rawValue, small2: (test.version == nil ? 0 : 1) | (test.procedure == nil ? 0 : 2),
        words: [test.program, test.version ?? 0, test.procedure ?? 0])
    case .asn1(let test):
      return OptionDraft(
        kind: PayloadKind.asn1.rawValue,
        small2: (test.bitStringOverflow ? 1 : 0) | (test.doubleOverflow ? 2 : 0) | (test.oversizeLength == nil ? 0 : 4),
        words: [test.oversizeLength ?? 0, UInt32(bitPattern: test.offset)])
    case .ber(let test):
      return OptionDraft(
        kind: PayloadKind.ber.rawValue, small2: (test.skips ? 1 : 0) | (test.isOptional ? 2 : 0),
        words: [UInt32(test.type)])
    case .cvsEntry: return OptionDraft(kind: PayloadKind.cvsEntry.rawValue)
    case .sensitiveData(let test):
      return OptionDraft(
        kind: PayloadKind.sensitiveData.rawValue, small2: test.isCardNumber ? 1 : 0,
        words: [index(of: test.regex), test.threshold])
    case .dataSet(let test):
      return OptionDraft(
        kind: PayloadKind.dataSet.rawValue, small2: test.operation.rawValue,
        words: [index(of: test.set), UInt32(test.comparison.rawValue), UInt32(test.reputation)])
    case .absent(let orElse): return OptionDraft(kind: PayloadKind.absent.rawValue, small2: orElse ? 1 : 0)
    }
  }

  /// A number of 32 bits, or that of a variable.
  private static func word(_ number: RuleNumber) -> (word: UInt32, isVariable: Bool) {
    switch number {
    case .value(let value): (UInt32(truncatingIfNeeded: value), false)
    case .variable(let variable): (UInt32(variable), true)
    }
  }

  private func number(
    _ kind: PayloadKind, _ reading: NumberReading, _ value: RuleNumber, small2: UInt8 = 0
  ) -> OptionDraft {
    let (count, countIsVariable) = Self.word(reading.count)
    let (offset, offsetIsVariable) = Self.word(reading.offset)
    var head = count & 0xFF | UInt32(reading.base) << 8
    if countIsVariable { head |= ReadingRecord.countIsVariable }
    if offsetIsVariable { head |= ReadingRecord.offsetIsVariable }
    if reading.isDCE { head |= ReadingRecord.isDCE }
    var words: [UInt32]
    switch value {
    case .value(let value):
      words = [UInt32(truncatingIfNeeded: value), UInt32(truncatingIfNeeded: value >> 32)]
    case .variable(let variable):
      head |= ReadingRecord.valueIsVariable
      words = [UInt32(variable), 0]
    }
    words = [head, offset, reading.mask] + words
    return OptionDraft(
      kind: kind.rawValue, flags: reading.isLittleEndian ? PayloadFlags.isLittleEndian : 0, small2: small2,
      words: words)
  }

  private mutating func draft(_ content: ContentTest) throws(RuleCompilationError) -> OptionDraft {
    if content.pattern.isEmpty {
      throw RuleCompilationError(.badRule, "an empty content", at: content.place, remedy: "give the bytes to look for")
    }
    var flags: UInt8 = 0
    if content.ignoresCase { flags |= PayloadFlags.ignoresCase }
    if content.depth != nil { flags |= PayloadFlags.hasDepth }
    if content.within != nil { flags |= PayloadFlags.hasWithin }
    if content.endsBuffer { flags |= PayloadFlags.endsBuffer }
    let bytes = content.ignoresCase ? content.pattern.map(\.lowercasedASCII) : content.pattern
    let positions = [content.offset, content.depth, content.distance, content.within].map { Self.word($0 ?? .value(0)) }
    let replacement = content.replacement ?? []
    var variables: UInt8 = 0
    for (index, position) in positions.enumerated() where position.isVariable { variables |= 1 << UInt8(index) }
    return OptionDraft(
      kind: PayloadKind.content.rawValue, flags: flags, small2: variables,
      words: [offset(ofPattern: bytes), UInt32(bytes.count)] + positions.map(\.word)
        + [offset(ofPattern: replacement), UInt32(replacement.count)])
  }

  private mutating func draft(_ regex: RegexTest) -> OptionDraft {
    var words = [index(of: regex), UInt32(regex.captures.count)]
    var places: UInt32 = 0
    for (index, capture) in regex.captures.enumerated() {
      words += capture.scope == .alert ? [UInt32(capture.number), 0] : Self.hashWords(capture.name)
      places |= (UInt32(capture.group) | UInt32(capture.scope.rawValue) << 4) << UInt32(8 * index)
    }
    while words.count < 2 + 2 * VariableCapture.limit { words.append(0) }
    return OptionDraft(kind: PayloadKind.regex.rawValue, words: words + [places])
  }

  private mutating func index(of regex: RegexTest) -> UInt32 {
    let key = RegexKey(pattern: regex.pattern, options: regex.options)
    if let known = regexes[key] { return known }
    let index = UInt32(count(.regexes))
    let start = offset(ofPattern: regex.pattern)
    write(.regexes) {
      $0.u32(start)
      $0.u32(UInt32(regex.pattern.count))
      $0.u32(regex.options)
    }
    regexes[key] = index
    return index
  }

  private mutating func index(of set: DataSet) -> UInt32 {
    if let known = dataSets[set] { return known }
    let index = UInt32(count(.dataSets))
    let texts = [set.name, set.stateFile ?? ""].map { text in
      (offset(ofPattern: Array(text.utf8)), UInt32(text.utf8.count))
    }
    let values = set.entries.map { (offset(ofPattern: $0.value), $0) }
    let first = UInt32(count(.dataEntries))
    write(.dataEntries) { writer in
      for (offset, entry) in values {
        writer.u32(offset)
        writer.u32(UInt32(entry.value.count))
        writer.u32(UInt32(entry.reputation))
      }
    }
    let changeMemory = changedDataSets.contains(set) ? set.changeMemory : 0
    write(.dataSets) { writer in
      for (offset, length) in texts {
        writer.u32(offset)
        writer.u32(length)
      }
      writer.u32(UInt32(set.kind.rawValue))
      writer.u32(UInt32(changeMemory))
      writer.u32(first)
      writer.u32(UInt32(values.count))
    }
    dataSets[set] = index
    return index
  }

  private mutating func append(_ transform: BufferTransform) {
    var (kind, small) = (TransformKind.dotPrefix, UInt8(0))
    var words: (UInt32, UInt32) = (0, 0)
    switch transform {
    case .dotPrefix: kind = .dotPrefix
    case .md5: kind = .md5
    case .sha1: kind = .sha1
    case .sha256: kind = .sha256
    case .lowercase: kind = .lowercase
    case .uppercase: kind = .uppercase
    case .stripWhitespace: kind = .stripWhitespace
    case .compressWhitespace: kind = .compressWhitespace
    case .urlDecode: kind = .urlDecode
    case .xor(let key): (kind, words) = (.xor, (offset(ofPattern: key), UInt32(key.count)))
    case .xorWithin(let offset, let keyOffset, let keyLength):
      (kind, small, words) = (.xorWithin, keyLength, (offset, keyOffset))
    case .base64(let decode): (kind, small, words) = (.base64, decode.mode.rawValue, (decode.offset, decode.bytes))
    case .capture(let regex): (kind, words) = (.capture, (index(of: regex), 0))
    case .slice(let offset, let length):
      (kind, small) = (.slice, length == nil ? 0 : 1)
      words = (UInt32(bitPattern: offset), UInt32(bitPattern: length ?? 0))
    case .gunzip(let maximum): (kind, words) = (.gunzip, (maximum, 0))
    case .inflate(let maximum): (kind, words) = (.inflate, (maximum, 0))
    case .domain: kind = .domain
    case .topLevelDomain: kind = .topLevelDomain
    case .lowercaseNames: kind = .lowercaseNames
    case .stripPseudoHeaders: kind = .stripPseudoHeaders
    }
    write(.transforms) {
      $0.u8(kind.rawValue)
      $0.u8(small)
      $0.u16(0)
      $0.u32(words.0)
      $0.u32(words.1)
      $0.u32(0)
    }
  }
}

enum TransformKind: UInt8 {
  case dotPrefix = 1
  case md5, sha1, sha256, lowercase, uppercase, stripWhitespace, compressWhitespace, urlDecode
  /// Key (words 0, 1: offset in `patterns`, length).
  case xor
  /// Offset and bytes (words 0, 1).
  case base64
  /// The number of its expression (word 0).
  case capture
  /// Offset and length (words 0, 1, signed).
  case slice
  /// Bytes at the most (word 0).
  case gunzip, inflate
  case domain, topLevelDomain, lowercaseNames, stripPseudoHeaders
  /// Where the data begins and where the key does (words 0, 1), and how long that is (small).
  case xorWithin
}
