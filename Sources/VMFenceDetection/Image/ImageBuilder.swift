import VMFenceCore
import VMFencePackets

/// Writes an image. Equal rules give equal bytes: nothing here depends on the order of a dictionary.
struct ImageBuilder {
  private var sections: [ImageSection: ByteWriter] = [:]
  private var headers: [RuleHeader: UInt32] = [:]
  private var addressSets: [AddressSet: UInt32] = [:]
  private var portSets: [PortSet: UInt32] = [:]
  private var patterns: [[UInt8]: UInt32] = [:]
  private var activations: [UInt32: UInt32] = [:]
  private(set) var variables = VariableNames()
  /// Bytes of the image at the most.
  private let limit: Int
  var regexes: [RegexKey: UInt32] = [:]
  var dataSets: [DataSet: UInt32] = [:]
  /// Those that rules add to or take out of.
  private(set) var changedDataSets: Set<DataSet> = []

  private init(limit: Int) { self.limit = min(limit, ImageLayout.byteLimit) }

  static func build(_ rules: [Rule], limit: Int) throws(RuleCompilationError) -> [UInt8] {
    var builder = ImageBuilder(limit: limit)
    builder.variables = try VariableNames(rules)
    for case .payload(let test) in rules.lazy.flatMap(\.tests) {
      if case .dataSet(let test) = test.check, test.operation.changesSet { builder.changedDataSets.insert(test.set) }
    }
    for rule in rules { try builder.append(rule) }
    builder.appendVariableNames()
    try builder.append(try PrefilterPlan(rules), rules)
    return try builder.assemble(ruleCount: rules.count)
  }

  mutating func write(_ section: ImageSection, _ body: (inout ByteWriter) -> Void) {
    body(&sections[section, default: ByteWriter()])
  }

  func count(_ section: ImageSection) -> Int { (sections[section]?.count ?? 0) / section.stride }

  private mutating func append(_ rule: Rule) throws(RuleCompilationError) {
    let header = index(of: RuleHeader(rule))
    let optionsStart = UInt32(count(.options))
    var (conditions, payloads) = ([OptionDraft](), [PayloadTest]())
    for test in rule.tests {
      switch test {
      case .header(let test): conditions.append(draft(test, rule.dialect))
      case .state(let test): conditions.append(draft(test, rule.dialect))
      case .payload(let test): payloads.append(test)
      }
    }
    let (payload, topCount) = try drafts(payloads, rule)
    let effects = rule.effects.map { draft($0, rule.dialect) }
    for option in conditions + payload + effects { append(option) }
    let threshold = rule.threshold.map { appendRate($0, rule.dialect) } ?? noIndex
    let filter = rule.detectionFilter.map { appendRate($0, rule.dialect) } ?? noIndex
    let rateFilter = rule.rateFilter.map { appendRate($0.rate, rule.dialect, $0.action) } ?? noIndex
    let suppressionStart = UInt32(count(.suppressions))
    for suppression in rule.suppressions { append(suppression) }

    var activation = noIndex
    if let id = rule.activates ?? rule.activatedBy {
      activation = activations[id] ?? UInt32(activations.count)
      activations[id] = activation
    }
    let flags = Self.flags(of: rule) | rule.inspects.rawValue
    write(.rules) {
      $0.u32(header)
      $0.u32(optionsStart)
      $0.u16(UInt16(conditions.count))
      $0.u16(UInt16(payload.count))
      $0.u16(UInt16(effects.count))
      $0.u8(rule.action.rawValue)
      $0.u8(flags)
      $0.u32(threshold)
      $0.u32(filter)
      $0.u32(activation)
      $0.u32(rule.count ?? 0)
      $0.u32(rule.metadata.gid)
      $0.u32(rule.metadata.sid)
      $0.u8(rule.moreFlags)
      $0.u8(UInt8(clamping: rule.metadata.priority))
      $0.u16(UInt16(rule.suppressions.count))
      $0.u32(suppressionStart)
      $0.u32(rateFilter)
      $0.u16(UInt16(topCount))
      $0.u16(rule.tcpFlags)
    }
    let start = sections[.metadata]?.count ?? 0
    write(.metadata) { $0.metadata(rule.metadata) }
    let end = sections[.metadata]?.count ?? 0
    write(.metadataIndex) {
      $0.u32(UInt32(start))
      $0.u32(UInt32(end - start))
    }
  }

  private static func flags(of rule: Rule) -> UInt8 {
    let dialect = rule.dialect == .suricata ? RuleRecord.isSuricata : 0
    let silent = rule.action == .sdrop || rule.action == .pass ? RuleRecord.isSilent : 0
    // Suricata's depths count from where the stream begins, so that they mean the same in every part of it.
    let isAnchored = rule.tests.contains {
      rule.dialect == .suricata ? $0.hasFixedPlace && !$0.hasDepth : $0.hasFixedPlace
    }
    let anchor = isAnchored ? RuleRecord.isAnchored : 0
    return dialect | anchor | silent | (rule.actsOnFlow ? RuleRecord.actsOnFlow : 0)
  }

  private mutating func append(_ suppression: RuleSuppression) {
    let addresses = index(of: suppression.addresses)
    write(.suppressions) {
      $0.u32(UInt32(suppression.side?.rawValue ?? 0))
      $0.u32(addresses)
    }
  }

  private mutating func appendRate(
    _ rate: RuleThreshold, _ dialect: RuleDialect, _ action: RuleAction = .alert
  ) -> UInt32 {
    let index = UInt32(count(.rates))
    write(.rates) {
      $0.u8(rate.kind.rawValue)
      $0.u8(rate.track.rawValue)
      $0.u8(dialect == .suricata ? 0 : 1)
      $0.u8(rate.unique.rawValue)
      $0.u32(rate.count)
      $0.u32(rate.seconds)
      $0.u32(rate.extra)
      $0.u32(UInt32(action.rawValue))
    }
    return index
  }

  private mutating func append(_ option: OptionDraft) {
    precondition(option.words.count <= OptionRecord.wordCount, "an option that does not fit its record")
    write(.options) {
      $0.u8(option.kind)
      $0.u8(option.flags)
      $0.u8(option.small1)
      $0.u8(option.small2)
      for index in 0..<OptionRecord.wordCount { $0.u32(index < option.words.count ? option.words[index] : 0) }
    }
  }

  /// Where in `patterns` these bytes lie; equal ones lie there once.
  mutating func offset(ofPattern bytes: [UInt8]) -> UInt32 {
    if let known = patterns[bytes] { return known }
    let offset = UInt32(sections[.patterns]?.count ?? 0)
    write(.patterns) { $0.append(bytes) }
    patterns[bytes] = offset
    return offset
  }

  // MARK: Headers

  private mutating func index(of header: RuleHeader) -> UInt32 {
    if let known = headers[header] { return known }
    let source = index(of: header.source.addresses)
    let sourcePorts = index(of: header.source.ports)
    let destination = index(of: header.destination.addresses)
    let destinationPorts = index(of: header.destination.ports)
    let index = UInt32(count(.headers))
    write(.headers) {
      $0.u8(header.ipProtocol.rawValue)
      $0.u8(header.isBidirectional ? 1 : 0)
      $0.u8(header.needsPorts ? 1 : 0)
      $0.u8(0)
      $0.u32(source)
      $0.u32(sourcePorts)
      $0.u32(destination)
      $0.u32(destinationPorts)
    }
    headers[header] = index
    return index
  }

  mutating func index(of set: AddressSet) -> UInt32 {
    if set == .any { return noIndex }
    if let known = addressSets[set] { return known }
    let v4 = set.ranges(of: .v4)
    let v6 = set.ranges(of: .v6)
    let starts = (UInt32(count(.v4Ranges)), UInt32(count(.v6Ranges)))
    let index = UInt32(count(.addressSets))
    write(.addressSets) {
      $0.u32(starts.0)
      $0.u32(UInt32(v4.count))
      $0.u32(starts.1)
      $0.u32(UInt32(v6.count))
    }
    write(.v4Ranges) { writer in
      for range in v4 {
        writer.u32(UInt32(truncatingIfNeeded: range.lowerBound.low))
        writer.u32(UInt32(truncatingIfNeeded: range.upperBound.low))
      }
    }
    write(.v6Ranges) { writer in
      for range in v6 {
        for address in [range.lowerBound, range.upperBound] {
          writer.u64(address.high)
          writer.u64(address.low)
        }
      }
    }
    addressSets[set] = index
    return index
  }

  private mutating func index(of set: PortSet) -> UInt32 {
    if set.isAny { return noIndex }
    if let known = portSets[set] { return known }
    let start = UInt32(count(.portRanges))
    let index = UInt32(count(.portSets))
    write(.portSets) {
      $0.u32(start)
      $0.u32(UInt32(set.ranges.count))
    }
    write(.portRanges) { writer in
      for range in set.ranges {
        writer.u16(range.lowerBound)
        writer.u16(range.upperBound)
      }
    }
    portSets[set] = index
    return index
  }

  // MARK: Groups

  private mutating func append(_ plan: PrefilterPlan, _ rules: [Rule]) throws(RuleCompilationError) {
    let searched = rules.map(\.searchPattern)
    let needsSyn = rules.map { TCPFlags(rawValue: UInt8(truncatingIfNeeded: $0.tcpFlags)).contains(.syn) }
    for group in plan.groups { try append(group, searched, needsSyn) }
    var pages: [[UInt16]: UInt16] = [:]
    for packetClass in plan.classes {
      let destination = append(packetClass.destination, &pages)
      let source = append(packetClass.source, &pages)
      let wide = append(packetClass.wide, &pages)
      write(.classes) {
        $0.u32(packetClass.anyPort == noGroup ? noIndex : UInt32(packetClass.anyPort))
        $0.u32(destination)
        $0.u32(source)
        $0.u32(wide)
      }
    }
  }

  private mutating func append(_ table: PrefilterPlan.PortTable?, _ pages: inout [[UInt16]: UInt16]) -> UInt32 {
    guard let table else { return noIndex }
    let start = UInt32(count(.portPages))
    for first in stride(from: 0, to: 65_536, by: 256) {
      let page = Array(table.groups[first..<first + 256])
      let number = pages[page] ?? UInt16(pages.count)
      if pages.updateValue(number, forKey: page) == nil {
        write(.portGroups) { writer in page.forEach { writer.u16($0) } }
      }
      write(.portPages) { $0.u16(number) }
    }
    return start
  }

  private mutating func append(
    _ group: PrefilterPlan.Group, _ searched: [SearchPattern?], _ needsSyn: [Bool]
  ) throws(RuleCompilationError) {
    var numbers: [SearchPattern: Int] = [:]
    var found: [(pattern: SearchPattern, rules: [UInt32])] = []
    var direct: [UInt32] = []
    for rule in group.rules {
      guard let pattern = searched[Int(rule)] else {
        direct.append(rule)
        continue
      }
      if let number = numbers[pattern] {
        found[number].rules.append(rule)
      } else {
        numbers[pattern] = found.count
        found.append((pattern, [rule]))
      }
    }
    // Of runs as long as each other, in the rules' order.
    let runs = found.enumerated().filter { $0.element.pattern.isRun }.prefix(RunSearch.patternLimit)
      .sorted { ($1.element.pattern.bytes.count, $0.offset) < ($0.element.pattern.bytes.count, $1.offset) }
    for index in runs.map(\.offset).sorted(by: >) { found.remove(at: index) }
    var databaseOffset = 0
    var databaseBytes = 0
    if !found.isEmpty {
      let database = try PatternDatabase.compile(found.map(\.pattern))
      write(.databases) { $0.align(to: ImageLayout.alignment) }
      databaseOffset = count(.databases)
      databaseBytes = database.count
      guard databaseOffset + databaseBytes <= limit else { throw tooLarge() }
      write(.databases) { $0.append(database) }
    }
    let patternStart = count(.groupPatterns)
    for (pattern, rules) in found + runs.map(\.element) {
      let bytes = offset(ofPattern: pattern.bytes)
      let list = appendList(rules)
      write(.groupPatterns) {
        $0.u32(list)
        $0.u32(UInt32(rules.count))
        $0.u32(bytes)
        $0.u32(UInt32(pattern.bytes.count))
      }
    }
    let synOnly = direct.filter { needsSyn[Int($0)] }
    let directStart = appendList(direct.filter { !needsSyn[Int($0)] } + synOnly)
    write(.groups) {
      $0.u32(UInt32(patternStart))
      $0.u32(UInt32(found.count))
      $0.u32(directStart)
      $0.u32(UInt32(direct.count))
      $0.u32(UInt32(databaseOffset))
      $0.u32(UInt32(databaseBytes))
      $0.u32(UInt32(runs.count))
      $0.u32(UInt32(synOnly.count))
    }
  }

  private mutating func appendList(_ rules: [UInt32]) -> UInt32 {
    let start = UInt32(count(.ruleLists))
    write(.ruleLists) { writer in rules.forEach { writer.u32($0) } }
    return start
  }

  // MARK: Assembly

  /// `bytes`: what they would take, where that is known.
  private func tooLarge(_ bytes: Int? = nil) -> RuleCompilationError {
    func size(_ bytes: Int) -> String {
      bytes < 1 << 20 ? "\((bytes + 1023) >> 10) KiB" : "\((bytes + 1 << 20 - 1) >> 20) MiB"
    }
    let figure = bytes.map { "\(size($0)), more than the \(size(limit)) that they may" } ?? "more than \(size(limit))"
    return RuleCompilationError(
      .tooLarge, "the compiled rules would take \(figure)", remedy: "use fewer rules for this domain")
  }

  private func assemble(ruleCount: Int) throws(RuleCompilationError) -> [UInt8] {
    var table = ByteWriter()
    var end = ImageLayout.headerBytes
    var offsets: [Int] = []
    for section in ImageSection.allCases {
      let offset = ImageLayout.aligned(end)
      offsets.append(offset)
      table.u64(UInt64(offset))
      table.u32(UInt32(count(section)))
      table.u32(UInt32(section.stride))
      end = offset + (sections[section]?.count ?? 0)
    }
    guard end <= limit else { throw tooLarge(end) }
    var image = ByteWriter()
    image.u64(ImageLayout.magic)
    image.u32(ImageLayout.version)
    image.u32(UInt32(ImageSection.allCases.count))
    image.u64(0)
    image.u64(UInt64(end))
    image.u64(PatternDatabase.machine)
    image.u32(UInt32(ruleCount))
    image.u32(UInt32(activations.count))
    image.append(table.bytes)
    for (section, offset) in zip(ImageSection.allCases, offsets) {
      image.align(to: ImageLayout.alignment)
      precondition(image.count == offset, "sections where the table says")
      image.append(sections[section]?.bytes ?? [])
    }
    var bytes = image.bytes
    let checksum = bytes.withRawSpan { ImageLayout.checksum($0) }
    for index in 0..<8 {
      bytes[ImageLayout.checksumOffset + index] = UInt8(truncatingIfNeeded: checksum >> UInt64(8 * index))
    }
    return bytes
  }
}

/// What rules that differ only in their tests share.
private struct RuleHeader: Hashable {
  var ipProtocol: RuleProtocol
  var source: RuleEndpoint
  var destination: RuleEndpoint
  var isBidirectional: Bool
  var needsPorts: Bool

  init(_ rule: Rule) {
    ipProtocol = rule.ipProtocol
    source = rule.source
    destination = rule.destination
    isBidirectional = rule.isBidirectional
    needsPorts = rule.dialect == .suricata && !(source.ports.isAny && destination.ports.isAny)
  }
}
