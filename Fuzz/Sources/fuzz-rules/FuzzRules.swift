import FuzzSupport
import VMFenceCore
import VMFenceDetection

// A rule file, parsed and compiled; the first byte chooses the dialect. What is checked besides "no trap": every error names a place inside
// the file, loaded and rejected add up to something, and an image that was compiled is one that a detector takes.

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzRuleFile(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
  unsafe withFuzzInput(start, count) { input in
    guard input.byteCount > 1 else { return }
    let text = Array(input.copiedBytes().dropFirst())
    let choice = Int(input.u8(0)) % (RuleDialect.allCases.count + 1)
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
  return 0
}

private func check(_ diagnostics: [Diagnostic], lines: Int) {
  for diagnostic in diagnostics {
    precondition(!diagnostic.description.unicodeScalars.contains { $0.value < 0x20 }, "text that is not escaped")
    guard diagnostic.severity == .error else { continue }
    guard let place = diagnostic.place else { fatalError("an error without a place") }
    precondition(place.line <= lines, "a line that is not in the file")
  }
}
