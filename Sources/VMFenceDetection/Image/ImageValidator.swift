import VMFenceCore

/// Checks an image once, so that whoever evaluates it needs no checks: after this, every offset, index, count and
/// enumeration in it is right. (The databases are opaque; they are checked by the checksum and by the pattern matcher.)
enum ImageValidator {
  struct Header {
    var sections: ImageSections
    var ruleCount: Int
    var activationCount: Int
  }

  static func validate(_ bytes: RawSpan) throws(RuleCompilationError) -> Header {
    let header = try validateHeader(bytes)
    try validateRules(bytes, header)
    try validateSets(bytes, header.sections)
    try validateState(bytes, header.sections)
    try validateOptions(bytes, header.sections)
    try validateTransforms(bytes, header.sections)
    try validateDataSets(bytes, header.sections)
    try validateMetadata(bytes, header)
    try validateGroups(bytes, header)
    return header
  }

  static func require(_ condition: Bool, _ what: @autoclosure () -> String) throws(RuleCompilationError) {
    guard condition else {
      throw RuleCompilationError(.badImage, "the rule image is damaged: \(what())", remedy: "compile the rules again")
    }
  }

  private static func validateHeader(_ bytes: RawSpan) throws(RuleCompilationError) -> Header {
    try require(bytes.byteCount >= ImageLayout.headerBytes, "it ends inside its header")
    try require(bytes.u64le(0) == ImageLayout.magic, "it is no rule image")
    guard bytes.u32le(8) == ImageLayout.version else {
      throw RuleCompilationError(
        .badImage, "the rule image has format \(bytes.u32le(8)), this engine reads \(ImageLayout.version)",
        remedy: "compile the rules again with this version")
    }
    try require(bytes.u64le(24) == UInt64(bytes.byteCount), "its length is not the one it states")
    try require(bytes.byteCount <= ImageLayout.byteLimit, "it is longer than an image can be")
    try require(
      bytes.u64le(ImageLayout.checksumOffset) == ImageLayout.checksum(bytes), "its checksum does not match")
    guard bytes.u64le(32) == PatternDatabase.machine else {
      throw RuleCompilationError(
        .badImage, "the rule image was compiled for another pattern matcher or processor",
        remedy: "compile the rules again on this host")
    }
    let all = ImageSection.allCases
    try require(Int(bytes.u32le(12)) == all.count, "its number of sections")
    var sections = ImageSections()
    var end = ImageLayout.headerBytes
    for section in all {
      let entry = ImageLayout.sectionTable + section.rawValue * ImageLayout.sectionEntry
      let offset = bytes.u64le(entry)
      let count = bytes.u32le(entry + 8)
      try require(Int(bytes.u32le(entry + 12)) == section.stride, "the record size of section \(section)")
      try require(offset == UInt64(ImageLayout.aligned(end)), "the place of section \(section)")
      let (size, overflow) = Int(count).multipliedReportingOverflow(by: section.stride)
      try require(!overflow && size <= bytes.byteCount - Int(offset), "the size of section \(section)")
      sections[section] = .init(offset: Int(offset), count: Int(count))
      end = Int(offset) + size
    }
    try require(end == bytes.byteCount, "bytes after its last section")
    let header = Header(
      sections: sections, ruleCount: Int(bytes.u32le(40)), activationCount: Int(bytes.u32le(44)))
    try require(header.ruleCount == sections[.rules].count, "its number of rules")
    try require(header.activationCount <= header.ruleCount, "its number of activations")
    return header
  }

  /// That `count` records from `start` on lie in `section`.
  static func requireRange(
    _ start: UInt32, _ count: UInt32, in section: ImageSection, _ sections: ImageSections
  ) throws(RuleCompilationError) {
    try require(UInt64(start) + UInt64(count) <= UInt64(sections[section].count), "a range in section \(section)")
  }

  static func requireIndex(
    _ index: UInt32, in section: ImageSection, _ sections: ImageSections, orNone: Bool = false
  ) throws(RuleCompilationError) {
    try require(
      Int(index) < sections[section].count || orNone && index == noIndex, "an index into section \(section)")
  }

  private static func validateRules(_ bytes: RawSpan, _ header: Header) throws(RuleCompilationError) {
    let sections = header.sections
    for index in 0..<header.ruleCount {
      let rule = sections[.rules].offset + index * RuleRecord.stride
      try requireIndex(bytes.u32le(rule + RuleRecord.header), in: .headers, sections)
      try validateOrder(bytes, rule, sections)
      let action = RuleAction(rawValue: bytes.u8(rule + RuleRecord.action))
      try require(action != nil, "a rule's action")
      try require(bytes.u8(rule + RuleRecord.flags) <= RuleRecord.knownFlags, "a rule's flags")
      try requireIndex(bytes.u32le(rule + RuleRecord.threshold), in: .rates, sections, orNone: true)
      try requireIndex(bytes.u32le(rule + RuleRecord.filter), in: .rates, sections, orNone: true)
      try require(bytes.u8(rule + RuleRecord.moreFlags) <= RuleRecord.knownMoreFlags, "a rule's flags")
      try requireIndex(bytes.u32le(rule + RuleRecord.rateFilter), in: .rates, sections, orNone: true)
      try requireRange(
        bytes.u32le(rule + RuleRecord.suppressionStart), UInt32(bytes.u16le(rule + RuleRecord.suppressionCount)),
        in: .suppressions, sections)
      let activation = bytes.u32le(rule + RuleRecord.activation)
      try require(Int(activation) < header.activationCount || activation == noIndex, "a rule's activation")
    }
    for index in 0..<sections[.headers].count {
      let record = sections[.headers].offset + index * HeaderRecord.stride
      try require(
        RuleProtocol(rawValue: bytes.u8(record + HeaderRecord.ipProtocol)) != nil, "a rule header's protocol")
      try require(bytes.u8(record + HeaderRecord.isBidirectional) <= 1, "a rule header's direction")
      for field in [HeaderRecord.source, HeaderRecord.destination] {
        try requireIndex(bytes.u32le(record + field), in: .addressSets, sections, orNone: true)
      }
      for field in [HeaderRecord.sourcePorts, HeaderRecord.destinationPorts] {
        try requireIndex(bytes.u32le(record + field), in: .portSets, sections, orNone: true)
      }
    }
    for index in 0..<sections[.rates].count {
      let record = sections[.rates].offset + index * RateRecord.stride
      let kind = RuleThreshold.Kind(rawValue: bytes.u8(record + RateRecord.kind))
      let track = RuleThreshold.Track(rawValue: bytes.u8(record + RateRecord.track))
      let unique = RuleThreshold.Unique(rawValue: bytes.u8(record + RateRecord.unique))
      let action = UInt8(exactly: bytes.u32le(record + RateRecord.action)).flatMap(RuleAction.init)
      try require(kind != nil && track != nil && unique != nil && action != nil, "the kind of a rate")
    }
  }

  private static func validateState(_ bytes: RawSpan, _ sections: ImageSections) throws(RuleCompilationError) {
    for index in 0..<sections[.suppressions].count {
      let record = sections[.suppressions].offset + index * SuppressionRecord.stride
      let side = bytes.u32le(record + SuppressionRecord.side)
      try require(
        side == 0 || UInt8(exactly: side).flatMap(HostSide.init) != nil, "for whom a rule is not told of")
      try requireIndex(bytes.u32le(record + SuppressionRecord.addresses), in: .addressSets, sections, orNone: true)
    }
    try require(
      sections[.flowBits].count <= VariableNames.bitMaximum
        && sections[.flowIntegers].count <= VariableNames.integerMaximum, "its number of flow variables")
    for section in [ImageSection.flowBits, .flowIntegers] {
      for index in 0..<sections[section].count {
        let record = sections[section].offset + index * section.stride
        try requireRange(bytes.u32le(record), bytes.u32le(record + 4), in: .patterns, sections)
      }
    }
    for index in 0..<sections[.bitLists].count {
      try requireIndex(bytes.u32le(sections[.bitLists].offset + index * 4), in: .flowBits, sections)
    }
  }

  private static func validateSets(_ bytes: RawSpan, _ sections: ImageSections) throws(RuleCompilationError) {
    for index in 0..<sections[.addressSets].count {
      let record = sections[.addressSets].offset + index * ImageSection.addressSets.stride
      try requireRange(bytes.u32le(record), bytes.u32le(record + 4), in: .v4Ranges, sections)
      try requireRange(bytes.u32le(record + 8), bytes.u32le(record + 12), in: .v6Ranges, sections)
    }
    for index in 0..<sections[.portSets].count {
      let record = sections[.portSets].offset + index * ImageSection.portSets.stride
      try requireRange(bytes.u32le(record), bytes.u32le(record + 4), in: .portRanges, sections)
    }
  }

  private static func validateMetadata(_ bytes: RawSpan, _ header: Header) throws(RuleCompilationError) {
    let sections = header.sections
    try require(sections[.metadataIndex].count == header.ruleCount, "its number of descriptions")
    for index in 0..<header.ruleCount {
      let entry = sections[.metadataIndex].offset + index * ImageSection.metadataIndex.stride
      let offset = bytes.u32le(entry)
      let count = bytes.u32le(entry + 4)
      try requireRange(offset, count, in: .metadata, sections)
      var reader = MetadataReader(offset: sections[.metadata].offset + Int(offset), count: Int(count))
      let metadata = reader.metadata(in: bytes)
      try require(metadata != nil, "a rule's description")
    }
  }

  private static func validateGroups(_ bytes: RawSpan, _ header: Header) throws(RuleCompilationError) {
    let sections = header.sections
    try require(sections[.classes].count == PacketClass.allCases.count, "its number of packet classes")
    for index in 0..<sections[.classes].count {
      let record = sections[.classes].offset + index * ClassRecord.stride
      try requireIndex(bytes.u32le(record + ClassRecord.anyPort), in: .groups, sections, orNone: true)
      for field in [ClassRecord.destinationPages, ClassRecord.sourcePages, ClassRecord.widePages] {
        let start = bytes.u32le(record + field)
        if start != noIndex { try requireRange(start, 256, in: .portPages, sections) }
      }
    }
    for index in 0..<sections[.portPages].count {
      let page = UInt32(bytes.u16le(sections[.portPages].offset + index * 2))
      try requireRange(page * 256, 256, in: .portGroups, sections)
    }
    for index in 0..<sections[.portGroups].count {
      let group = bytes.u16le(sections[.portGroups].offset + index * 2)
      try require(group == noGroup || Int(group) < sections[.groups].count, "the group of a port")
    }
    for index in 0..<sections[.groups].count {
      let record = sections[.groups].offset + index * GroupRecord.stride
      try requireRange(
        bytes.u32le(record + GroupRecord.directStart), bytes.u32le(record + GroupRecord.directCount), in: .ruleLists,
        sections)
      try require(
        bytes.u32le(record + GroupRecord.synCount) <= bytes.u32le(record + GroupRecord.directCount),
        "its rules about SYNs")
      let patterns = bytes.u32le(record + GroupRecord.patternCount)
      let first = bytes.u32le(record + GroupRecord.patternStart)
      let runs = bytes.u32le(record + GroupRecord.runCount)
      try requireRange(first, patterns, in: .groupPatterns, sections)
      try requireRange(first + patterns, runs, in: .groupPatterns, sections)
      try require(runs <= RunSearch.patternLimit, "its number of runs")
      try validateRuns(bytes, first + patterns, runs, sections)
      let database = bytes.u32le(record + GroupRecord.databaseOffset)
      let size = bytes.u32le(record + GroupRecord.databaseBytes)
      try requireRange(database, size, in: .databases, sections)
      try require(Int(database) % ImageLayout.alignment == 0, "the alignment of a database")
      try require(patterns > 0 ? size >= 64 : size == 0 && database == 0, "the size of a database")
    }
    for index in 0..<sections[.groupPatterns].count {
      let record = sections[.groupPatterns].offset + index * GroupPatternRecord.stride
      try requireRange(
        bytes.u32le(record + GroupPatternRecord.rulesStart), bytes.u32le(record + GroupPatternRecord.rulesCount),
        in: .ruleLists, sections)
      let length = bytes.u32le(record + GroupPatternRecord.patternLength)
      try require(length >= 1, "an empty pattern")
      try requireRange(bytes.u32le(record + GroupPatternRecord.patternOffset), length, in: .patterns, sections)
    }
    for index in 0..<sections[.ruleLists].count {
      try requireIndex(bytes.u32le(sections[.ruleLists].offset + index * 4), in: .rules, sections)
    }
  }
  /// That what is looked for as runs is long enough, and sorted. (What their bytes are decides what is found, no more.)
  private static func validateRuns(
    _ bytes: RawSpan, _ first: UInt32, _ count: UInt32, _ sections: ImageSections
  ) throws(RuleCompilationError) {
    var shortest = UInt32.max
    for index in first..<first + count {
      let record = sections[.groupPatterns].offset + Int(index) * GroupPatternRecord.stride
      let length = bytes.u32le(record + GroupPatternRecord.patternLength)
      try require(length >= RunSearch.minimum && length <= shortest, "the length of a run")
      shortest = length
    }
  }
}
