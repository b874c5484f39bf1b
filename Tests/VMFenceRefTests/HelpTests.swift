#if Daemon
import Foundation
import Testing

/// What `--help` says, as the argument parser gives it out.
private struct CommandHelp: Decodable {
  struct Argument: Decodable {
    struct Name: Decodable {
      var kind: String
      var name: String
      var text: String { kind == "long" ? "--\(name)" : "-\(name)" }
    }
    var kind: String
    var names: [Name]?
    var abstract: String?
  }
  var commandName: String
  var abstract: String?
  var discussion: String?
  var arguments: [Argument]?
  var subcommands: [CommandHelp]?
  var superCommands: [String]?

  var options: Set<String> { Set((arguments ?? []).flatMap { $0.names ?? [] }.map(\.text)) }

  /// All commands under this one, with their words.
  func all(_ before: [String] = []) -> [(words: [String], help: CommandHelp)] {
    let words = before + [commandName]
    return [(words, self)] + (subcommands ?? []).filter { $0.commandName != "help" }.flatMap { $0.all(words) }
  }

  /// What is wrong with a command line of this program, by its words after the program's own.
  func mistakes(_ words: ArraySlice<String>) -> [String] {
    if let word = words.first, let next = subcommands?.first(where: { $0.commandName == word }) {
      return next.mistakes(words.dropFirst())
    }
    let takesWords = (arguments ?? []).contains { $0.kind == "positional" }
    // One of its verbs stands for it, and which is not said.
    let parts = superCommands?.isEmpty == false ? (subcommands ?? []).filter { $0.commandName != "help" } : []
    if !takesWords, parts.contains(where: { $0.mistakes(words).isEmpty }) { return [] }
    if !takesWords, let word = words.first, !word.hasPrefix("-"), !(subcommands ?? []).isEmpty {
      return ["there is no `\(word)`"]
    }
    return words.filter { $0.contains(/^--?[a-z]/) }.compactMap { word in
      let name = String(word.prefix { $0 != "=" })
      return options.contains(name) || name == "--help" || name == "--version" ? nil : "there is no option \(name)"
    }
  }
}

@Suite("The help, the documents and the programs agree")
struct HelpTests {
  private struct Dump: Decodable { var command: CommandHelp }

  private static func help(_ program: String) throws -> CommandHelp {
    let folder = try TemporaryFolder()
    let path = folder.path("help.json")
    _ = FileManager.default.createFile(atPath: path, contents: nil)
    let process = Process()
    process.executableURL = URL(filePath: try Program.path(program))
    process.arguments = ["--experimental-dump-help"]
    process.standardOutput = FileHandle(forWritingAtPath: path)
    try process.run()
    process.waitUntilExit()
    return try JSONDecoder().decode(Dump.self, from: Data(contentsOf: URL(filePath: path))).command
  }

  private static func text(_ path: String) throws -> String {
    try String(contentsOf: Program.root.appending(path: path), encoding: .utf8)
  }

  /// The words of each command line of `program` in `text`: as a shell has them, up to what ends one, and before a comment, which two spaces set apart.
  private static func commandLines(_ program: String, in text: String) -> [[String]] {
    let joined = text.replacing("\\\n", with: " ")
    return joined.matches(of: try! Regex("(?:^|[\\n`(&]) *\(program) ([^\\n`]*)")).compactMap { match in
      let line = String(match.output[1].substring ?? "")
      let end = line.firstRange(of: #/  |[|;>#)]| && | \\/#)?.lowerBound ?? line.endIndex
      let quoted = line[..<end].matches(of: /'[^']*'|"[^"]*"|[^\s]+/).map { String($0.0) }
      return quoted.isEmpty ? nil : quoted
    }
  }

  @Test(
    "what documents and examples of --help say on a command line is taken", arguments: ["vmfence-ref", "vmfence-disk"])
  func examples(program: String) throws {
    let help = try Self.help(program)
    var texts = ["README.md", "Docs/Operating.md", "Docs/Embedding.md", "Docs/DiskFigures.md", "Docs/Evaluation.md"]
    texts += ["packaging/vmfence.service", "packaging/vmfence-disk@.service"]
    var lines = try texts.filter { FileManager.default.fileExists(atPath: Program.root.appending(path: $0).path) }
      .flatMap { path in try Self.commandLines(program, in: Self.text(path)).map { (path, $0) } }
    for (words, command) in help.all() {
      let examples = Self.commandLines(program, in: command.discussion ?? "")
      lines += examples.map { (words.joined(separator: " ") + " --help", $0) }
    }
    #expect(lines.count > 4, "\(lines.count) command lines were found")
    for (place, words) in lines {
      for mistake in help.mistakes(words[...]) {
        Issue.record("\(place): \(program) \(words.joined(separator: " ")): \(mistake)")
      }
    }
  }

  @Test(
    "every verb says what it is for and has examples; every option says what it means and is in the operator's guide")
  func documented() throws {
    let guide = try Self.text("Docs/Operating.md")
    var undocumented: Set<String> = []
    for (words, command) in try Self.help("vmfence-ref").all() {
      let name = words.joined(separator: " ")
      #expect(command.abstract?.isEmpty == false, "\(name)")
      // Of verbs with parts, the examples of all parts stand together.
      let isPart = words.count > 2 && words[1] != "integrity"
      if !isPart { #expect(command.discussion?.contains("EXAMPLES") == true, "\(name) has no examples") }
      for argument in command.arguments ?? [] {
        let names = argument.names ?? []
        if names.contains(where: { ["help", "version"].contains($0.name) }) { continue }
        #expect(argument.abstract?.isEmpty == false, "\(name) \(names.map(\.text)) says nothing")
        for option in names where option.kind == "long" {
          if !guide.contains(try Regex("--\(option.name)(?![A-Za-z-])")) {
            undocumented.insert("\(name) \(option.text)")
          }
        }
      }
    }
    #expect(undocumented.sorted() == [])
  }

  @Test("what is not there is found")
  func broken() throws {
    let help = try Self.help("vmfence-ref")
    #expect(help.mistakes(["bans", "add", "192.0.2.7", "--fore", "4h"]) == ["there is no option --fore"])
    #expect(help.mistakes(["bens", "list"]) == ["there is no `bens`"])
    #expect(help.mistakes(["bans", "--past"]) == [])
    #expect(
      Self.commandLines(
        "vmfence-ref", in: "x\n  vmfence-ref rules set web 'a b' | jq .   comment\n`vmfence-ref top -n 1`")
        == [["rules", "set", "web", "'a b'"], ["top", "-n", "1"]])
  }
}
#endif
