/// What a counter of the kernel counted.
public struct TrafficCount: Hashable, Sendable {
  public var packets: UInt64
  public var bytes: UInt64

  public init(packets: UInt64 = 0, bytes: UInt64 = 0) {
    self.packets = packets
    self.bytes = bytes
  }

  public static func += (a: inout TrafficCount, b: TrafficCount) {
    a.packets &+= b.packets
    a.bytes &+= b.bytes
  }

  /// The first counter in a list of expressions.
  package static func find(in bytes: RawSpan, _ list: Range<Int>) throws(NetlinkError) -> TrafficCount? {
    var found: TrafficCount?
    try NetlinkAttribute.forEach(in: bytes, list) { (item) throws(NetlinkError) in
      if found == nil { found = try TrafficCount(expression: item.value, bytes) }
    }
    return found
  }

  /// nil when the expression is another one. Expression: name 1, data 2; counter: bytes 1, packets 2.
  package init?(expression: Range<Int>, _ bytes: RawSpan) throws(NetlinkError) {
    var isCounter = false
    var count = TrafficCount()
    try NetlinkAttribute.forEach(in: bytes, expression) { (part) throws(NetlinkError) in
      if part.type == 1 { isCounter = part.text(bytes) == "counter" }
      guard part.type == 2, isCounter else { return }
      try NetlinkAttribute.forEach(in: bytes, part.value) { (field) throws(NetlinkError) in
        if field.type == 1 { count.bytes = try field.u64(bytes) }
        if field.type == 2 { count.packets = try field.u64(bytes) }
      }
    }
    guard isCounter else { return nil }
    self = count
  }
}
