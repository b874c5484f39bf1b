import VMFenceCore

/// What operators' lists say of hosts and networks (`iprep`): a number for each category that one is listed in.
///
/// The lists are used when rules are compiled: a rule that asks for a reputation gets the addresses that have it.
struct Reputations {
  /// Categories, the highest number of one, the highest reputation, and lines of all lists, at the most.
  static let categoryMaximum: UInt8 = 59
  static let valueMaximum: UInt8 = 127
  static let entryMaximum = 1_000_000

  private var categories: [String: UInt8] = [:]
  private var listed: [UInt8: [IPNetwork: UInt8]] = [:]
  private var entries = 0

  var hasCategories: Bool { !categories.isEmpty }
  var categoryNames: Dictionary<String, UInt8>.Keys { categories.keys }

  func category(_ name: String) -> UInt8? { categories[name] }

  // MARK: Reading

  /// Adds `NUMBER,NAME,DESCRIPTION` lines; every line that is wrong gives a diagnostic.
  mutating func readCategories(_ source: RuleSource) -> [Diagnostic] {
    read(source) { reputations, parts in
      guard parts.count >= 2, let number = UInt8(parts[0].text), (1...Self.categoryMaximum).contains(number),
        !parts[1].isEmpty, parts[1].count <= 128
      else {
        return ("is no category", "write NUMBER,NAME,DESCRIPTION with a number from 1 to \(Self.categoryMaximum)")
      }
      reputations.categories[parts[1].text] = number
      return nil
    }
  }

  /// Adds `ADDRESS,CATEGORY,REPUTATION` lines, where the address may be a network; of equal ones the last counts.
  mutating func readLists(_ source: RuleSource) -> [Diagnostic] {
    read(source) { reputations, parts in
      guard parts.count == 3, let network = IPNetwork(parts[0].text), let category = UInt8(parts[1].text),
        (1...Self.categoryMaximum).contains(category), let value = UInt8(parts[2].text), value <= Self.valueMaximum
      else {
        return (
          "is no reputation",
          "write ADDRESS,CATEGORY,REPUTATION: the category's number, and a number from 0 to \(Self.valueMaximum)"
        )
      }
      guard reputations.entries < Self.entryMaximum else {
        return ("is one of more than \(Self.entryMaximum) lines", "use shorter lists")
      }
      reputations.entries += 1
      reputations.listed[category, default: [:]][network] = value
      return nil
    }
  }

  private mutating func read(
    _ source: RuleSource, _ add: (inout Reputations, [ArraySlice<UInt8>]) -> (message: String, remedy: String)?
  ) -> [Diagnostic] {
    var diagnostics: [Diagnostic] = []
    for (index, line) in source.text.split(separator: 0x0A, omittingEmptySubsequences: false).enumerated() {
      let text = line.prefix { $0 != UInt8(ascii: "#") }.trimmed
      if text.isEmpty { continue }
      guard let (message, remedy) = add(&self, text.split(at: UInt8(ascii: ","))) else { continue }
      diagnostics.append(
        Diagnostic(
          .error,
          at: SourcePlace(file: source.file, line: index + 1, column: text.startIndex - line.startIndex + 1),
          "\(text.shown) \(message)", remedy: remedy))
      // What is wrong in all lines need not be told of each.
      if diagnostics.count == RuleFileParser.diagnosticMaximum { break }
    }
    return diagnostics
  }

  // MARK: Asking

  /// The addresses that are listed in the category with a number for which `holds` says so. Of networks within one another the smallest
  /// counts.
  func addresses(_ category: UInt8, where holds: (UInt8) -> Bool) -> AddressSet {
    AddressSet(exactly: ranges(category, where: holds))
  }

  /// The addresses that are not listed in the category.
  func unlisted(_ category: UInt8) -> AddressSet {
    AddressSet(included: [], excluded: (listed[category] ?? [:]).keys.sorted { Self.order($0) < Self.order($1) })
  }

  private static func order(_ network: IPNetwork) -> (IPAddress, UInt8) { (network.base, network.prefix) }

  private func ranges(_ category: UInt8, where holds: (UInt8) -> Bool) -> [ClosedRange<IPAddress>] {
    var result: [ClosedRange<IPAddress>] = []
    // Those that hold what comes next, outermost first: networks are within one another, or apart.
    var open: [(last: IPAddress, isWanted: Bool)] = []
    var position: IPAddress?
    func add(upTo last: IPAddress?, _ isWanted: Bool) {
      guard isWanted, let position, let last, position <= last, position.family == last.family else { return }
      result.append(position...last)
    }
    for (network, value) in (listed[category] ?? [:]).sorted(by: { Self.order($0.key) < Self.order($1.key) }) {
      let (first, last) = (network.addresses.lowerBound, network.addresses.upperBound)
      while let inner = open.last, inner.last < first {
        add(upTo: inner.last, inner.isWanted)
        position = inner.last.successor
        open.removeLast()
      }
      if let inner = open.last { add(upTo: first.predecessor, inner.isWanted) }
      position = first
      open.append((last, holds(value)))
    }
    while let inner = open.popLast() {
      add(upTo: inner.last, inner.isWanted)
      position = inner.last.successor
    }
    return result
  }
}

extension AddressSet {
  /// Sorted, disjoint ranges, each of one family; no address at all when there are none.
  init(exactly ranges: [ClosedRange<IPAddress>]) {
    self.init(included: ranges.flatMap(IPNetwork.covering), excluded: [])
    // Without an inclusion everything would be meant.
    if ranges.isEmpty { self = AddressSet(included: [.all(of: .v4)], excluded: [.all(of: .v4)]) }
  }
}

extension RuleOptionParser {
  private static let reputationSides: [String: HostSide] = [
    "any": .either, "src": .source, "dst": .destination, "both": .both,
  ]

  /// `iprep:any|src|dst|both,CATEGORY,OPERATOR,NUMBER`, or `…,CATEGORY,isset|isnotset`.
  mutating func hostReputation(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    let form = "write `iprep:any|src|dst|both,CATEGORY,OPERATOR,NUMBER;`, or isset or isnotset after the category"
    guard (3...4).contains(parts.count), let side = Self.reputationSides[parts[0].text], !parts[1].isEmpty else {
      throw RuleProblem(value.startIndex, "\(name.shown): \(value.shown) is not SIDE,CATEGORY,OPERATOR,NUMBER", form)
    }
    var test: NumberTest?
    if parts.count == 4 {
      guard let number = UInt8(parts[3].text), number <= Reputations.valueMaximum else {
        throw RuleProblem(
          parts[3].startIndex,
          "\(name.shown): \(parts[3].shown) is not a whole number from 0 to \(Reputations.valueMaximum)")
      }
      test = Self.comparison(parts[2].text, UInt32(number))
      guard test != nil else {
        throw RuleProblem(
          parts[2].startIndex, "\(name.shown): \(parts[2].shown) \(parts[3].shown) compares with nothing",
          "use one of < > = != <= >=")
      }
    } else if !parts[2].isText("isset"), !parts[2].isText("isnotset") {
      throw RuleProblem(parts[2].startIndex, "\(name.shown): \(parts[2].shown) is not known", form)
    }
    guard reputations.hasCategories else {
      return refuse("`iprep` without categories of reputations", at: name.startIndex)
    }
    guard let category = reputations.category(parts[1].text) else {
      var search = NearestName()
      let nearest = search.find(parts[1].text, among: reputations.categoryNames)
      throw RuleProblem(
        parts[1].startIndex, "\(name.shown): no category is called \(parts[1].shown)",
        nearest.map { "is `\($0)` meant?" } ?? "name it in the file of categories")
    }
    let addresses =
      if let test {
        reputations.addresses(category) { test.holds(UInt64($0)) }
      } else if parts[2].isText("isset") {
        reputations.addresses(category) { _ in true }
      } else {
        reputations.unlisted(category)
      }
    tests.append(.state(.addresses(side, addresses)))
  }
}
