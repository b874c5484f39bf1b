import VMFenceCore

/// What a rule says of itself.
extension RuleOptionParser {
  mutating func generalOption(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    case "msg": metadata.message = try quoted(name, value)
    case "sid": metadata.sid = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "gid": metadata.gid = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "rev": metadata.revision = UInt32(try number(name, value, 0...Int(UInt32.max)))
    case "priority":
      metadata.priority = try number(name, value, 1...(dialect == .suricata ? 255 : Int(Int32.max)))
      hasPriority = true
    case "classtype":
      let value = try required(name, value)
      metadata.classification = value.text
      if let found = classes.find(value.text) {
        metadata.classificationText = found.text
        if !hasPriority { metadata.priority = found.priority }
      } else {
        // What a rule matches does not hang on its class.
        unknownClass = (value.text, value.startIndex)
      }
    case "reference":
      let value = try required(name, value)
      guard value.contains(UInt8(ascii: ",")) else {
        throw RuleProblem(value.startIndex, "a reference is TYPE,ID", "for example `reference:cve,2014-6271;`")
      }
      metadata.references.append(references.resolve(value.split(at: UInt8(ascii: ",")).map(\.text)))
    case "metadata":
      for item in try required(name, value).split(at: UInt8(ascii: ",")) where !item.isEmpty {
        let words = item.split(separator: 0x20, maxSplits: 1).map(\.trimmed.text)
        metadata.metadata[words[0], default: []].append(words.count > 1 ? words[1] : "")
      }
    case "requires" where dialect == .suricata: try requires(name, value)
    case "target": metadata.target = try target(name, required(name, value))
    case "rem": _ = try quoted(name, value)
    case "activates": activates = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "activated_by": activatedBy = UInt32(try number(name, value, 1...Int(UInt32.max)))
    case "count": count = UInt32(try number(name, value, 1...Int(UInt32.max)))
    default: return false
    }
    return true
  }

  /// Which side an attack is against; the dialects spell one of the sides differently.
  private func target(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>
  ) throws(RuleProblem) -> RuleMetadata.Target {
    let destination = dialect == .suricata ? "dest_ip" : "dst_ip"
    switch value.text {
    case "src_ip": return .source
    case destination: return .destination
    default:
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) is not known", "write src_ip or \(destination)")
    }
  }
}
