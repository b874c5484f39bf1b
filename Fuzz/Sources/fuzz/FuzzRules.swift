import VMFenceCore
import VMFenceDetection

// A rule file, parsed and compiled; the first byte chooses the dialect, or that the rest is what rules about hosts look up: lists of
// reputations, and a database of countries. What is checked besides "no trap": every error names a place inside the file, loaded and
// rejected add up to something, and an image that was compiled is one that a detector takes.

func fuzzRuleFile(_ input: RawSpan) {
  guard input.byteCount > 1 else { return }
  let text = Array(input.copiedBytes().dropFirst())
  let choice = Int(input.u8(0)) % (RuleDialect.allCases.count + 2)
  guard choice <= RuleDialect.allCases.count else { return lookUp(text) }
  let dialect = choice < RuleDialect.allCases.count ? RuleDialect.allCases[choice] : nil
  let request = RuleCompilationRequest(
    sources: [RuleSource(file: "fuzz.rules", text: text, dialect: dialect)],
    variables: ["HOME_NET": "192.0.2.0/24", "EXTERNAL_NET": "any"])
  let lines = text.count { $0 == 0x0A || $0 == 0x0D } + 1
  do throws(RuleCompilationError) {
    let compilation = try SnortRuleEngine().compile(request)
    check(compilation.diagnostics, lines: lines)
    precondition(compilation.loaded <= text.count, "more rules than bytes")
    let taken = try SnortRules(image: compilation.rules.image)
    precondition(taken.ruleCount == compilation.rules.ruleCount, "an image with other rules")
  } catch {
    precondition(!error.message.isEmpty, "an error that says nothing")
    check(error.diagnostics, lines: lines)
  }
}

private func check(_ diagnostics: [Diagnostic], lines: Int) {
  for diagnostic in diagnostics {
    precondition(!diagnostic.description.unicodeScalars.contains { $0.value < 0x20 }, "text that is not escaped")
    guard diagnostic.severity == .error else { continue }
    guard let place = diagnostic.place else { fatalError("an error without a place") }
    precondition(place.line <= lines, "a line that is not in the file")
  }
}

/// Takes a text for categories, for lists of reputations, and for the tree and the records of a database of countries.
private func lookUp(_ text: [UInt8]) {
  let rules = """
    alert ip any any -> any any (geoip:src,AA; sid:1;)
    alert ip any any -> any any (geoip:!AA; sid:2;)
    alert ip any any -> any any (iprep:any,a,>,5; sid:3;)
    alert ip any any -> any any (iprep:both,a,isnotset; sid:4;)
    alert ip any any -> any any (sid:5;)
    """
  let request = RuleCompilationRequest(
    sources: [RuleSource(file: "fuzz.rules", text: Array(rules.utf8), dialect: .suricata)])
  // The metadata is right, so that something comes of the rest: so many nodes of 24 bits, for IPv6.
  var database = text + [0xAB, 0xCD, 0xEF] + Array("MaxMind.com".utf8) + [0xE9]
  func word(_ text: String) -> [UInt8] { [0x40 | UInt8(text.utf8.count)] + Array(text.utf8) }
  database += word("binary_format_major_version") + [0xA1, 2] + word("binary_format_minor_version") + [0xA1, 0]
  database += word("build_epoch") + [0x00, 0x02] + word("database_type") + word("Countries")
  database += word("languages") + [0x00, 0x04] + word("description") + [0xE0]
  database += word("node_count") + [0xC1, UInt8(clamping: max(1, text.count / 24))]
  database += word("record_size") + [0xA1, 24]
  database += word("ip_version") + [0xA1, 6]
  let categories = RuleSource(file: "categories", text: Array("1,a,b\n".utf8) + text)
  let adjustments = RuleAdjustments(
    reputationCategories: [categories], reputations: [RuleSource(file: "lists", text: text)],
    countryDatabase: RuleSource(file: "countries", text: database))
  let lines = max(text.count { $0 == 0x0A }, 4) + 2
  do throws(RuleCompilationError) {
    let compilation = try SnortRuleEngine(adjustments: adjustments).compile(request)
    check(compilation.diagnostics, lines: lines)
    let taken = try SnortRules(image: compilation.rules.image)
    precondition(taken.ruleCount == compilation.rules.ruleCount, "an image with other rules")
  } catch {
    fatalError("the last rule needs nothing: \(error)")
  }
}
