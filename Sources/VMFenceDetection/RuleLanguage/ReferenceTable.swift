import VMFenceCore

/// Where the systems that rules refer to are: `config reference: SYSTEM ADDRESS`.
struct ReferenceTable: Sendable {
  private var addresses: [String: String] = [:]

  /// The parts of a reference as one text: an address, when its system is known, else `SYSTEM,ID` as it was written.
  func resolve(_ parts: [String]) -> String {
    guard let address = addresses[parts[0].lowercased()] else { return parts.joined(separator: ",") }
    return address + parts.dropFirst().joined(separator: ",")
  }

  mutating func define(_ text: ArraySlice<UInt8>) throws(RuleProblem) {
    let words = text.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 })
    guard words.count == 2 else {
      throw RuleProblem(
        text.startIndex, "\(text.shown) is not a reference system", "write `config reference: SYSTEM ADDRESS`",
        rejectsRule: false)
    }
    addresses[words[0].text.lowercased()] = words[1].text
  }
}
