import VMFenceCore

extension AddressSet {
  /// The set's addresses of one family: sorted, disjoint ranges, both ends included.
  func ranges(of family: IPAddress.Family) -> [ClosedRange<IPAddress>] {
    let whole = IPNetwork(family == .v4 ? .anyV4 : IPAddress(v6High: 0, low: 0), prefix: 0)
    let wanted = AddressSet.merged(included.isEmpty ? [whole] : included, of: family)
    var result: [ClosedRange<IPAddress>] = []
    let holes = AddressSet.merged(excluded, of: family)
    for range in wanted {
      var next: IPAddress? = range.lowerBound
      for hole in holes {
        guard let low = next, hole.upperBound >= low, hole.lowerBound <= range.upperBound else { continue }
        if hole.lowerBound > low, let last = hole.lowerBound.predecessor { result.append(low...last) }
        next = hole.upperBound.successor
      }
      if let low = next, low <= range.upperBound { result.append(low...range.upperBound) }
    }
    return result
  }

  private static func merged(_ networks: [IPNetwork], of family: IPAddress.Family) -> [ClosedRange<IPAddress>] {
    var result: [ClosedRange<IPAddress>] = []
    let ranges = networks.filter { $0.base.family == family }.map { $0.base...$0.last }
    for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
      if let last = result.last, last.upperBound.successor.map({ range.lowerBound <= $0 }) ?? true {
        result[result.count - 1] = last.lowerBound...max(last.upperBound, range.upperBound)
      } else {
        result.append(range)
      }
    }
    return result
  }
}

extension IPNetwork {
  /// The highest address in it.
  fileprivate var last: IPAddress {
    var address = base
    if base.family == .v4 {
      address.low |= 0xFFFF_FFFF >> UInt64(prefix)
    } else {
      // Shifts by 64 and more give 0.
      address.high |= UInt64.max >> UInt64(prefix)
      address.low |= prefix <= 64 ? .max : UInt64.max >> UInt64(prefix - 64)
    }
    return address
  }
}

extension IPAddress {
  /// The next higher address of the family; nil after the last.
  fileprivate var successor: IPAddress? {
    var next = self
    guard family == .v6 else {
      next.low += 1
      return low < 0xFFFF_FFFF ? next : nil
    }
    next.low &+= 1
    if next.low == 0 { next.high &+= 1 }
    return next.low == 0 && next.high == 0 ? nil : next
  }

  /// The next lower address of the family; nil before the first.
  fileprivate var predecessor: IPAddress? {
    guard high > 0 || low > 0 else { return nil }
    var previous = self
    if low == 0 { previous.high -= 1 }
    previous.low &-= 1
    return previous
  }
}
