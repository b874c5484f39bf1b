import VMFenceCore

/// Compiled rules: an image, validated. Cheap to copy; every copy shares the image.
public struct SnortRules: CompiledRules {
  public let image: RuleImage
  let sections: ImageSections
  public let ruleCount: Int
  /// Numbers that `activate` rules turn on.
  let activationCount: Int

  /// - Throws: `.badImage` when it is damaged, of another version, or compiled for another pattern matcher or processor.
  public init(image: RuleImage) throws(RuleCompilationError) {
    let header = try image.withBytes { bytes throws(RuleCompilationError) in
      try ImageValidator.validate(bytes)
    }
    self.image = image
    sections = header.sections
    ruleCount = header.ruleCount
    activationCount = header.activationCount
    try validateDatabases()
  }

  /// Compiles rules, in the order in which they are to be resolved: where one decides over others (`pass`), the
  /// earlier wins.
  ///
  /// - `limit`: bytes that they may take. What is over it is refused, with the figure.
  package init(compiling rules: [Rule], limit: Int = ImageLayout.byteLimit) throws(RuleCompilationError) {
    let bytes = try ImageBuilder.build(rules, limit: limit)
    try self.init(image: bytes.withRawSpan { RuleImage(copying: $0) })
  }

  public static var inspectorCounters: [InspectorCounter] { SnortInspector.counterNames }

  public func metadata(at index: Int) -> RuleMetadata {
    precondition(index >= 0 && index < ruleCount, "a rule that is not there")
    return image.withBytes { bytes in
      let entry = sections[.metadataIndex].offset + index * ImageSection.metadataIndex.stride
      var reader = MetadataReader(
        offset: sections[.metadata].offset + Int(bytes.u32le(entry)), count: Int(bytes.u32le(entry + 4)))
      guard let metadata = reader.metadata(in: bytes) else { preconditionFailure("an image that changed") }
      return metadata
    }
  }

  /// The bits and integers that its rules keep with flows.
  var variableShape: FlowVariables.Shape {
    FlowVariables.Shape(bits: sections[.flowBits].count, integers: sections[.flowIntegers].count)
  }

  /// The names of flow bits or integers, in the order of their numbers.
  func names(_ section: ImageSection) -> [[UInt8]] {
    image.withBytes { bytes in
      (0..<sections[section].count).map { index in
        let record = sections[section].offset + index * section.stride
        let start = sections[.patterns].offset + Int(bytes.u32le(record))
        return (start..<start + Int(bytes.u32le(record + 4))).map { bytes.u8($0) }
      }
    }
  }

  /// Generator (high 32 bits) and signature (low) of a rule: what it is called in saved states.
  func identifier(at index: Int) -> UInt64 {
    image.withBytes { bytes in
      let record = sections[.rules].offset + index * RuleRecord.stride
      return UInt64(bytes.u32le(record + RuleRecord.gid)) << 32 | UInt64(bytes.u32le(record + RuleRecord.sid))
    }
  }

  /// The hashes of the names of all bits that its rules keep with hosts.
  var hostBitNames: Set<UInt64> {
    image.withBytes { bytes in
      var names: Set<UInt64> = []
      let kinds = [StateKind.hostBit.rawValue, EffectKind.hostBit.rawValue]
      for index in 0..<sections[.options].count {
        let option = sections[.options].offset + index * OptionRecord.stride
        if kinds.contains(bytes.u8(option + OptionRecord.kind)) {
          names.insert(bytes.u64le(OptionRecord.word(option, 0)))
        }
      }
      return names
    }
  }

  /// Where the group's database lies in the image; nil for a group without patterns.
  func databaseOffset(ofGroup group: Int) -> Int? {
    image.withBytes { bytes in
      let record = sections[.groups].offset + group * GroupRecord.stride
      guard bytes.u32le(record + GroupRecord.databaseBytes) > 0 else { return nil }
      return sections[.databases].offset + Int(bytes.u32le(record + GroupRecord.databaseOffset))
    }
  }

  /// Whether a search for the group's first pattern in that pattern finds it.
  func selfTest(_ group: Int, _ scanner: inout PatternScanner) -> Bool {
    image.withBytes { bytes in
      let record = sections[.groups].offset + group * GroupRecord.stride
      let pattern =
        sections[.groupPatterns].offset
        + Int(bytes.u32le(record + GroupRecord.patternStart)) * GroupPatternRecord.stride
      let start = sections[.patterns].offset + Int(bytes.u32le(pattern + GroupPatternRecord.patternOffset))
      let count = Int(bytes.u32le(pattern + GroupPatternRecord.patternLength))
      guard case .hits(let hits) = scanner.scan(group, bytes.extracting(start..<start + count)) else { return false }
      return (0..<hits).contains { scanner.hit($0) == 0 }
    }
  }

  /// Asks the pattern matcher itself whether it can use each database, and that none is longer than its place.
  private func validateDatabases() throws(RuleCompilationError) {
    for group in 0..<sections[.groups].count {
      guard let offset = databaseOffset(ofGroup: group) else { continue }
      let record = sections[.groups].offset + group * GroupRecord.stride
      let room = image.withBytes { Int($0.u32le(record + GroupRecord.databaseBytes)) }
      // SAFETY: 64 bytes at least lie there, and the image is aligned (validated).
      guard let size = unsafe PatternDatabase.size(at: image.baseAddress + offset), size <= room else {
        throw RuleCompilationError(
          .badImage, "a pattern database of the rule image cannot be used by libhs \(PatternDatabase.matcherVersion)",
          remedy: "compile the rules again on this host")
      }
    }
  }
}
