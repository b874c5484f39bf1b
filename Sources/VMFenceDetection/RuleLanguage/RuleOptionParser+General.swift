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
    case "enable": isEnabled = try isEnabled(name, required(name, value))
    case "resp": response = try response(name, required(name, value))
    case "react":
      try react(name, required(name, value))
      response = .react
    default: return false
    }
    return true
  }

  /// Snort 3: `no` turns the rule off; `yes`, and `inherit` from what the rule is a part of, leave it on.
  private func isEnabled(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> Bool {
    switch value.text {
    case "yes", "inherit": return true
    case "no": return false
    default:
      throw RuleProblem(value.startIndex, "\(name.shown): \(value.shown) is not known", "write yes, no or inherit")
    }
  }

  /// Snort 2: which ends are told, with resets or ICMP messages, which go to the sender.
  private func response(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) -> RuleAction {
    let receiver: Set = ["rst_rcv", "reset_dest"]
    let both: Set = ["rst_all", "reset_both"]
    let sender: Set = ["rst_snd", "reset_source", "icmp_net", "icmp_host", "icmp_port", "icmp_all"]
    var (tellsSender, tellsReceiver) = (false, false)
    for part in value.split(at: UInt8(ascii: ",")) {
      let word = part.text
      guard sender.contains(word) || receiver.contains(word) || both.contains(word) else {
        throw RuleProblem(
          part.startIndex, "\(name.shown): \(part.shown) is not known",
          "use \(sender.union(receiver).union(both).sorted().joined(separator: ", "))")
      }
      tellsSender = tellsSender || !receiver.contains(word)
      tellsReceiver = tellsReceiver || !sender.contains(word)
    }
    return tellsSender ? (tellsReceiver ? .rejectBoth : .rejectSource) : .rejectDestination
  }

  /// Snort 2: `block` or `warn`, `msg` and `proxy PORT` say what page the client is shown. Here none is: the ends are told.
  private func react(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    for part in value.split(at: UInt8(ascii: ",")) {
      let words = part.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 }).map(\.text)
      let isKnown =
        words.count == 1 && ["block", "warn", "msg"].contains(words[0])
        || words.count == 2 && words[0] == "proxy" && UInt16(words[1]) != nil
      guard isKnown else {
        throw RuleProblem(
          part.startIndex, "\(name.shown): \(part.shown) is not known", "use block, warn, msg or proxy PORT")
      }
    }
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
