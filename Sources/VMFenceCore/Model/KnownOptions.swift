/// The options that a command has, by which a mistyped one is told before anything else that is wrong: argument parsers tell first what is missing, and whoever has written
/// `--disc` for `--disk` reads that `--disk` is missing.
package struct KnownOptions: Sendable {
  private var names: Set<String>

  /// - `help`: the command's help text, in which each option has a line under `OPTIONS:` that begins with its names: `-h, --help`.
  package init(help: String) {
    names = []
    var isListed = false
    for line in help.split(separator: "\n") {
      // Other text may have a line that begins with an option's name.
      if line.first != " " { isListed = line == "OPTIONS:" }
      guard isListed else { continue }
      for word in line.split(whereSeparator: { " ,/=".contains($0) }) {
        guard word.hasPrefix("-") else { break }
        names.insert(String(word))
      }
    }
  }

  package func union(_ other: KnownOptions) -> KnownOptions {
    var result = self
    result.names.formUnion(other.names)
    return result
  }

  /// What is wrong with the first word that is meant as an option and is none, for a line of its own; nil when there is none, or the help text lists no options.
  package func mistake(in words: some Sequence<String>) -> String? {
    guard names.contains("--help") else { return nil }
    for word in words {
      if word == "--" { break }
      // A number below zero is none.
      guard word.hasPrefix("-"), let second = word.dropFirst().first, !second.isNumber else { continue }
      let name = String(word.prefix { $0 != "=" })
      if names.contains(name) { continue }
      let guess =
        names.filter { $0.hasPrefix("--") }.nearest(to: name, within: 2).map { ". Did you mean '\($0)'?" } ?? ""
      return "Unknown option '\(name.escapedForDisplay)'\(guess)"
    }
    return nil
  }
}
