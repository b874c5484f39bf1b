public import VMFenceCore

/// Hands what is written to protected files to any rule engine, as the body of an HTTP transfer of the file, and says which of its
/// rules match. Rules see the path as what was asked for; those about a direction see the contents on the way to the client,
/// port 80 on the other side.
///
///     let rules = try engine.compile(request).rules
///     var inspection = try ContentInspection<SnortInspector>(rules: rules)
///     while let contents = monitor.nextContents() {
///       for rule in inspection.inspect(contents) { tell(contents.event(matching: rule)) }
///     }
///
/// The monitor gives contents for files whose rule asks for `FileAttributes.content`. Each is inspected by itself; a match needs
/// all of its patterns in what was written at once. What rules say of verdicts is not acted on: the contents are on the disk
/// already. Call it off the path of requests; used by one thread at a time.
public struct ContentInspection<Inspector: PacketInspector & ~Copyable>: ~Copyable {
  private let rules: Inspector.Rules
  private var inspector: Inspector
  private var output = InspectionOutput()
  private var port: UInt16 = 0
  /// Files that were inspected.
  public private(set) var files: UInt64 = 0
  /// Matches that an engine had no room for.
  public private(set) var lostMatches: UInt64 = 0

  /// - Throws: when the engine does not take its rules or the configuration.
  public init(
    rules: Inspector.Rules, configuration: InspectorConfiguration = InspectorConfiguration(flowCapacity: 64)
  ) throws(RuleCompilationError) {
    self.rules = rules
    inspector = try Inspector.make(rules: rules, configuration: configuration)
  }

  /// The rules that match, each once, in the order in which they were found.
  public mutating func inspect(_ contents: FileContents) -> [RuleMetadata] {
    files += 1
    port = port == 16_383 ? 0 : port + 1
    var found: [UInt32] = []
    var transfer = ContentTransfer(contents, port: 49_152 + port)
    transfer.forEach { metadata, frame in
      output.reset()
      inspector.inspect(metadata, frame, into: &output)
      lostMatches += UInt64(output.overflow)
      for index in 0..<output.count where !found.contains(output[index].ruleIndex) {
        found.append(output[index].ruleIndex)
      }
    }
    return found.filter { $0 < UInt32(clamping: rules.ruleCount) }.map { rules.metadata(at: Int($0)) }
  }
}
