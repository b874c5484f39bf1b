import VMFenceCore

/// Variables, and the address and port lists that use them.
struct RuleVariables {
  /// How deep lists and variables may nest.
  static let depthMaximum = 16
  /// Networks or ranges in one list, all variables resolved.
  static let itemMaximum = 65_536

  private var values: [String: [UInt8]] = [:]
  /// Those that the caller gave: files do not change them.
  private var fixed: Set<String> = []

  init(_ given: [String: String]) {
    for (name, value) in given {
      values[name] = Array(value.utf8)
      fixed.insert(name)
    }
  }

  mutating func define(_ name: String, _ value: ArraySlice<UInt8>) {
    if !fixed.contains(name) { values[name] = Array(value) }
  }

  var names: [String] { values.keys.sorted() }

  // MARK: Addresses

  func addresses(_ text: ArraySlice<UInt8>) throws(RuleProblem) -> AddressSet {
    var set = AddressSet.any
    var isAny = false
    try add(text, at: text.startIndex, negated: false, depth: 0) {
      (item: ArraySlice<UInt8>, offset: Int, negated: Bool) throws(RuleProblem) in
      if item.isText("any") {
        if negated { throw RuleProblem(offset, "`!any` matches no address", "leave it out") }
        isAny = true
        return
      }
      let networks = try Self.networks(item, offset)
      if negated { set.excluded += networks } else { set.included += networks }
      if set.included.count + set.excluded.count > Self.itemMaximum {
        throw RuleProblem(offset, "a list of more than \(Self.itemMaximum) networks")
      }
    }
    if isAny { set.included = [] }
    for network in set.included where set.excluded.contains(network) {
      throw RuleProblem(text.startIndex, "\(network) is both in the list and excluded from it", "take one of them out")
    }
    return set
  }

  private static func networks(_ item: ArraySlice<UInt8>, _ offset: Int) throws(RuleProblem) -> [IPNetwork] {
    let text = item.text
    if let network = IPNetwork(text) { return [network] }
    let ends = text.split(separator: "-", omittingEmptySubsequences: false)
    if ends.count == 2, let first = IPAddress(ends[0]), let last = IPAddress(ends[1]), first.family == last.family,
      first <= last
    {
      return networks(from: first, through: last)
    }
    if ends.count == 2, ends.allSatisfy({ IPAddress($0) != nil }) {
      throw RuleProblem(offset, "the address range \(item.shown) is empty", "write the lower address first")
    }
    let slash = text.split(separator: "/", omittingEmptySubsequences: false)
    if slash.count == 2, IPAddress(slash[0]) != nil {
      throw RuleProblem(offset, "\(item.shown) has no valid prefix length", "use /0 to /32, for IPv6 /0 to /128")
    }
    throw RuleProblem(
      offset, "\(item.shown) is not an address, a network or `any`",
      "write 192.0.2.1, 192.0.2.0/24, 2001:db8::/32, a list in brackets, or $NAME")
  }

  /// The fewest networks that make up a range.
  private static func networks(from first: IPAddress, through last: IPAddress) -> [IPNetwork] {
    var result: [IPNetwork] = []
    var next = (first.high, first.low)
    let end = (last.high, last.low)
    let width = first.family.bitWidth
    while next <= end {
      var bits = 0
      while bits < width {
        let (high, low) = blockEnd(next, bits + 1)
        let aligned = bits < 64 ? next.1 >> UInt64(bits) & 1 == 0 : next.0 >> UInt64(bits - 64) & 1 == 0
        guard aligned, (high, low) <= end else { break }
        bits += 1
      }
      let address =
        first.family == .v4 ? IPAddress(v4: UInt32(next.1)) : IPAddress(v6High: next.0, low: next.1)
      result.append(IPNetwork(address, prefix: width - bits))
      let top = blockEnd(next, bits)
      let (low, carry) = top.1.addingReportingOverflow(1)
      let (high, overflow) = top.0.addingReportingOverflow(carry ? 1 : 0)
      if overflow || (first.family == .v4 && low > 0xFFFF_FFFF) { break }
      next = (high, low)
    }
    return result
  }

  private static func blockEnd(_ start: (UInt64, UInt64), _ bits: Int) -> (UInt64, UInt64) {
    func ones(_ count: Int) -> UInt64 { count <= 0 ? 0 : count >= 64 ? .max : (1 << UInt64(count)) - 1 }
    return (start.0 | ones(bits - 64), start.1 | ones(bits))
  }

  // MARK: Ports

  func ports(_ text: ArraySlice<UInt8>) throws(RuleProblem) -> PortSet {
    var included: [ClosedRange<UInt16>] = []
    var excluded: [ClosedRange<UInt16>] = []
    try add(text, at: text.startIndex, negated: false, depth: 0) {
      (item: ArraySlice<UInt8>, offset: Int, negated: Bool) throws(RuleProblem) in
      if item.isText("any") {
        if negated { throw RuleProblem(offset, "`!any` matches no port", "leave it out") }
        included.append(0...UInt16.max)
        return
      }
      let range = try Self.portRange(item, offset)
      if negated { excluded.append(range) } else { included.append(range) }
      if included.count + excluded.count > Self.itemMaximum {
        throw RuleProblem(offset, "a list of more than \(Self.itemMaximum) ports")
      }
    }
    let set = PortSet(included: included, excluded: excluded)
    if set.ranges.isEmpty {
      throw RuleProblem(text.startIndex, "the port list \(text.shown) leaves no port", "take an exclusion out")
    }
    return set
  }

  private static func portRange(_ item: ArraySlice<UInt8>, _ offset: Int) throws(RuleProblem) -> ClosedRange<UInt16> {
    let parts = item.split(at: UInt8(ascii: ":"))
    guard parts.count <= 2, !(parts.count == 2 && parts[0].isEmpty && parts[1].isEmpty) else {
      throw RuleProblem(offset, "\(item.shown) is not a port range", "write 80, 1024:2048, 1024: or :1023")
    }
    var ends: [UInt16?] = []
    for part in parts {
      if part.isEmpty, parts.count == 2 {
        ends.append(nil)
      } else if let port = UInt16(part.text), part.first != UInt8(ascii: "+") {
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
    return low...high
  }

  // MARK: Lists

  /// Calls `body` for each item of a list that is no list and no variable. `offset` is the place that errors name: within a variable's value, that of
  /// its use.
  private func add(
    _ text: ArraySlice<UInt8>, at offset: Int, negated: Bool, depth: Int, inVariable: Bool = false,
    _ body: (ArraySlice<UInt8>, Int, Bool) throws(RuleProblem) -> Void
  ) throws(RuleProblem) {
    guard depth <= Self.depthMaximum else {
      throw RuleProblem(
        offset, "lists and variables are nested more than \(Self.depthMaximum) deep",
        "does a variable refer to itself?")
    }
    var item = text.trimmed
    var negated = negated
    while item.first == UInt8(ascii: "!") {
      negated.toggle()
      item = item.dropFirst().trimmed
    }
    let here = inVariable ? offset : item.startIndex
    guard let first = item.first else { throw RuleProblem(offset, "an address or port is missing") }
    if first == UInt8(ascii: "[") {
      guard item.last == UInt8(ascii: "]"), item.count >= 2 else {
        throw RuleProblem(here, "the list \(item.shown) is not closed", "close it with `]`")
      }
      for element in try Self.elements(item.dropFirst().dropLast(), here) {
        try add(element, at: here, negated: negated, depth: depth + 1, inVariable: inVariable, body)
      }
    } else if first == UInt8(ascii: "$") {
      let name = item.dropFirst().text
      guard let value = values[name] else {
        throw RuleProblem(
          here, "the variable \(item.shown) is not defined",
          "define it: --var '\(name.escapedForDisplay)=VALUE', or `variables:` in the configuration")
      }
      try add(value[...], at: here, negated: negated, depth: depth + 1, inVariable: true, body)
    } else {
      try body(item, here, negated)
    }
  }

  /// Splits at the commas that are in no inner list.
  private static func elements(_ text: ArraySlice<UInt8>, _ offset: Int) throws(RuleProblem) -> [ArraySlice<UInt8>] {
    var result: [ArraySlice<UInt8>] = []
    var depth = 0
    var start = text.startIndex
    for index in text.indices {
      switch text[index] {
      case UInt8(ascii: "["): depth += 1
      case UInt8(ascii: "]"):
        depth -= 1
        if depth < 0 { throw RuleProblem(offset, "a `]` too many in a list") }
      case UInt8(ascii: ",") where depth == 0:
        result.append(text[start..<index])
        start = index + 1
      default: break
      }
    }
    if depth != 0 { throw RuleProblem(offset, "a list within the list is not closed", "close it with `]`") }
    result.append(text[start...])
    if result.contains(where: { $0.trimmed.isEmpty }) {
      throw RuleProblem(offset, "an item of the list is empty", "take the comma out")
    }
    return result
  }
}
