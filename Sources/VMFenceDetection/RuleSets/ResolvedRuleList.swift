import VMFenceCore

/// The rules of one domain in the order in which conflicts between them are resolved: by action, then by what they remember (a rule
/// that sets a bit before one that asks for it), then by protocol, then by head; rules with one head stand together, in the order of their files. A rule's index here is its index
/// everywhere else, so the lower index wins.
package struct ResolvedRuleList: Sendable {
  package let rules: [Rule]

  /// `rules` in the order of their sources.
  package init(_ rules: [Rule], order: RuleActionOrder? = nil) {
    // Heads keep the order in which they first come, within their action and protocol.
    var heads: [Key: Int] = [:]
    var keys: [Key] = []
    let states = StateOrder(rules)
    keys.reserveCapacity(rules.count)
    for rule in rules {
      var key = Key(
        action: rule.action.rank(in: rule.dialect) + (order.map { $0.rank(of: rule.action) * 1000 } ?? 0),
        state: states.rank(of: rule), transport: rule.ipProtocol.rawValue,
        head: rule.head)
      key.place = heads[key] ?? heads.count
      heads[key] = key.place
      keys.append(key)
    }
    self.rules = rules.indices
      .sorted { keys[$0].order == keys[$1].order ? $0 < $1 : keys[$0].order < keys[$1].order }
      .map { rules[$0] }
  }

  private struct Key: Hashable {
    var action: Int
    var state: Int
    var transport: UInt8
    var head: String
    /// Which head it is, counted from 0.
    var place = 0

    var order: (Int, Int, UInt8, Int) { (action, state, transport, place) }

    static func == (a: Key, b: Key) -> Bool {
      a.action == b.action && a.state == b.state && a.transport == b.transport && a.head == b.head
    }
    func hash(into hasher: inout Hasher) {
      hasher.combine(action)
      hasher.combine(head)
    }
  }

  /// The list as people read it: action, protocol, head, and below each head its rules.
  package func rendered(domain: String) -> String {
    var text = "domain \(domain.escapedForDisplay): \(rules.count) rules, the first that matches decides\n"
    var previous: Rule?
    for (index, rule) in rules.enumerated() {
      let newAction = previous?.action != rule.action
      let newProtocol = newAction || previous?.ipProtocol != rule.ipProtocol
      if newAction { text += "  \(rule.action.name)\n" }
      if newProtocol { text += "    \(rule.ipProtocol)\n" }
      if newProtocol || previous?.head != rule.head { text += "      \(rule.head.escapedForDisplay)\n" }
      let metadata = rule.metadata
      text += "        #\(index) \(metadata.gid):\(metadata.sid):\(metadata.revision)"
      if !metadata.message.isEmpty { text += " \"\(metadata.message.escapedForDisplay)\"" }
      if let id = rule.activates { text += " activates \(id)" }
      if let id = rule.activatedBy { text += " activated by \(id) for \(rule.count ?? 0) packets" }
      if let place = metadata.place { text += " (\(place))" }
      text += "\n"
      previous = rule
    }
    return text
  }
}

extension RuleAction {
  /// Where the action stands in its dialect's order; the lower rank wins over the higher.
  ///
  /// - Snort 2 (`config order`'s default): activate, dynamic, pass, drop and block, sdrop, reject, alert, log.
  /// - Snort 3 (the priorities of its actions): pass, reject and react, block, drop, rewrite, alert, log.
  /// - Suricata (`action-order`'s default): pass, drop, the rejects, alert.
  ///
  /// Ranks of different dialects are on one scale: in a mixed list passing comes before refusing, refusing before
  /// alerting.
  package func rank(in dialect: RuleDialect) -> Int {
    switch self {
    case .activate: 0
    case .dynamic: 10
    case .pass: 20
    case .drop: dialect == .snort3 ? 50 : 30
    case .block: dialect == .snort3 ? 40 : 30
    case .sdrop: 40
    case .reject, .rejectSource, .rejectDestination, .rejectBoth: dialect == .snort3 ? 30 : 50
    case .react: 30
    case .rewrite: 60
    case .alert: 70
    case .log: 80
    }
  }

  /// The word that rule files use.
  package var name: String {
    switch self {
    case .rejectSource: "rejectsrc"
    case .rejectDestination: "rejectdst"
    case .rejectBoth: "rejectboth"
    default: "\(self)"
    }
  }
}
