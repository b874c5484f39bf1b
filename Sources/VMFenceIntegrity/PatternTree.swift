/// The patterns of a policy as a tree of their components: patterns that begin alike share a way, so that what a name costs depends on how many
/// different components can come next, and of those without a wildcard all together cost one look-up.
struct PatternTree: Sendable {
  /// What a path can have come to.
  struct Place: Sendable {
    /// Where names without a wildcard lead, by their number.
    var names: [UInt32: UInt32] = [:]
    /// Where names lead that match, by the number of what they are compared with.
    var wildcards: [(pattern: UInt32, place: UInt32)] = []
    /// Where a `**` goes on that may stand for nothing; 0 when none comes next.
    var anything: UInt32 = 0
    /// In a `**`: any name stays here.
    var isAnything = false
    /// Where a `**` ends that is the last component, which takes one name at least; 0 when it is not.
    var end: UInt32 = 0
    /// What the rules that end here say together.
    var protection: ProtectionPolicy.Protection?
    /// A rule ends here that takes out what it matches.
    var isExcluded = false
    /// Some rule that protects leads here; and on from here.
    var isProtecting = false
    var leadsOn = false

    /// Whether a path must know that it came here: otherwise only a `**` comes next, which has its own place.
    var isOfUse: Bool { isAnything || !names.isEmpty || !wildcards.isEmpty || protection != nil || isExcluded }
  }

  private(set) var places = [Place()]
  private var names: [[UInt8]: UInt32] = [:]
  private var patterns: [NamePattern] = []

  /// - `rules`: each with its components, and whether it takes out what it matches.
  init(_ rules: [(rule: ProtectionPolicy.Rule, components: [[UInt8]], isExcluding: Bool)]) {
    var numbers: [[UInt8]: UInt32] = [:]
    for (rule, components, isExcluding) in rules {
      var place = 0
      if !isExcluding { places[0].isProtecting = true }
      for (index, component) in components.enumerated() {
        if !isExcluding { places[place].leadsOn = true }
        place = next(place, component, isLast: index == components.count - 1, isProtecting: !isExcluding, &numbers)
        if !isExcluding { places[place].isProtecting = true }
      }
      if isExcluding {
        places[place].isExcluded = true
      } else {
        places[place].protection = places[place].protection.with(rule)
      }
    }
  }

  private mutating func next(
    _ place: Int, _ component: [UInt8], isLast: Bool, isProtecting: Bool, _ numbers: inout [[UInt8]: UInt32]
  ) -> Int {
    if component == [0x2A, 0x2A] {
      if places[place].anything == 0 { places[place].anything = add(Place(isAnything: true)) }
      let anything = Int(places[place].anything)
      guard isLast else { return anything }
      if isProtecting { (places[anything].isProtecting, places[anything].leadsOn) = (true, true) }
      if places[anything].end == 0 { places[anything].end = add(Place()) }
      return Int(places[anything].end)
    }
    if NamePattern.isOne(component) {
      if numbers[component] == nil {
        numbers[component] = UInt32(patterns.count)
        patterns.append(NamePattern(component))
      }
      let number = numbers[component] ?? 0
      if let known = places[place].wildcards.first(where: { $0.pattern == number }) { return Int(known.place) }
      let new = add(Place())
      places[place].wildcards.append((number, new))
      return Int(new)
    }
    let number = names[component] ?? UInt32(names.count)
    names[component] = number
    if let known = places[place].names[number] { return Int(known) }
    let new = add(Place())
    places[place].names[number] = new
    return Int(new)
  }

  private mutating func add(_ place: Place) -> UInt32 {
    places.append(place)
    return UInt32(places.count - 1)
  }

  // MARK: Paths

  /// Where the root directory is, sorted.
  var root: [UInt32] {
    var found: [UInt32] = []
    enter(0, &found)
    return settled(found)
  }

  /// Where a path has come to one name further, sorted; empty when neither it nor anything below it can match.
  func advance(_ places: [UInt32], by name: [UInt8]) -> [UInt32] {
    var found: [UInt32] = []
    var compared: [UInt32: Bool] = [:]
    let number = names[name]
    var steps = 0
    for current in places {
      let place = self.places[Int(current)]
      if place.isAnything { found.append(current) }
      if place.end != 0 { found.append(place.end) }
      if let number, let next = place.names[number] { enter(next, &found) }
      for (pattern, next) in place.wildcards {
        let isMatch = compared[pattern] ?? patterns[Int(pattern)].matches(name, steps: &steps)
        compared[pattern] = isMatch
        if isMatch { enter(next, &found) }
      }
    }
    return settled(found)
  }

  /// A `**` that is not the last component may also stand for nothing.
  private func enter(_ place: UInt32, _ found: inout [UInt32]) {
    if places[Int(place)].isOfUse { found.append(place) }
    var next = places[Int(place)].anything
    while next != 0 {
      found.append(next)
      next = places[Int(next)].anything
    }
  }

  /// What is excluded, and all that is below, nobody looks at.
  private func settled(_ found: [UInt32]) -> [UInt32] {
    guard found.contains(where: { places[Int($0)].isProtecting }),
      !found.contains(where: { places[Int($0)].isExcluded })
    else { return [] }
    guard found.count > 1 else { return found }
    var result: [UInt32] = []
    for place in found.sorted() where result.last != place { result.append(place) }
    return result
  }
}

extension ProtectionPolicy.Protection? {
  /// The strongest action, all attributes, the highest severity.
  func with(_ rule: ProtectionPolicy.Rule) -> ProtectionPolicy.Protection {
    with(
      .init(
        action: rule.action, attributes: rule.attributes, severity: rule.severity, followsObject: rule.followsObject))
  }

  func with(_ other: ProtectionPolicy.Protection) -> ProtectionPolicy.Protection {
    guard let old = self else { return other }
    return ProtectionPolicy.Protection(
      action: max(old.action, other.action), attributes: old.attributes.union(other.attributes),
      severity: min(old.severity, other.severity), followsObject: old.followsObject || other.followsObject)
  }
}
