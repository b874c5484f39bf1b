import VMFenceCore

extension ImageValidator {
  static func validate(
    _ kind: PayloadKind, _ record: Int, _ bytes: RawSpan, _ sections: ImageSections
  ) throws(RuleCompilationError) {
    func word(_ index: Int) -> UInt32 { bytes.u32le(OptionRecord.word(record, index)) }
    let small = bytes.u8(record + OptionRecord.small2)
    let variables = UInt32(RuleOptionParser.variableMaximum)
    switch kind {
    case .content:
      try require(word(1) >= 1, "an empty content")
      try requireRange(word(0), word(1), in: .patterns, sections)
      try requireRange(word(6), word(7), in: .patterns, sections)
      for index in 0..<4 where small & (1 << UInt8(index)) != 0 {
        try require(word(2 + index) < variables, "a variable of a content")
      }
    case .sensitiveData: try requireIndex(word(0), in: .regexes, sections)
    case .regex:
      try requireIndex(word(0), in: .regexes, sections)
      try require(word(1) <= VariableCapture.limit, "the captures of an expression")
    case .byteTest, .byteJump, .byteExtract, .byteMath: try validateNumber(kind, record, bytes)
    case .dataAt: try require(small != 1 || word(0) < variables, "a variable of isdataat")
    case .entropy: try require(ByteTest.Comparison(rawValue: small) != nil, "how an entropy is compared")
    case .digest:
      let algorithm = DigestTest.Algorithm(rawValue: small & 127)
      try require(algorithm != nil, "an algorithm of a digest")
      try requireRange(word(0), UInt32(algorithm?.byteCount ?? 0), in: .patterns, sections)
      try require(word(1) <= 65_535 && (small & 128 == 0 || word(2) < variables), "the place of a digest")
    case .buffer:
      try require(BufferSource(rawValue: small) != nil, "the source of a buffer")
      try requireRange(word(0), word(1), in: .transforms, sections)
      try require(word(2) >= 1, "a buffer without tests")
    case .dataSet:
      try require(DataSetTest.Operation(rawValue: small) != nil, "what is asked of a data set")
      try requireIndex(word(0), in: .dataSets, sections)
      try require(UInt8(exactly: word(1)).flatMap(ByteTest.Comparison.init) != nil, "how a reputation is compared")
    case .length, .base64, .rpc, .asn1, .ber, .cvsEntry, .absent: break
    }
  }

  private static func validateNumber(
    _ kind: PayloadKind, _ record: Int, _ bytes: RawSpan
  ) throws(RuleCompilationError) {
    func word(_ index: Int) -> UInt32 { bytes.u32le(OptionRecord.word(record, index)) }
    let variables = UInt32(RuleOptionParser.variableMaximum)
    let small = bytes.u8(record + OptionRecord.small2)
    let head = word(0)
    let base = head >> 8 & 0xFF
    try require([0, 8, 10, 16].contains(base), "the base of a number")
    if head & ReadingRecord.countIsVariable != 0 { try require(head & 0xFF < variables, "a variable's number") }
    if head & ReadingRecord.offsetIsVariable != 0 { try require(word(1) < variables, "a variable's number") }
    if head & ReadingRecord.valueIsVariable != 0 {
      try require(word(kind == .byteJump ? 4 : 3) < variables, "a variable's number")
    }
    switch kind {
    case .byteTest: try require(ByteTest.Comparison(rawValue: small) != nil, "how a number is compared")
    case .byteExtract: try require([0, 2, 4].contains(small) && word(4) < variables, "where a number goes")
    case .byteMath:
      try require(ByteMath.Operation(rawValue: small) != nil && word(5) < variables, "what is calculated")
    default: break
    }
  }

  /// That the tests of a rule are runs, each behind the record that chooses its buffer, and that levels, places and nested runs lie in
  /// them. `records`: where the payload records begin; the first `top` of `count` are not of what `base64_decode` makes.
  static func validateRuns(
    _ bytes: RawSpan, _ records: Int, _ count: Int, top: Int
  ) throws(RuleCompilationError) {
    try require(top <= count, "a rule's number of tests of bytes")
    var starts: Set<Int> = []
    var index = 0
    while index < count {
      let record = records + index * OptionRecord.stride
      starts.insert(index)
      try require(bytes.u8(record + OptionRecord.kind) == PayloadKind.buffer.rawValue, "tests without a buffer")
      let tests = Int(bytes.u32le(OptionRecord.word(record, 2)))
      try require(tests <= count - index - 1, "the tests of a buffer")
      let isNested = bytes.u8(record + OptionRecord.small2) == BufferSource.base64.rawValue
      try require(isNested == (index >= top), "the buffer of decoded bytes")
      for level in 0..<tests {
        let test = record + (1 + level) * OptionRecord.stride
        let kind = PayloadKind(rawValue: bytes.u8(test + OptionRecord.kind))
        try require(kind != .buffer && !(isNested && kind == .base64), "a test of a buffer")
        let earlier = bytes.u8(test + OptionRecord.small1)
        try require(earlier == PayloadFlags.noLevel || Int(earlier) < level, "the level to go back to")
      }
      index += 1 + tests
    }
    try require(top == count || top == 0 && count == 0 || starts.contains(top), "where decoded bytes begin")
    try validateNested(bytes, records, count, top: top, starts)
  }

  private static func validateNested(
    _ bytes: RawSpan, _ records: Int, _ count: Int, top: Int, _ starts: Set<Int>
  ) throws(RuleCompilationError) {
    for index in 0..<top {
      let record = records + index * OptionRecord.stride
      guard bytes.u8(record + OptionRecord.kind) == PayloadKind.base64.rawValue else { continue }
      let start = Int(bytes.u32le(OptionRecord.word(record, 2)))
      let end = start + Int(bytes.u32le(OptionRecord.word(record, 3)))
      if start == end { continue }
      try require(
        start >= top && end <= count && starts.contains(start) && (end == count || starts.contains(end)),
        "the tests of decoded bytes")
    }
  }

  static func validateDataSets(_ bytes: RawSpan, _ sections: ImageSections) throws(RuleCompilationError) {
    try require(sections[.dataSets].count <= DataSet.setMaximum, "its number of data sets")
    var memory = 0
    for index in 0..<sections[.dataSets].count {
      let record = sections[.dataSets].offset + index * DataSetRecord.stride
      for field in [DataSetRecord.name, DataSetRecord.stateFile] {
        try requireRange(bytes.u32le(record + field), bytes.u32le(record + field + 4), in: .patterns, sections)
      }
      let kind = UInt8(exactly: bytes.u32le(record + DataSetRecord.kind)).flatMap(DataSet.Kind.init)
      memory += Int(bytes.u32le(record + DataSetRecord.memory))
      let first = bytes.u32le(record + DataSetRecord.entriesStart)
      let count = bytes.u32le(record + DataSetRecord.entriesCount)
      try requireRange(first, count, in: .dataEntries, sections)
      for entry in Int(first)..<Int(first) + Int(count) {
        let length = bytes.u32le(
          sections[.dataEntries].offset + entry * DataEntryRecord.stride + DataEntryRecord.length)
        try require(kind?.takes(Int(length)) == true, "a value of a data set")
      }
      try require(kind != nil && memory <= DataSet.memoryMaximum, "a data set")
    }
    for entry in 0..<sections[.dataEntries].count {
      let record = sections[.dataEntries].offset + entry * DataEntryRecord.stride
      try requireRange(
        bytes.u32le(record + DataEntryRecord.value), bytes.u32le(record + DataEntryRecord.length), in: .patterns,
        sections)
    }
  }

  static func validateTransforms(_ bytes: RawSpan, _ sections: ImageSections) throws(RuleCompilationError) {
    for index in 0..<sections[.regexes].count {
      let record = sections[.regexes].offset + index * RegexRecord.stride
      try requireRange(
        bytes.u32le(record + RegexRecord.offset), bytes.u32le(record + RegexRecord.length), in: .patterns, sections)
      try require(bytes.u32le(record + RegexRecord.options) & ~Regex.known == 0, "the options of an expression")
    }
    for index in 0..<sections[.transforms].count {
      let record = sections[.transforms].offset + index * TransformRecord.stride
      let kind = TransformKind(rawValue: bytes.u8(record + TransformRecord.kind))
      try require(kind != nil, "a transform")
      let word0 = bytes.u32le(record + TransformRecord.word0)
      if kind == .capture { try requireIndex(word0, in: .regexes, sections) }
      if kind == .xorWithin { try require(bytes.u8(record + TransformRecord.small) >= 1, "a key") }
      if kind == .xor {
        let length = bytes.u32le(record + TransformRecord.word1)
        try require(length >= 1, "a key")
        try requireRange(word0, length, in: .patterns, sections)
      }
    }
  }
}
