import Testing
import VMFenceCore
import VMFenceDetection

/// What stays in force of rules whose texts are wrong when they are compiled again.
@Suite("Rules that stay as they were before") struct KeptRuleTests {
  /// Compiles one set of files after another.
  private struct Compiler {
    var before = RulesBefore()
    var second: Int64 = 0
    var kept: [KeptRule] = []
    var diagnostics: [Diagnostic] = []
    var rejected = 0

    /// The rules in force, by gid:sid:rev with their messages.
    mutating func load(
      _ files: [(String, String)], dialect: RuleDialect = .snort2, variables: [String: String] = [:],
      _ adjustments: RuleAdjustments = RuleAdjustments()
    ) throws -> [String] {
      second += 1
      let sources = files.map { RuleSource(file: $0.0, text: Array($0.1.utf8), dialect: dialect) }
      let (result, kept, before) = try SnortRuleEngine(adjustments: adjustments).compile(
        RuleCompilationRequest(sources: sources, variables: variables), keeping: before,
        at: Timestamp(seconds: second))
      (self.before, self.kept, diagnostics, rejected) = (before, kept, result.diagnostics, result.rejected)
      #expect(result.loaded == result.rules.ruleCount)
      return (0..<result.rules.ruleCount).map { index in
        let rule = result.rules.metadata(at: index)
        return "\(rule.gid):\(rule.sid):\(rule.revision) \(rule.message)"
      }.sorted()
    }

    mutating func load(
      _ text: String, dialect: RuleDialect = .snort2, variables: [String: String] = [:],
      _ adjustments: RuleAdjustments = RuleAdjustments()
    ) throws -> [String] {
      try load([("a.rules", text)], dialect: dialect, variables: variables, adjustments)
    }

    func said(_ text: String) -> [Diagnostic] { diagnostics.filter { $0.message.contains(text) } }
  }

  private func rule(_ sid: Int, _ message: String, rev: Int = 1, ports: String = "any", more: String = "") -> String {
    "alert tcp any any -> any \(ports) (msg:\"\(message)\"; content:\"\(message)\"; \(more)sid:\(sid); rev:\(rev);)\n"
  }

  @Test("a rule that is wrong stays as it was until it is mended or gone, and how long it has been is known")
  func untilMended() throws {
    var compiler = Compiler()
    let other = rule(2, "other")
    #expect(try compiler.load(rule(1, "one") + other) == ["1:1:1 one", "1:2:1 other"])
    #expect(compiler.kept.isEmpty && compiler.diagnostics.isEmpty)
    let wrong = rule(1, "new", rev: 2, more: "no_such_option; ")
    for time in 2...3 {
      #expect(try compiler.load("# moved down\n" + wrong + other) == ["1:1:1 one", "1:2:1 other"], "load \(time)")
      #expect(compiler.rejected == 1)
      #expect(compiler.kept.map(\.since) == [Timestamp(seconds: 2)])
      #expect(compiler.diagnostics.filter { $0.severity == .error }.map(\.place?.line) == [2])
      let said = try #require(compiler.said("stays in force as it was before, revision 1").first)
      #expect(said.severity == .warning && said.place?.line == 2)
      #expect(
        said.message.contains("rule 1:1 is wrong at a.rules:2:1") && said.message.contains("since 1970-01-01T00:00:02"))
    }
    #expect(try compiler.load(rule(1, "new", rev: 2) + other) == ["1:1:2 new", "1:2:1 other"])
    #expect(compiler.kept.isEmpty && compiler.diagnostics.isEmpty)
    #expect(try compiler.load(wrong + other).first == "1:1:2 new", "the newest that was right")
    #expect(try compiler.load(other) == ["1:2:1 other"], "it is gone, and so is what was kept")
    #expect(try compiler.load(wrong + other) == ["1:2:1 other"], "nothing was in force before")
  }

  @Test("nothing is kept the first time, nor of a rule that does not say which it is, which is told")
  func nothingBefore() throws {
    var compiler = Compiler()
    let other = rule(2, "other")
    #expect(try compiler.load(rule(1, "one", more: "no_such_option; ") + other) == ["1:2:1 other"])
    #expect(compiler.kept.isEmpty && compiler.diagnostics.count == 1)
    _ = try compiler.load(rule(1, "one") + other)
    #expect(try compiler.load("alert tcp any any -> any any (msg:\"one\"; content:\"one\n" + other) == ["1:2:1 other"])
    #expect(compiler.said("says no sid").map(\.severity) == [.warning])
  }

  @Test(
    "what makes a rule wrong",
    arguments: [
      "alert tcp any any -> any any (msg:\"new\"; content:\"new; sid:1; rev:2;)\n",
      "alert tcp any any -> any any (msg:\"new\"; content:\"new\"; sid:1; rev:2;\n",
      "alert tcp any any -> any 99999 (msg:\"new\"; content:\"new\"; sid:1; rev:2;)\n",
      "alrt tcp any any -> any any (msg:\"new\"; content:\"new\"; sid:1; rev:2;)\n",
      "alert tcp any any -> $NOWHERE any (msg:\"new\"; content:\"new\"; \\\n sid:1; rev:2;)\n",
      "alert tcp any any -> any any (msg:\"new\"; pcre:\"/(/\"; gid:1; sid:1; rev:2;)\n",
    ])
  func mistakes(wrong: String) throws {
    var compiler = Compiler()
    _ = try compiler.load(rule(1, "one") + rule(2, "other"))
    #expect(try compiler.load(wrong + rule(2, "other")) == ["1:1:1 one", "1:2:1 other"], "\(compiler.diagnostics)")
    #expect(compiler.kept.map(\.place.line) == [1])
  }

  @Test("one that needs what is not evaluated is wrong, too; of Snort 3 all lines of a rule count")
  func unsupported() throws {
    var compiler = Compiler()
    let good = "alert tcp any any -> any any (\n  msg:\"one\";\n  content:\"one\";\n  sid:1; rev:1;\n)\n"
    _ = try compiler.load(good, dialect: .snort3)
    let wrong = "alert tcp any any -> any any (\n  msg:\"two\";\n  content:\"two\", no_such_word;\n  sid:1; rev:2;\n)\n"
    #expect(try compiler.load(wrong, dialect: .snort3) == ["1:1:1 one"])
    let http = good.replacing("content:\"one\"", with: "http_uri; content:\"one\"").replacing("rev:1", with: "rev:2")
    #expect(try compiler.load(http, dialect: .snort3) == ["1:1:1 one"], "\(compiler.diagnostics)")
    #expect(compiler.kept.map(\.since) == [Timestamp(seconds: 2)])
  }

  @Test("variables: those of now; those of then when it cannot be read with them")
  func variables() throws {
    var compiler = Compiler()
    let wrong = rule(1, "one", ports: "$PORTS", more: "no_such_option; ") + rule(2, "other")
    func ports(_ text: String, given: [String: String] = [:]) throws -> String {
      _ = try compiler.load(text, variables: given)
      let sources = [RuleSource(file: "a.rules", text: Array(text.utf8), dialect: .snort2)]
      let set = RuleSet.parse(
        RuleCompilationRequest(sources: sources, variables: given), keeping: compiler.before)
      let rule = try #require(set.rules.first { $0.metadata.sid == 1 })
      return rule.destination.ports.ranges.map { "\($0)" }.joined(separator: " ")
    }
    let good = rule(1, "one", ports: "$PORTS") + rule(2, "other")
    #expect(try ports("portvar PORTS 80\n" + good) == "80...80")
    #expect(try ports("portvar PORTS 81\n" + wrong) == "81...81")
    // What it falls back on are those of when the rule was right.
    #expect(try ports("portvar PORTS 99999\n" + wrong) == "80...80")
    #expect(try ports(wrong) == "80...80")
    #expect(try ports(good) == "80...80", "the rule is right and its variable gone")
    #expect(compiler.said("stays in force").count == 1)
    #expect(try ports(good, given: ["PORTS": "82"]) == "82...82")
    #expect(compiler.kept.isEmpty)
    #expect(try ports(wrong, given: ["PORTS": "83"]) == "83...83")
  }

  @Test("a right rule of the same name goes before, in whatever file and revision; files are not mixed up")
  func otherFiles() throws {
    var compiler = Compiler()
    let wrong = rule(1, "one", rev: 9, more: "no_such_option; ")
    let other = rule(2, "other")
    _ = try compiler.load([("a.rules", rule(1, "one", rev: 5)), ("b.rules", other)])
    #expect(
      try compiler.load([("a.rules", wrong), ("b.rules", other + rule(1, "moved", rev: 2))])
        == ["1:1:2 moved", "1:2:1 other"])
    #expect(compiler.kept.isEmpty && compiler.said("stays in force").isEmpty && compiler.said("twice").isEmpty)
    _ = try compiler.load([("a.rules", rule(1, "one", rev: 5)), ("b.rules", other)])
    #expect(try compiler.load([("a.rules", other), ("c.rules", wrong)]) == ["1:2:1 other"])
  }

  @Test("what an operator's list turns off is off, and two wrong texts of one rule keep it once")
  func lists() throws {
    var compiler = Compiler()
    let wrong = rule(1, "one", rev: 9, more: "no_such_option; ")
    let other = rule(2, "other")
    _ = try compiler.load(rule(1, "one") + other)
    #expect(try compiler.load(wrong + other + wrong) == ["1:1:1 one", "1:2:1 other"])
    #expect(compiler.kept.count == 1 && compiler.said("twice").isEmpty && compiler.rejected == 2)
    let off = RuleAdjustments(disabled: [RuleSource(file: "off", text: Array("1:1\n".utf8))])
    #expect(try compiler.load(wrong + other, off) == ["1:2:1 other"])
    #expect(compiler.kept.isEmpty)
    #expect(try compiler.load(wrong + other) == ["1:2:1 other"], "it was not in force before")
  }

  @Test("what is kept has a bound, and what goes over it is told")
  func bound() throws {
    var compiler = Compiler()
    let many = 1...4_100
    _ = try compiler.load(many.map { rule($0, "m\($0)") }.joined() + rule(9_999, "other"))
    let wrong = many.map { rule($0, "m\($0)", more: "no_such_option; ") }.joined()
    #expect(try compiler.load(wrong + rule(9_999, "other")).count == 4_097)
    #expect(compiler.kept.count == 4_096 && compiler.rejected == 4_100)
    #expect(compiler.said("is not kept as it was before: too many are").count == 4)
    #expect(compiler.said("stays in force as it was before").count == 100)
    #expect(compiler.said("3996 more rules that are wrong stay in force").count == 1)
  }

  @Test("a set of kept rules alone is a set")
  func nothingElse() throws {
    var compiler = Compiler()
    _ = try compiler.load(rule(1, "one"))
    #expect(try compiler.load(rule(1, "one", more: "no_such_option; ")) == ["1:1:1 one"])
  }
}
