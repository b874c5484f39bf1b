import VMFenceCore

/// What an operator changes about rules without touching their files.
public struct RuleAdjustments: Hashable, Sendable {
  /// `threshold` (also `event_filter`), `suppress` and `rate_filter` lines, as in a `threshold.config`.
  public var filters: [RuleSource]
  /// `config classification:` and `config reference:` lines; rule files may have them, too.
  public var definitions: [RuleSource]
  /// Rules to use although they are commented out, not to use, and to let drop instead of alert. One entry in a line: `SID`, `GID:SID`,
  /// `group:FILE` or `re:EXPRESSION`.
  public var enabled: [RuleSource]
  public var disabled: [RuleSource]
  public var dropping: [RuleSource]
  /// For `iprep`: categories, one `NUMBER,NAME,DESCRIPTION` in a line, and lists of `ADDRESS,CATEGORY,REPUTATION`, where the address may be
  /// a network, the category is its number, and the reputation is from 0 to 127.
  public var reputationCategories: [RuleSource]
  public var reputations: [RuleSource]
  /// For `geoip`: a database of countries in the MaxMind DB format; nil: rules that ask for countries are refused.
  public var countryDatabase: RuleSource?
  /// The order of actions; nil: each dialect's own.
  public var actionOrder: RuleActionOrder?

  public init(
    filters: [RuleSource] = [], definitions: [RuleSource] = [], enabled: [RuleSource] = [], disabled: [RuleSource] = [],
    dropping: [RuleSource] = [], reputationCategories: [RuleSource] = [], reputations: [RuleSource] = [],
    countryDatabase: RuleSource? = nil, actionOrder: RuleActionOrder? = nil
  ) {
    self.filters = filters
    self.definitions = definitions
    self.enabled = enabled
    self.disabled = disabled
    self.dropping = dropping
    self.reputationCategories = reputationCategories
    self.reputations = reputations
    self.countryDatabase = countryDatabase
    self.actionOrder = actionOrder
  }
}

/// In which order the actions of rules go before one another.
public struct RuleActionOrder: Hashable, Sendable {
  /// `pass`, `drop`, `reject` and `alert`; the actions of other dialects go with the one that they are most like.
  public enum Group: String, Hashable, Sendable, CaseIterable { case pass, drop, reject, alert }

  private let groups: [Group]

  /// nil: not each of the four once.
  public init?(_ groups: [Group]) {
    guard groups.count == Group.allCases.count, Set(groups).count == groups.count else { return nil }
    self.groups = groups
  }

  /// The words with commas or blanks between.
  public init?(_ text: String) {
    let words = text.split(whereSeparator: { $0 == "," || $0 == " " }).map { Group(rawValue: String($0)) }
    guard !words.contains(nil) else { return nil }
    self.init(words.compactMap(\.self))
  }

  func rank(of action: RuleAction) -> Int {
    let group: Group =
      switch action {
      case .pass: .pass
      case .drop, .sdrop, .block: .drop
      case .reject, .rejectSource, .rejectDestination, .rejectBoth, .react: .reject
      case .alert, .log, .rewrite, .activate, .dynamic: .alert
      }
    return groups.firstIndex(of: group) ?? 0
  }
}
