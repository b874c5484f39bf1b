import VMFenceCore

/// A rule as the kernel shows it: where it is, its comment, and what its counter counted.
struct ReadRule {
  var table = ""
  var chain = ""
  var comment = ""
  var count: TrafficCount?

  /// Attributes of linux/netfilter/nf_tables.h: table 1, chain 2, expressions 4, user data 7 (in it, 0 is the comment).
  init(_ message: NetlinkMessage, _ bytes: RawSpan) throws(NetlinkError) {
    var rule = (table: "", chain: "", comment: "", count: TrafficCount?.none)
    try NetlinkAttribute.forEach(in: bytes, try message.attributes(of: bytes).range) { (part) throws(NetlinkError) in
      switch part.type {
      case 1: rule.table = part.text(bytes)
      case 2: rule.chain = part.text(bytes)
      case 4: rule.count = try TrafficCount.find(in: bytes, part.value)
      case 7:
        let value = part.value
        guard value.count >= 2, bytes.u8(value.lowerBound) == 0 else { return }
        let length = min(Int(bytes.u8(value.lowerBound + 1)), value.count - 2)
        let start = value.lowerBound + 2
        rule.comment = NetlinkAttribute(type: 0, value: start..<start + length).text(bytes)
      default: break
      }
    }
    (table, chain, comment, count) = rule
  }
}

extension ChainSpecification {
  /// nil for a chain of another table. Attributes: table 1, name 3, hook 4 (number 1, priority 2).
  init?(_ message: NetlinkMessage, _ bytes: RawSpan, table: String) throws(NetlinkError) {
    var (chainTable, name) = ("", "")
    var hook: UInt32?
    var priority: UInt32 = 0
    try NetlinkAttribute.forEach(in: bytes, try message.attributes(of: bytes).range) { (part) throws(NetlinkError) in
      switch part.type {
      case 1: chainTable = part.text(bytes)
      case 3: name = part.text(bytes)
      case 4:
        try NetlinkAttribute.forEach(in: bytes, part.value) { (field) throws(NetlinkError) in
          if field.type == 1 { hook = try field.u32(bytes) }
          if field.type == 2 { priority = try field.u32(bytes) }
        }
      default: break
      }
    }
    guard chainTable == table else { return nil }
    let known = hook.flatMap { Int32(exactly: $0).flatMap(Hook.init(rawValue:)) }
    // A hook that we do not know makes a chain that is none of ours.
    if hook != nil, known == nil { return nil }
    self.init(name: name, base: known.map { Base(hook: $0, priority: Int32(bitPattern: priority)) })
  }
}

/// Where an element is.
struct ElementPlace: Hashable {
  var set: SetName
  var key: [UInt8]
}

/// An element of one of the sets that hold measures.
struct ReadElement {
  var set: SetName
  var key: [UInt8]
  /// nil: not ours.
  var tag: ElementTag?
  /// When it ends on the kernel's clock, in nanoseconds; nil: never.
  var deadline: UInt64?
  var count: TrafficCount?
  /// The limit that it names.
  var limit: String?

  static func forEach(
    in message: NetlinkMessage, _ bytes: RawSpan, of set: SetName, _ body: (ReadElement) -> Void
  ) throws(NetlinkError) {
    // The kernel says what is left when it writes the message, and a long listing takes a while.
    let now = SinkContents.now
    try forEachItem(in: message, bytes) { (item) throws(NetlinkError) in
      body(try ReadElement(item, bytes, set, at: now))
    }
  }

  /// The keys only, of any set.
  static func forEachKey(
    in message: NetlinkMessage, _ bytes: RawSpan, _ body: (NetlinkAttribute) -> Void
  ) throws(NetlinkError) {
    try forEachItem(in: message, bytes) { (item) throws(NetlinkError) in
      try NetlinkAttribute.forEach(in: bytes, item) { (part) throws(NetlinkError) in
        guard part.type == 1 else { return }
        try NetlinkAttribute.forEach(in: bytes, part.value) { if $0.type == 1 { body($0) } }
      }
    }
  }

  /// Interfaces that keys begin with, and what was counted for them, of a set whose elements count.
  static func forEachCount(
    in message: NetlinkMessage, _ bytes: RawSpan, _ body: (_ interface: String, TrafficCount) -> Void
  ) throws(NetlinkError) {
    try forEachItem(in: message, bytes) { (item) throws(NetlinkError) in
      var (interface, count) = ("", TrafficCount())
      try NetlinkAttribute.forEach(in: bytes, item) { (part) throws(NetlinkError) in
        switch part.type {
        case 1:
          try NetlinkAttribute.forEach(in: bytes, part.value) { value in
            guard value.type == 1 else { return }
            interface = String(decoding: value.copiedBytes(bytes).prefix(16).prefix { $0 != 0 }, as: UTF8.self)
          }
        case 7: count = try TrafficCount(expression: part.value, bytes) ?? count
        case 11: count = try TrafficCount.find(in: bytes, part.value) ?? count
        default: break
        }
      }
      body(interface, count)
    }
  }

  /// Attribute 3 is the list of elements.
  private static func forEachItem(
    in message: NetlinkMessage, _ bytes: RawSpan, _ body: (Range<Int>) throws(NetlinkError) -> Void
  ) throws(NetlinkError) {
    try NetlinkAttribute.forEach(in: bytes, try message.attributes(of: bytes).range) { (list) throws(NetlinkError) in
      guard list.type == 3 else { return }
      try NetlinkAttribute.forEach(in: bytes, list.value) { (item) throws(NetlinkError) in try body(item.value) }
    }
  }

  /// Attributes of an element: key 1 (value 1), expiration 5, user data 6, expression 7, object 9, expressions 11.
  private init(_ item: Range<Int>, _ bytes: RawSpan, _ set: SetName, at now: UInt64) throws(NetlinkError) {
    var element = (
      key: [UInt8](), tag: ElementTag?.none, deadline: UInt64?.none, count: TrafficCount?.none, limit: String?.none
    )
    try NetlinkAttribute.forEach(in: bytes, item) { (part) throws(NetlinkError) in
      switch part.type {
      case 1:
        try NetlinkAttribute.forEach(in: bytes, part.value) { value in
          if value.type == 1 { element.key = value.copiedBytes(bytes) }
        }
      case 5: element.deadline = SinkContents.deadline(in: try part.u64(bytes), from: now)
      case 6: element.tag = ElementTag(bytes, part.value)
      case 7: element.count = try TrafficCount(expression: part.value, bytes)
      case 9: element.limit = part.text(bytes)
      case 11: element.count = try TrafficCount.find(in: bytes, part.value)
      default: break
      }
    }
    self.set = set
    (key, tag, deadline, count, limit) = element
  }

  var place: ElementPlace { ElementPlace(set: set, key: key) }

  /// The interface that the key begins with; nil for a set of the host, or when the key is too short.
  var interface: String? {
    if case .blocks(let blocks) = set, blocks.isHost { return nil }
    guard key.count >= 16 else { return nil }
    return String(decoding: key.prefix(16).prefix { $0 != 0 }, as: UTF8.self)
  }

  /// The measure that it is a part of; nil when key, set and tag do not go together.
  var measureKey: FirewallMeasure.Key? {
    guard let tag else { return nil }
    switch (set, tag.kind) {
    case (.quarantine, .quarantine): return .init(scope: .domain(tag.domain), kind: .quarantine)
    case (.limit, .rateLimit):
      return .init(scope: .domain(tag.domain), kind: .rateLimit(packetsPerSecond: tag.packetsPerSecond))
    case (.blocks(let blocks), .hostBlock) where blocks.isHost: return blockKey(blocks, .host, at: 0)
    case (.blocks(let blocks), .domainBlock) where !blocks.isHost: return blockKey(blocks, .domain(tag.domain), at: 16)
    default: return nil
    }
  }

  private func blockKey(_ blocks: BlockSet, _ scope: FirewallScope, at offset: Int) -> FirewallMeasure.Key? {
    guard key.count == offset + blocks.family.bitWidth / 8 else { return nil }
    let address = key.withRawSpan { bytes in
      blocks.family == .v4
        ? IPAddress(v4: bytes.u32(offset)) : IPAddress(v6High: bytes.u64(offset), low: bytes.u64(offset + 8))
    }
    return .init(scope: scope, kind: .block(IPNetwork(address, prefix: Int(blocks.prefix))))
  }
}
