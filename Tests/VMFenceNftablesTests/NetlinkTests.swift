import Testing
import VMFenceCore

@testable import VMFenceNftables

/// Answers of the kernel, whole and damaged.
@Suite("Netlink messages are checked before they are used")
struct NetlinkTests {
  /// A message header in host order; `length` of nil is the right one.
  private func message(_ type: UInt16, _ payload: [UInt8], flags: UInt16 = 2, length: Int? = nil) -> [UInt8] {
    let count = UInt32(length ?? 16 + payload.count)
    return host(count) + host(type) + host(flags) + host(UInt32(7)) + host(UInt32(9)) + payload
  }

  private func attribute(_ type: UInt16, _ value: [UInt8], length: Int? = nil) -> [UInt8] {
    let padding = [UInt8](repeating: 0, count: (4 - value.count % 4) % 4)
    return host(UInt16(length ?? 4 + value.count)) + host(type) + value + padding
  }

  private func host<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
    (0..<Value.bitWidth / 8).map { UInt8(truncatingIfNeeded: value.littleEndian >> Value($0 * 8)) }
  }

  private func big(_ value: UInt64) -> [UInt8] {
    (0..<8).reversed().map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
  }

  private let general: [UInt8] = [7, 0, 0, 0]

  private func elementMessage() -> [UInt8] {
    var data: [UInt8] = []
    ElementTag(block("10.77.0.99", for: vm1, decision: 77)).write(to: &data)
    var key = ElementKey()
    key.append(interface: "vif1.0")
    key.append(IPAddress("10.77.0.99")!)
    let counter = attribute(1, Array("counter\0".utf8)) + attribute(2, attribute(1, big(840)) + attribute(2, big(10)))
    let item =
      attribute(1, attribute(1, (0..<key.count).map { key.bytes[$0] })) + attribute(4, big(600_000))
      + attribute(5, big(599_000)) + attribute(6, data) + attribute(7, counter)
    return message(
      0x0A0C,
      general + attribute(1, Array("vmfence\0".utf8)) + attribute(2, Array("block4\0".utf8))
        + attribute(3, attribute(1, item)))
  }

  private func elements(_ bytes: [UInt8], of set: SetName) throws -> [ReadElement] {
    var found: [ReadElement] = []
    try bytes.withRawSpan { span in
      try NetlinkMessage.forEach(in: span) { (message) throws(NetlinkError) in
        try ReadElement.forEach(in: message, span, of: set) { found.append($0) }
      }
    }
    return found
  }

  private let blocks = SetName.blocks(BlockSet(.v4, prefix: 32, isHost: false))

  @Test("an element is read with its key, its remaining time, its tag and its counter")
  func element() throws {
    let before = SinkContents.now
    let found = try #require(try elements(elementMessage(), of: blocks).first)
    #expect(found.measureKey == block("10.77.0.99", for: vm1).key)
    #expect(found.interface == "vif1.0")
    #expect(found.tag?.decision == 77)
    #expect(found.tag?.comment == "sid 1:1000001")
    let read = try #require(found.deadline) - 599_000_000_000
    #expect(before <= read && read <= SinkContents.now)
    #expect(found.count == TrafficCount(packets: 10, bytes: 840))
  }

  @Test("an element of another kind than its set is no measure")
  func mixed() throws {
    #expect(try elements(elementMessage(), of: .quarantine).first?.measureKey == nil)
    #expect(
      try elements(elementMessage(), of: .blocks(BlockSet(.v4, prefix: 32, isHost: true))).first?.measureKey == nil)
    #expect(
      try elements(elementMessage(), of: .blocks(BlockSet(.v6, prefix: 128, isHost: false))).first?.measureKey == nil)
  }

  private static let zeros = [UInt8](repeating: 0, count: 12)
  private static let brokenMessages: [(String, [UInt8])] = [
    ("a header that breaks off", [1, 2, 3]), ("a message of 0 bytes", [0, 0, 0, 0] + zeros),
    ("a message shorter than its header", [15, 0, 0, 0] + zeros),
    ("a message longer than the bytes", [17, 0, 0, 0] + zeros),
    ("a length of 32 bits", [255, 255, 255, 255] + zeros),
  ]

  @Test("lengths that are wrong are refused", arguments: brokenMessages)
  func badMessages(what: String, bytes: [UInt8]) throws {
    #expect(throws: NetlinkError.self, "\(what)") { try elements(bytes, of: blocks) }
  }

  @Test("attributes that are wrong are refused", arguments: [0, 3, 9, 0xFFFF])
  func badAttributes(length: Int) throws {
    let bytes = message(0x0A0C, general + attribute(3, [0, 0, 0, 0], length: length))
    #expect(throws: NetlinkError.self) { try elements(bytes, of: blocks) }
  }

  @Test("damaged anywhere, a message is read or refused, and nothing else")
  func damage() throws {
    let whole = elementMessage()
    for index in whole.indices {
      for value in [0, 1, 0x7F, 0xFF] as [UInt8] {
        var bytes = whole
        bytes[index] = value
        _ = try? elements(bytes, of: blocks).map(\.measureKey)
        readEverything(bytes)
      }
      _ = try? elements(Array(whole[..<index]), of: blocks)
    }
    var generator = SystemRandomNumberGenerator()
    for _ in 0..<20_000 {
      var bytes = whole
      for _ in 0..<Int.random(in: 1...6, using: &generator) {
        bytes[Int.random(in: bytes.indices, using: &generator)] = UInt8.random(in: .min ... .max, using: &generator)
      }
      readEverything(bytes)
    }
  }

  /// All parsers; what they make of it does not matter, only that they come back.
  private func readEverything(_ bytes: [UInt8]) {
    var reader = ForeignChangeReader(family: .bridge, table: "vmfence", own: 1)
    for set in [blocks, .quarantine, .limit(0), .blocks(BlockSet(.v6, prefix: 64, isHost: true))] {
      _ = try? elements(bytes, of: set).map { ($0.measureKey, $0.interface) }
    }
    bytes.withRawSpan { span in
      try? NetlinkMessage.forEach(in: span) { (message) throws(NetlinkError) in
        _ = try? ReadRule(message, span)
        _ = try? ChainSpecification(message, span, table: "vmfence")
        _ = try? message.error(in: span)
      }
      try? reader.read(span) { _ in }
    }
  }

  @Test("names of sets are read as they are written, and no others")
  func setNames() {
    for family in [IPAddress.Family.v4, .v6] {
      for prefix in 0...family.bitWidth {
        for isHost in [false, true] {
          let set = BlockSet(family, prefix: prefix, isHost: isHost)
          #expect(BlockSet(name: set.name) == set)
        }
      }
    }
    for name in [
      "", "net4", "net4-", "net4-33", "net4-32", "net4--1", "net4-08", "net5-8", "block", "block4-8", "hosts",
      "xblock4",
    ] {
      #expect(BlockSet(name: name) == nil, "\(name)")
    }
  }

  @Test("the stand-in for a port is no interface's name, and differs from domain to domain")
  func placeholders() {
    let names = (0..<1_000).map { PlaceholderPort.name(of: DomainUUID(high: $0, low: ~$0 &* 0x9E37_79B9_7F4A_7C15)) }
    #expect(Set(names).count == names.count)
    #expect(names.allSatisfy { $0.utf8.count == 15 && !NetworkPort.isInterfaceName($0) })
  }

  @Test(
    "names that no interface can have are left out, and a port belongs to one domain",
    arguments: ["", "a/b", "sixteen-letters-", "a b", ".", "..", "a:b", "tab\t"])
  func interfaces(name: String) {
    #expect(!NetworkPort.isInterfaceName(name))
    let assigned = SinkContents.assign([vm1: [port(name, 1), port("vif1.0", 1)], vm2: [port("vif1.0", 2)]])
    #expect(assigned == [vm1: [port("vif1.0", 1)]])
  }
}
