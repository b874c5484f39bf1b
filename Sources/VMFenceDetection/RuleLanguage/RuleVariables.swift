import VMFenceCore

/// Variables, and the address and port lists that use them.
///
/// A list's exclusions win over its inclusions, at whatever depth either stands; a `!` before a list turns over every
/// sign in it. So do Snort and Suricata.
struct RuleVariables: Sendable {
  /// How deep lists and variables may nest.
  static let depthMaximum = 16
  /// Elements of one list, those of its variables included.
  static let itemMaximum = 16_384

  private var values: [String: [UInt8]] = [:]
  /// Those that the caller gave: files do not change them.
  private var fixed: Set<String> = []
  /// Lists resolved before, by their text: most rules of a file share a few. Emptied when a variable changes.
  private var addressSets: [String: AddressSet] = [:]
  private var portSets: [String: PortSet] = [:]

  init(_ given: [String: String]) {
    for (name, value) in given {
      values[name] = Array(value.utf8)
      fixed.insert(name)
    }
  }

  mutating func define(_ name: String, _ value: ArraySlice<UInt8>) {
    guard !fixed.contains(name) else { return }
    values[name] = Array(value)
    addressSets.removeAll(keepingCapacity: true)
    portSets.removeAll(keepingCapacity: true)
  }

  /// All of them, as they were written.
  var texts: [String: String] { values.mapValues(\.text) }

  // MARK: Addresses

  mutating func addresses(_ text: ArraySlice<UInt8>, _ dialect: RuleDialect) throws(RuleProblem) -> AddressSet {
    // Only Suricata knows ranges, so a text may be right in one dialect and wrong in another.
    let key = dialect == .suricata ? text.text : "\(text.text) "
    if let known = addressSets[key] { return known }
    let list = try HeadListReader<AddressItem>.read(text, values, dialect)
    let set = AddressSet(included: list.includesAll ? [] : list.included, excluded: list.excluded)
    guard !set.isEmpty else {
      throw RuleProblem(
        text.startIndex, "the list \(text.shown) excludes every address it includes",
        "take an exclusion out; a `!` before a list turns over those inside it, too")
    }
    addressSets[key] = set
    return set
  }

  // MARK: Ports

  mutating func ports(_ text: ArraySlice<UInt8>, _ dialect: RuleDialect) throws(RuleProblem) -> PortSet {
    let key = text.text
    if let known = portSets[key] { return known }
    let list = try HeadListReader<PortItem>.read(text, values, dialect)
    let set = PortSet(included: list.includesAll ? [] : list.included, excluded: list.excluded)
    guard !set.ranges.isEmpty else {
      throw RuleProblem(text.startIndex, "the port list \(text.shown) leaves no port", "take an exclusion out")
    }
    portSets[key] = set
    return set
  }
}

/// What a list in a rule's head consists of.
protocol HeadListItem {
  associatedtype Value
  static var noun: String { get }
  /// What one item's text stands for.
  static func values(_ item: ArraySlice<UInt8>, _ offset: Int, _ dialect: RuleDialect) throws(RuleProblem) -> [Value]
}

enum AddressItem: HeadListItem {
  static let noun = "address"

  static func values(
    _ item: ArraySlice<UInt8>, _ offset: Int, _ dialect: RuleDialect
  ) throws(RuleProblem) -> [IPNetwork] {
    let text = item.text
    if let network = IPNetwork(text) { return [network] }
    let ends = text.split(separator: "-", omittingEmptySubsequences: false).map { IPAddress($0) }
    if ends.count == 2, let first = ends[0], let last = ends[1], first.family == last.family {
      guard dialect == .suricata else {
        throw RuleProblem(
          offset, "only Suricata has address ranges like \(item.shown)", "write networks: ADDRESS/PREFIX")
      }
      guard first <= last else {
        throw RuleProblem(offset, "the address range \(item.shown) is empty", "write the lower address first")
      }
      return IPNetwork.covering(first...last)
    }
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    if parts.count == 2, let address = IPAddress(parts[0]) {
      // A netmask: ones, then zeros.
      if address.family == .v4, let mask = IPAddress(parts[1]), mask.family == .v4 {
        let zeros = ~UInt32(truncatingIfNeeded: mask.low)
        if zeros & (zeros &+ 1) == 0 { return [IPNetwork(address, prefix: 32 - zeros.nonzeroBitCount)] }
      }
      throw RuleProblem(offset, "\(item.shown) has no valid prefix length", "use /0 to /32, for IPv6 /0 to /128")
    }
    throw RuleProblem(
      offset, "\(item.shown) is not an address, a network or `any`",
      "write 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, a list in brackets, or $NAME")
  }
}

enum PortItem: HeadListItem {
  static let noun = "port"

  static func values(
    _ item: ArraySlice<UInt8>, _ offset: Int, _ dialect: RuleDialect
  ) throws(RuleProblem) -> [ClosedRange<UInt16>] {
    let parts = item.split(at: UInt8(ascii: ":"))
    guard parts.count <= 2, !(parts.count == 2 && parts[0].isEmpty && parts[1].isEmpty) else {
      throw RuleProblem(offset, "\(item.shown) is not a port range", "write 80, 1024:2048, 1024: or :1023")
    }
    var ends: [UInt16?] = []
    for part in parts {
      if part.isEmpty, parts.count == 2 {
        ends.append(nil)
      } else if let port = UInt16(part.text), part.allSatisfy({ (0x30...0x39).contains($0) }) {
        ends.append(port)
      } else {
        throw RuleProblem(
          offset, "\(item.shown) is not a port", "ports are 0 to 65535; write 80, 1024:2048, [80,443], or $NAME")
      }
    }
    let low = ends[0] ?? 0
    let high = ends.count == 1 ? low : ends[1] ?? .max
    guard low <= high else {
      throw RuleProblem(offset, "the port range \(item.shown) is empty", "write the lower port first")
    }
    return [low...high]
  }
}

/// Reads one list with its inner lists and variables.
struct HeadListReader<Item: HeadListItem> {
  private(set) var included: [Item.Value] = []
  private(set) var excluded: [Item.Value] = []
  private(set) var includesAll = false
  private let variables: [String: [UInt8]]
  private let dialect: RuleDialect
  private var items = 0
  /// The variables inside which the reader is, outermost first.
  private var open: [String] = []

  static func read(
    _ text: ArraySlice<UInt8>, _ variables: [String: [UInt8]], _ dialect: RuleDialect
  ) throws(RuleProblem) -> HeadListReader {
    var reader = HeadListReader(variables, dialect)
    try reader.item(text, at: text.startIndex, isNegated: false, depth: 0)
    return reader
  }

  private init(_ variables: [String: [UInt8]], _ dialect: RuleDialect) {
    self.variables = variables
    self.dialect = dialect
  }

  /// `offset` is what mistakes name inside a variable's value: the place of its use.
  private mutating func item(
    _ text: ArraySlice<UInt8>, at offset: Int, isNegated: Bool, depth: Int
  ) throws(RuleProblem) {
    var item = text.trimmed
    var isNegated = isNegated
    while item.first == UInt8(ascii: "!") {
      isNegated.toggle()
      item = item.dropFirst().trimmed
    }
    let here = open.isEmpty ? item.startIndex : offset
    items += 1
    guard items <= RuleVariables.itemMaximum else {
      throw RuleProblem(here, "the list has more than \(RuleVariables.itemMaximum) items, those of variables included")
    }
    guard depth <= RuleVariables.depthMaximum else {
      throw RuleProblem(here, "lists and variables are nested more than \(RuleVariables.depthMaximum) deep")
    }
    switch item.first {
    case nil: throw problem(here, "the \(Item.noun) is missing", "name one, or write `any`")
    case UInt8(ascii: "["):
      for element in try elements(item, here) {
        try self.item(element, at: here, isNegated: isNegated, depth: depth + 1)
      }
    case UInt8(ascii: "$"): try variable(item.dropFirst().text, here, isNegated: isNegated, depth: depth)
    default:
      if item.isText("any") {
        guard !isNegated else {
          throw problem(
            here, "`!any` leaves no \(Item.noun)", "name what is meant; if a variable is !$OTHER, give OTHER a value")
        }
        includesAll = true
        return
      }
      do throws(RuleProblem) {
        let values = try Item.values(item, here, dialect)
        items += values.count - 1
        if isNegated { excluded += values } else { included += values }
      } catch {
        throw problem(error.offset, error.message, error.remedy)
      }
    }
  }

  private mutating func variable(_ name: String, _ here: Int, isNegated: Bool, depth: Int) throws(RuleProblem) {
    guard let value = variables[name] else {
      throw problem(
        here, "the variable `$\(name.escapedForDisplay)` is not defined",
        "define it: --var \(name.escapedForDisplay)=VALUE, or `variables:` in the configuration")
    }
    guard !open.contains(name) else {
      throw RuleProblem(
        here, "the variable `$\(name)` is defined by itself: \((open + [name]).joined(separator: " -> "))",
        "give one of them a value: --var \(name)=VALUE")
    }
    open.append(name)
    try item(value[...], at: here, isNegated: isNegated, depth: depth + 1)
    open.removeLast()
  }

  /// Says inside which variable the mistake is.
  private func problem(_ offset: Int, _ message: String, _ remedy: String) -> RuleProblem {
    RuleProblem(offset, open.isEmpty ? message : "in `$\(open[open.count - 1].escapedForDisplay)`: \(message)", remedy)
  }

  /// Splits a list in brackets at the commas that are in no inner list.
  private func elements(_ list: ArraySlice<UInt8>, _ here: Int) throws(RuleProblem) -> [ArraySlice<UInt8>] {
    func at(_ index: Int) -> Int { open.isEmpty ? index : here }
    var result: [ArraySlice<UInt8>] = []
    var depth = 0
    var start = list.startIndex + 1
    for index in list.indices {
      switch list[index] {
      case UInt8(ascii: "["): depth += 1
      case UInt8(ascii: ","), UInt8(ascii: "]"):
        if list[index] == UInt8(ascii: "]") { depth -= 1 }
        guard depth == (list[index] == UInt8(ascii: "]") ? 0 : 1) else { continue }
        let element = list[start..<index]
        if element.trimmed.isEmpty {
          throw problem(at(index), "an item of the list is missing", "take the comma out")
        }
        result.append(element)
        start = index + 1
        guard depth == 0 else { continue }
        if index + 1 < list.endIndex {
          throw problem(at(index + 1), "\(list[(index + 1)...].shown) follows the list", "put a comma and brackets")
        }
        return result
      default: break
      }
    }
    throw problem(here, "the list \(list.shown) is not closed", "close it with `]`")
  }
}
