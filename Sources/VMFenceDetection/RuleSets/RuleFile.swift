import VMFenceCore

extension RuleSource {
  /// Bytes of a rule file, or of a file that rules name, at the most: the largest sets that are published as one file have about 40 MB.
  package static let byteLimit = 64 << 20

  /// Reads a rule file, or a list that goes with rules.
  package static func reading(_ path: String, dialect: RuleDialect? = nil) throws(UnreadableFile) -> RuleSource {
    RuleSource(file: path, text: try WholeFile.readText(path, atMost: byteLimit), dialect: dialect)
  }
}

extension SnortRuleEngine {
  /// Reads files that rules name: lists beside the rule files, and, when there is a folder of what is kept between runs, those in it.
  package static func dataReader(
    stateFolder: String?
  ) -> @Sendable (RuleDataFile) throws(RuleCompilationError) -> [UInt8]? {
    { (file: RuleDataFile) throws(RuleCompilationError) -> [UInt8]? in
      let path: String
      switch file {
      case .values(let found): path = found
      case .state(let name):
        guard let stateFolder else { return nil }
        path = stateFolder + "/" + name
      }
      do throws(UnreadableFile) { return try WholeFile.readText(path, atMost: RuleSource.byteLimit) } catch {
        if error.isMissing { return nil }
        throw RuleCompilationError(.inputOutput, error.reason)
      }
    }
  }
}
