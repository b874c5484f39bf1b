import VMFenceCore

/// A database of countries by address, in the MaxMind DB format (MaxMind DB File Format Specification 2.0): a binary tree over the bits
/// of addresses, whose leaves point to records. Of a record only `country.iso_code` is read.
///
/// Nothing in the file is believed: each offset is checked, the tree has 128 levels at the most, and what is walked and decoded is
/// bounded by the file's own size.
///
/// It is read when rules are compiled, and only then: images hold the ranges of addresses. libmaxminddb (1.7) is for single lookups: it opens a path and
/// maps the file, which whoever shortens it meanwhile turns into SIGBUS, takes no bytes that were read already, and has no walk over all networks, so
/// that the tree's bounds would still be ours to check; and every detector would be linked with it.
final class CountryDatabase {
  struct Damage: Error {
    var message: String
    init(_ message: String) { self.message = message }
  }

  private let bytes: [UInt8]
  private let nodeCount: Int
  /// Of one record, in bits: 24, 28 or 32.
  private let recordSize: Int
  private let isIPv6: Bool
  /// Where the data section begins.
  private let dataStart: Int
  /// Filled when the first rule asks: in order of addresses, neighbours of one country joined.
  private var found: [(range: ClosedRange<IPAddress>, country: UInt16)]?

  private static let marker = [0xAB, 0xCD, 0xEF] + Array("MaxMind.com".utf8)
  /// The metadata stands in the last part of the file of this length.
  private static let metadataMaximum = 128 * 1024

  init(_ bytes: [UInt8]) throws(Damage) {
    self.bytes = bytes
    var metadata: Int?
    var place = bytes.count - Self.marker.count
    while place >= max(0, bytes.count - Self.metadataMaximum), metadata == nil {
      if bytes[place..<place + Self.marker.count].elementsEqual(Self.marker) { metadata = place + Self.marker.count }
      place -= 1
    }
    guard let metadata else { throw Damage("it is no MaxMind DB: its metadata is not found") }
    var decoder = MaxMindDecoder(bytes, from: metadata)
    let node = try decoder.number("node_count", at: metadata)
    let size = try decoder.number("record_size", at: metadata)
    let version = try decoder.number("ip_version", at: metadata)
    guard [24, 28, 32].contains(size), version == 4 || version == 6, node > 0,
      node <= UInt64(bytes.count) / (size / 4)
    else { throw Damage("its metadata cannot be: \(node) nodes of \(size) bits for IPv\(version)") }
    (nodeCount, recordSize, isIPv6) = (Int(node), Int(size), version == 6)
    // The tree, then 16 zeros.
    dataStart = nodeCount * recordSize / 4 + 16
    guard dataStart <= bytes.count else { throw Damage("it ends within its tree") }
  }

  /// The addresses of countries, of which `isWanted` is asked by their codes (`code(_:)`). What no country is known of is in none.
  func addresses(where isWanted: (UInt16) -> Bool) throws(Damage) -> AddressSet {
    let all = if let found { found } else { try walk() }
    found = all
    return AddressSet(exactly: all.filter { isWanted($0.country) }.map(\.range))
  }

  /// Of two letters (ISO 3166-1).
  static func code(_ text: ArraySlice<UInt8>) -> UInt16? {
    guard text.count == 2, text.allSatisfy({ (0x41...0x5A).contains($0 & 0xDF) }) else { return nil }
    return text.reduce(0) { $0 << 8 | UInt16($1 & 0xDF) }
  }

  // MARK: The tree

  /// The left (0) or right (1) record of a node.
  private func record(_ node: Int, _ side: Int) -> Int {
    let start = node * recordSize / 4
    func byte(_ index: Int) -> Int { Int(bytes[start + index]) }
    switch recordSize {
    case 24: return byte(side * 3) << 16 | byte(side * 3 + 1) << 8 | byte(side * 3 + 2)
    case 28:
      let high = side == 0 ? byte(3) >> 4 : byte(3) & 15
      return high << 24 | byte(side * 4) << 16 | byte(side * 4 + 1) << 8 | byte(side * 4 + 2)
    default: return byte(side * 4) << 24 | byte(side * 4 + 1) << 16 | byte(side * 4 + 2) << 8 | byte(side * 4 + 3)
    }
  }

  private func walk() throws(Damage) -> [(range: ClosedRange<IPAddress>, country: UInt16)] {
    var result: [(range: ClosedRange<IPAddress>, country: UInt16)] = []
    var decoder = MaxMindDecoder(bytes, from: dataStart)
    var countries: [Int: UInt16] = [:]
    // In IPv6's tree IPv4 is what begins with 96 zeros; other networks (6to4, mapped addresses) lead to the same nodes again.
    var v4Root = isIPv6 ? -1 : 0
    if isIPv6 {
      var node = 0
      for _ in 0..<96 where node < nodeCount { node = record(node, 0) }
      guard node != 0 else { throw Damage("its tree has a loop") }
      v4Root = node < nodeCount ? node : -1
    }
    var visited = 0
    var stack: [(value: Int, high: UInt64, low: UInt64, depth: Int)] = [(0, 0, 0, 0)]
    let width = isIPv6 ? 128 : 32
    while let (value, high, low, depth) = stack.popLast() {
      let isV4 = !isIPv6 || depth >= 96 && high == 0 && low >> 32 == 0
      if value == nodeCount || isIPv6 && value == v4Root && !isV4 { continue }
      if value > nodeCount {
        let offset = value - nodeCount - 16
        guard offset >= 0, dataStart + offset < bytes.count else { throw Damage("a leaf points behind its end") }
        let country: UInt16
        if let known = countries[offset] {
          country = known
        } else {
          country = try decoder.country(at: dataStart + offset)
          countries[offset] = country
        }
        if country != 0 { Self.add(Self.range(high, low, depth, isV4, isIPv6), country, to: &result) }
        continue
      }
      visited += 1
      guard depth < width, visited <= nodeCount * 2 else { throw Damage("its tree has a loop") }
      // The right one waits below, so that addresses come in order.
      let place = isIPv6 ? depth : depth + 96
      let bit: (UInt64, UInt64) = place < 64 ? (1 << UInt64(63 - place), 0) : (0, 1 << UInt64(127 - place))
      stack.append((record(value, 1), high | bit.0, low | bit.1, depth + 1))
      stack.append((record(value, 0), high, low, depth + 1))
    }
    // IPv4 came first, where it stands in IPv6's tree.
    return result
  }

  private static func range(
    _ high: UInt64, _ low: UInt64, _ depth: Int, _ isV4: Bool, _ isIPv6: Bool
  ) -> ClosedRange<IPAddress> {
    if isV4 {
      return IPNetwork(IPAddress(v4: UInt32(truncatingIfNeeded: low)), prefix: isIPv6 ? depth - 96 : depth).addresses
    }
    return IPNetwork(IPAddress(v6High: high, low: low), prefix: depth).addresses
  }

  private static func add(
    _ range: ClosedRange<IPAddress>, _ country: UInt16,
    to result: inout [(range: ClosedRange<IPAddress>, country: UInt16)]
  ) {
    if let last = result.last, last.country == country, last.range.upperBound.successor == range.lowerBound {
      result[result.count - 1].range = last.range.lowerBound...range.upperBound
    } else {
      result.append((range, country))
    }
  }
}

/// Reads the data section: only as much as it takes to find members of maps.
private struct MaxMindDecoder {
  private enum Kind: Int {
    case extended = 0
    case pointer, text, double, bytes, uint16, uint32, map, int32, uint64, uint128, array, container, end, boolean,
      float
  }

  private let bytes: [UInt8]
  /// What pointers count from.
  private let base: Int
  private var place = 0
  /// Values looked at for one question.
  private var steps = 0
  private static let stepMaximum = 4096
  private static let depthMaximum = 16

  init(_ bytes: [UInt8], from base: Int) {
    self.bytes = bytes
    self.base = base
  }

  /// A member of the map at `start` that is a number.
  mutating func number(_ key: String, at start: Int) throws(CountryDatabase.Damage) -> UInt64 {
    steps = 0
    guard let at = try member(key, of: start) else { throw .init("its metadata has no \(key)") }
    place = at
    let (kind, size) = try control()
    guard kind == .uint16 || kind == .uint32 || kind == .uint64, size <= 8 else {
      throw .init("its \(key) is no number")
    }
    return try integer(size)
  }

  /// `country.iso_code` of the record at `start`; 0 when it has none.
  mutating func country(at start: Int) throws(CountryDatabase.Damage) -> UInt16 {
    steps = 0
    guard let country = try member("country", of: start), let code = try member("iso_code", of: country) else {
      return 0
    }
    place = code
    let (kind, size) = try control()
    guard kind == .text, size <= bytes.count - place else { return 0 }
    return CountryDatabase.code(bytes[place..<place + size]) ?? 0
  }

  /// Where the value of a member of the map at `start` stands, pointers followed; nil when there is no such member, or no map.
  private mutating func member(_ key: String, of start: Int) throws(CountryDatabase.Damage) -> Int? {
    place = start
    let (kind, count) = try control()
    guard kind == .map else { return nil }
    for _ in 0..<count {
      let isWanted = try readKey(isText: key)
      if isWanted { return try resolved() }
      try skip()
    }
    return nil
  }

  private mutating func readKey(isText key: String) throws(CountryDatabase.Damage) -> Bool {
    let before = place
    place = try resolved()
    let (kind, size) = try control()
    guard kind == .text, size <= bytes.count - place else { throw .init("a map's key is no text") }
    let isEqual = bytes[place..<place + size].elementsEqual(key.utf8)
    place = before
    try skip()
    return isEqual
  }

  /// Where the value at `place` stands, if it is a pointer; it must not point to another one.
  private mutating func resolved() throws(CountryDatabase.Damage) -> Int {
    let before = place
    let (kind, size) = try control()
    guard kind == .pointer else {
      place = before
      return before
    }
    let target = try pointer(size)
    guard target < bytes.count, bytes[target] >> 5 != Kind.pointer.rawValue else {
      throw .init("a pointer leads nowhere")
    }
    return target
  }

  /// Passes over the value at `place`, and all in it.
  private mutating func skip() throws(CountryDatabase.Damage) {
    // Values that are to be passed over at each depth.
    var left = [1]
    while let count = left.last {
      if count == 0 {
        left.removeLast()
        continue
      }
      left[left.count - 1] -= 1
      let (kind, size) = try control()
      switch kind {
      case .pointer: _ = try pointer(size)
      case .map, .array:
        guard left.count < Self.depthMaximum, size <= bytes.count else { throw .init("values nest too deep") }
        left.append(kind == .map ? size * 2 : size)
      case .boolean, .end, .container, .extended: break
      case .text, .double, .bytes, .uint16, .uint32, .int32, .uint64, .uint128, .float:
        guard size <= bytes.count - place else { throw .init("a value ends behind its end") }
        place += size
      }
    }
  }

  /// A control byte and what belongs to it. Of a pointer the size is its five low bits.
  private mutating func control() throws(CountryDatabase.Damage) -> (Kind, Int) {
    steps += 1
    guard steps <= Self.stepMaximum else { throw .init("a record has too many values") }
    let first = Int(try byte())
    var number = first >> 5
    if number == Kind.extended.rawValue { number = 7 + Int(try byte()) }
    guard let kind = Kind(rawValue: number), number != Kind.extended.rawValue else { throw .init("an unknown type") }
    let size = first & 0x1F
    guard kind != .pointer, size >= 29 else { return (kind, size) }
    let more = Int(try integer(size - 28))
    return (kind, [29, 285, 65_821][size - 29] + more)
  }

  private mutating func pointer(_ size: Int) throws(CountryDatabase.Damage) -> Int {
    let length = size >> 3
    let value = Int(try integer(length + 1))
    let offset = length == 3 ? value : (size & 7) << (8 * (length + 1)) + value + [0, 2048, 526_336][length]
    return base + offset
  }

  private mutating func byte() throws(CountryDatabase.Damage) -> UInt8 {
    guard place < bytes.count else { throw .init("it ends early") }
    defer { place += 1 }
    return bytes[place]
  }

  /// Big-endian.
  private mutating func integer(_ count: Int) throws(CountryDatabase.Damage) -> UInt64 {
    guard count <= bytes.count - place else { throw .init("it ends early") }
    defer { place += count }
    return bytes[place..<place + count].reduce(0) { $0 << 8 | UInt64($1) }
  }
}

extension RuleOptionParser {
  /// `[src|dst|both|any,]COUNTRY[,COUNTRY…]`, or `!` before the countries; both or either when no side is given.
  mutating func country(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let sides: [String: HostSide] = ["any": .either, "src": .source, "dst": .destination, "both": .both]
    var parts = value.split(at: UInt8(ascii: ","))
    var side = HostSide.either
    if let named = sides[parts[0].text.lowercased()] {
      side = named
      parts.removeFirst()
    }
    var isNegated = false
    var codes: Set<UInt16> = []
    for part in parts {
      var text = part
      if text.first == UInt8(ascii: "!") {
        isNegated = true
        text = text.dropFirst().trimmed
      }
      guard let code = CountryDatabase.code(text) else {
        throw RuleProblem(
          part.startIndex, "\(name.shown): \(part.shown) is no country",
          "write codes of two letters (ISO 3166-1), after src, dst, both or any")
      }
      codes.insert(code)
    }
    guard !codes.isEmpty else {
      throw RuleProblem(value.startIndex, "\(name.shown): a country is missing", "for example `geoip:src,SE,NO;`")
    }
    guard let countries else { return refuse("`geoip` without a database of countries", at: name.startIndex) }
    do throws(CountryDatabase.Damage) {
      tests.append(
        .state(.country(side, try countries.addresses { codes.contains($0) != isNegated })))
    } catch {
      throw RuleProblem(
        name.startIndex, "\(name.shown): the database of countries cannot be used: \(error.message)",
        "give another one")
    }
  }
}

extension RuleContext {
  mutating func readCountries(_ source: RuleSource) -> [Diagnostic] {
    do throws(CountryDatabase.Damage) {
      countries = try CountryDatabase(source.text)
      return []
    } catch {
      return [
        Diagnostic(
          .error, at: SourcePlace(file: source.file), "the database of countries cannot be used: \(error.message)",
          remedy: "give a database of countries in the MaxMind DB format")
      ]
    }
  }
}
