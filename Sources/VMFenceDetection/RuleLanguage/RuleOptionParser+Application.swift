import VMFenceCore

/// Options about application layers, and whatever no other family knows: right, and not evaluated yet.
extension RuleOptionParser {
  mutating func applicationOption(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) {
    refuse("option `\(text)`", at: name.startIndex)
    if text == "uricontent" || text == "protected_content" { lastPattern = .unsupported }
  }
}
