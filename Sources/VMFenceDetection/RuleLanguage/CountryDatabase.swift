internal import CMaxMindDB
internal import Glibc
import VMFenceCore

/// A database of countries by address, in the MaxMind DB format, read by libmaxminddb. Of a record only `country.iso_code` is asked for.
///
/// It is read when rules are compiled, and only then: images hold the ranges of addresses. The library opens a path and maps the file, which
/// whoever shortens it meanwhile would turn into SIGBUS, so it is given a copy in memory that nobody else has. The library finds single
/// addresses; this walks over all networks, node by node, in a time that the number of nodes bounds.
@safe
final class CountryDatabase {
  struct Damage: Error {
    var message: String
    init(_ message: String) { self.message = message }
  }

  // SAFETY: open from the end of the initialiser to `deinit`, and never changed in between.
  private let database: UnsafeMutablePointer<MMDB_s>
  private let nodeCount: UInt32
  private let isIPv6: Bool
  /// Filled when the first rule asks: in order of addresses, neighbours of one country joined.
  private var found: [(range: ClosedRange<IPAddress>, country: UInt16)]?

  init(_ bytes: [UInt8]) throws(Damage) {
    let file = vmfence_mmdb_memory()
    guard file >= 0 else { throw Damage("there is no memory for it") }
    defer { _ = close(file) }
    var written = 0
    while written < bytes.count {
      // SAFETY: the rest of the array, for reading.
      let count = unsafe bytes.withUnsafeBytes { unsafe write(file, $0.baseAddress! + written, bytes.count - written) }
      guard count > 0 else { throw Damage("there is no memory for its \(bytes.count) bytes") }
      written += count
    }
    let opened = UnsafeMutablePointer<MMDB_s>.allocate(capacity: 1)
    // SAFETY: the structure is the library's to fill, and is not touched when it says that it did not.
    let status = unsafe MMDB_open("/proc/self/fd/\(file)", UInt32(MMDB_MODE_MMAP), opened)
    guard status == MMDB_SUCCESS else {
      // SAFETY: nothing of it is used any more.
      unsafe opened.deallocate()
      throw Damage(Self.text(status))
    }
    unsafe database = opened
    // SAFETY: open.
    let metadata = unsafe opened.pointee.metadata
    nodeCount = unsafe metadata.node_count
    isIPv6 = unsafe metadata.ip_version == 6
  }

  deinit {
    // SAFETY: open, and nobody's any more.
    unsafe MMDB_close(database)
    unsafe database.deallocate()
  }

  /// The corresponding C function is `MMDB_strerror`.
  private static func text(_ status: Int32) -> String {
    // SAFETY: a constant text for every number.
    unsafe String(cString: MMDB_strerror(status))
  }

  /// The addresses of countries, of which `isWanted` is asked by their codes (`code(_:)`). What no country is known of is in none.
  func addresses(where isWanted: (UInt16) -> Bool) throws(Damage) -> AddressSet {
    let all = if let found { found } else { try walk() }
    found = all
    return AddressSet(exactly: all.filter { isWanted($0.country) }.map(\.range))
  }

  /// Of two letters (ISO 3166-1).
  static func code(_ text: some Collection<UInt8>) -> UInt16? {
    guard text.count == 2, text.allSatisfy({ (0x41...0x5A).contains($0 & 0xDF) }) else { return nil }
    return text.reduce(0) { $0 << 8 | UInt16($1 & 0xDF) }
  }

  // MARK: The tree

  /// Where a branch of the tree leads.
  private enum Branch {
    case node(UInt32)
    case nothing
    /// In the data section.
    case record(UInt32)
  }

  /// The left and the right branch of a node. The corresponding C function is `MMDB_read_node`.
  private func branches(_ number: UInt32) throws(Damage) -> (Branch, Branch) {
    // SAFETY: zeros, for the library to write over.
    var node = unsafe MMDB_search_node_s()
    // SAFETY: the database is open; the library checks the number.
    let status = unsafe MMDB_read_node(database, number, &node)
    guard status == MMDB_SUCCESS else { throw Damage(Self.text(status)) }
    return (
      try branch(unsafe node.left_record, unsafe node.left_record_type),
      try branch(unsafe node.right_record, unsafe node.right_record_type)
    )
  }

  private func branch(_ value: UInt64, _ type: UInt8) throws(Damage) -> Branch {
    switch Int32(type) {
    case MMDB_RECORD_TYPE_SEARCH_NODE: return .node(UInt32(truncatingIfNeeded: value))
    case MMDB_RECORD_TYPE_EMPTY: return .nothing
    // 16 zeros lie between the tree and the data.
    case MMDB_RECORD_TYPE_DATA where value >= UInt64(nodeCount) + 16:
      return .record(UInt32(truncatingIfNeeded: value - UInt64(nodeCount) - 16))
    default: throw Damage("a branch of its tree leads nowhere")
    }
  }

  /// The country of a record; 0 when it has none.
  private func country(_ offset: UInt32) throws(Damage) -> UInt16 {
    // SAFETY: zeros, for the library to write over.
    var data = unsafe MMDB_entry_data_s()
    // SAFETY: the database is open; the library checks the offset.
    let status = unsafe vmfence_mmdb_country(database, offset, &data)
    if status == MMDB_LOOKUP_PATH_DOES_NOT_MATCH_DATA_ERROR { return 0 }
    guard status == MMDB_SUCCESS else { throw Damage(Self.text(status)) }
    guard unsafe data.has_data, unsafe data.type == UInt32(MMDB_DATA_TYPE_UTF8_STRING), unsafe data.data_size == 2,
      let text = unsafe data.utf8_string
    else { return 0 }
    // SAFETY: the library says that so many bytes are there.
    return Self.code(unsafe [UInt8(bitPattern: text[0]), UInt8(bitPattern: text[1])]) ?? 0
  }

  private func walk() throws(Damage) -> [(range: ClosedRange<IPAddress>, country: UInt16)] {
    var result: [(range: ClosedRange<IPAddress>, country: UInt16)] = []
    var countries: [UInt32: UInt16] = [:]
    // In IPv6's tree IPv4 is what begins with 96 zeros; other networks (6to4, mapped addresses) lead to the same nodes again.
    // SAFETY: open.
    let v4Root = unsafe isIPv6 ? database.pointee.ipv4_start_node.node_value : 0
    if isIPv6, v4Root == 0 { throw Damage("its tree has a loop") }
    var visited = 0
    var stack: [(branch: Branch, high: UInt64, low: UInt64, depth: Int)] = [(.node(0), 0, 0, 0)]
    let width = isIPv6 ? 128 : 32
    while let (branch, high, low, depth) = stack.popLast() {
      let isV4 = !isIPv6 || depth >= 96 && high == 0 && low >> 32 == 0
      switch branch {
      case .nothing: continue
      case .record(let offset):
        let known = countries[offset]
        let country = if let known { known } else { try country(offset) }
        countries[offset] = country
        if country != 0 { Self.add(Self.range(high, low, depth, isV4, isIPv6), country, to: &result) }
      case .node(let number):
        if isIPv6, number == v4Root, !isV4 { continue }
        visited += 1
        guard depth < width, visited <= Int(nodeCount) * 2 else { throw Damage("its tree has a loop") }
        let (left, right) = try branches(number)
        // The right one waits below, so that addresses come in order.
        let place = isIPv6 ? depth : depth + 96
        let bit: (UInt64, UInt64) = place < 64 ? (1 << UInt64(63 - place), 0) : (0, 1 << UInt64(127 - place))
        stack.append((right, high | bit.0, low | bit.1, depth + 1))
        stack.append((left, high, low, depth + 1))
      }
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
