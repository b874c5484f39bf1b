import VMFenceCore

extension AddressSet {
  package var isAny: Bool { included.isEmpty && excluded.isEmpty }

  /// Whether no address at all belongs to the set.
  package var isEmpty: Bool {
    !excluded.isEmpty && IPAddress.Family.allCases.allSatisfy { ranges(of: $0).isEmpty }
  }

  /// What belongs to the set in one family: sorted, disjoint ranges that do not touch, both ends included.
  package func ranges(of family: IPAddress.Family) -> [ClosedRange<IPAddress>] {
    let wanted = included.isEmpty ? [.all(of: family)] : included
    let holes = Self.merged(excluded.filter { $0.base.family == family }.map(\.addresses))
    var result: [ClosedRange<IPAddress>] = []
    for range in Self.merged(wanted.filter { $0.base.family == family }.map(\.addresses)) {
      var next: IPAddress? = range.lowerBound
      for hole in holes where hole.overlaps(range) {
        if let start = next, start < hole.lowerBound, let end = hole.lowerBound.predecessor {
          result.append(start...end)
        }
        next = hole.upperBound.successor
      }
      if let start = next, start <= range.upperBound { result.append(start...range.upperBound) }
    }
    return result
  }

  /// The part of the set that is of one family.
  func limited(to family: IPAddress.Family) -> AddressSet {
    let wanted = included.isEmpty ? [.all(of: family)] : included.filter { $0.base.family == family }
    // Without an inclusion everything would be meant; a set of nothing excludes what it includes.
    guard !wanted.isEmpty else { return AddressSet(included: [.all(of: family)], excluded: [.all(of: family)]) }
    return AddressSet(included: wanted, excluded: excluded.filter { $0.base.family == family })
  }

  private static func merged(_ ranges: [ClosedRange<IPAddress>]) -> [ClosedRange<IPAddress>] {
    var result: [ClosedRange<IPAddress>] = []
    for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
      // The last address of a family has no successor: whatever comes after begins before it.
      if let last = result.last, range.lowerBound <= last.upperBound.successor ?? last.upperBound {
        result[result.count - 1] = last.lowerBound...max(last.upperBound, range.upperBound)
      } else {
        result.append(range)
      }
    }
    return result
  }
}

extension IPNetwork {
  static func all(of family: IPAddress.Family) -> IPNetwork {
    IPNetwork(family == .v4 ? .anyV4 : IPAddress(v6High: 0, low: 0), prefix: 0)
  }

  /// From the first address to the last.
  package var addresses: ClosedRange<IPAddress> {
    var last = base
    if base.family == .v4 {
      last.low |= prefix == 0 ? 0xFFFF_FFFF : 0xFFFF_FFFF >> UInt64(prefix)
    } else if prefix < 64 {
      last.high |= UInt64.max >> UInt64(prefix)
      last.low = .max
    } else {
      last.low |= prefix == 128 ? 0 : UInt64.max >> UInt64(prefix - 64)
    }
    return base...last
  }

  /// The fewest networks that together have exactly the addresses of `range`, whose ends are of one family.
  static func covering(_ range: ClosedRange<IPAddress>) -> [IPNetwork] {
    var result: [IPNetwork] = []
    var next: IPAddress? = range.lowerBound
    while let start = next, start <= range.upperBound {
      var network = IPNetwork(start)
      while network.prefix > 0 {
        let larger = IPNetwork(start, prefix: Int(network.prefix) - 1)
        guard larger.base == start, larger.addresses.upperBound <= range.upperBound else { break }
        network = larger
      }
      result.append(network)
      next = network.addresses.upperBound.successor
    }
    return result
  }
}

extension IPAddress {
  /// The next higher address of the family; nil after the last.
  package var successor: IPAddress? {
    var next = self
    if family == .v4 {
      guard low < 0xFFFF_FFFF else { return nil }
      next.low += 1
    } else {
      guard low < .max || high < .max else { return nil }
      next.low &+= 1
      if next.low == 0 { next.high += 1 }
    }
    return next
  }

  /// The next lower address of the family; nil before the first.
  package var predecessor: IPAddress? {
    var previous = self
    guard low > 0 || (family == .v6 && high > 0) else { return nil }
    if low == 0 { previous.high -= 1 }
    previous.low &-= 1
    return previous
  }
}
