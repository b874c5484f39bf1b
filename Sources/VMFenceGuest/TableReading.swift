import VMFenceCore

/// What was read of our table. The kernel's answers are checked like everybody's.
struct TableReading {
  /// nil when no rule has one: then the table is not ours.
  private(set) var record: PolicyRecord?
  /// What the rules of each chain dropped.
  private(set) var counts: [String: TrafficCount] = [:]
  private(set) var sets: [String] = []
  private(set) var measures: [PolicyInForce.Measure] = []

  /// Attributes: table 1, chain 2, expressions 4, user data 7.
  mutating func addRule(_ message: NetlinkMessage, _ bytes: RawSpan) throws(NetlinkError) {
    var rule = (table: "", chain: "", count: TrafficCount?.none, data: Range<Int>?.none)
    try Self.forEachPart(message, bytes) { (part) throws(NetlinkError) in
      switch part.type {
      case 1: rule.table = part.text(bytes)
      case 2: rule.chain = part.text(bytes)
      case 4: rule.count = try TrafficCount.find(in: bytes, part.value)
      case 7: rule.data = part.value
      default: break
      }
    }
    // Older kernels list the rules of all tables.
    guard rule.table == GuestTable.name else { return }
    if let count = rule.count { counts[rule.chain, default: TrafficCount()] += count }
    if rule.chain == "about", let data = rule.data { record = PolicyRecord(UserData.decode(bytes, data).record) }
  }

  /// Attributes: table 1, name 2.
  mutating func addSet(_ message: NetlinkMessage, _ bytes: RawSpan) throws(NetlinkError) {
    var names = (table: "", set: "")
    try Self.forEachPart(message, bytes) { part in
      if part.type == 1 { names.table = part.text(bytes) }
      if part.type == 2 { names.set = part.text(bytes) }
    }
    if names.table == GuestTable.name { sets.append(names.set) }
  }

  /// Attribute 3 is the list of elements.
  mutating func addElements(_ message: NetlinkMessage, _ bytes: RawSpan, of set: String) throws(NetlinkError) {
    var found: [PolicyInForce.Measure] = []
    try Self.forEachPart(message, bytes) { (list) throws(NetlinkError) in
      guard list.type == 3 else { return }
      try NetlinkAttribute.forEach(in: bytes, list.value) { (item) throws(NetlinkError) in
        if let measure = try Self.measure(item.value, bytes, of: set) { found.append(measure) }
      }
    }
    measures += found
  }

  private static func forEachPart(
    _ message: NetlinkMessage, _ bytes: RawSpan, _ body: (NetlinkAttribute) throws(NetlinkError) -> Void
  ) throws(NetlinkError) {
    try NetlinkAttribute.forEach(in: bytes, try message.attributes(of: bytes).range, body)
  }

  /// Attributes of an element: key 1 (value 1), time left 5, user data 6. nil for one that is not ours.
  private static func measure(
    _ item: Range<Int>, _ bytes: RawSpan, of set: String
  ) throws(NetlinkError) -> PolicyInForce.Measure? {
    var element = (key: [UInt8](), left: UInt64?.none, data: Range<Int>?.none)
    try NetlinkAttribute.forEach(in: bytes, item) { (part) throws(NetlinkError) in
      switch part.type {
      case 1:
        try NetlinkAttribute.forEach(in: bytes, part.value) { value in
          if value.type == 1 { element.key = value.copiedBytes(bytes) }
        }
      case 5: element.left = try part.u64(bytes)
      case 6: element.data = part.value
      default: break
      }
    }
    guard let data = element.data else { return nil }
    let (comment, bytes) = UserData.decode(bytes, data)
    guard let record = MeasureRecord(bytes), let kind = kind(of: set, element.key, record) else { return nil }
    let suffix = "decision \(record.decision)"
    let words = comment.hasSuffix(suffix) ? String(comment.dropLast(suffix.count)) : comment
    return PolicyInForce.Measure(
      kind: kind, left: element.left.map { .milliseconds(Int64(clamping: $0)) }, decision: record.decision,
      comment: words.hasSuffix(" ") ? String(words.dropLast()) : words)
  }

  private static func kind(of set: String, _ key: [UInt8], _ record: MeasureRecord) -> FirewallMeasureKind? {
    // These have an element for each address family: one stands for both.
    if set == "quarantine" { return key == [2] ? .quarantine : nil }
    if set == "limited" { return key == [2] ? .rateLimit(packetsPerSecond: record.packetsPerSecond) : nil }
    guard let prefix = set.split(separator: "_").last.flatMap({ Int($0) }) else { return nil }
    let address: IPAddress? = key.withRawSpan { bytes in
      switch bytes.byteCount {
      case 4: IPAddress(v4: bytes.u32(0))
      case 16: IPAddress(v6High: bytes.u64(0), low: bytes.u64(8))
      default: nil
      }
    }
    return address.map { .block(IPNetwork($0, prefix: prefix)) }
  }
}
