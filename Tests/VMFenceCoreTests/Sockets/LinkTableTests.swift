import Testing
import VMFenceCore

/// A message about an interface, as the kernel writes it.
private struct LinkMessage {
  static let new: UInt16 = 16
  static let deleted: UInt16 = 17

  var type = LinkMessage.new
  var family: UInt8 = 0
  var number: UInt32
  var name: String?

  var bytes: [UInt8] {
    var payload: [UInt8] = [family, 0] + native(UInt16(1)) + native(number) + native(UInt32(0)) + native(UInt32(0))
    // One that is of no interest stands before the name.
    payload += native(UInt16(8)) + native(UInt16(13)) + native(UInt32(1_000))
    if let name {
      let text = Array(name.utf8) + [0]
      payload += native(UInt16(4 + text.count)) + native(UInt16(3)) + text
      payload += [UInt8](repeating: 0, count: (4 - text.count % 4) % 4)
    }
    return native(UInt32(16 + payload.count)) + native(type) + native(UInt16(0)) + native(UInt32(0))
      + native(UInt32(0)) + payload
  }

  private func native<Number: FixedWidthInteger>(_ number: Number) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(host: number)
    return bytes
  }
}

extension LinkTable {
  fileprivate mutating func take(_ bytes: [UInt8]) throws(NetlinkError) {
    try bytes.withRawSpan { (bytes) throws(NetlinkError) in
      try NetlinkMessage.forEach(in: bytes) { (message) throws(NetlinkError) in try take(message, bytes) }
    }
  }

  fileprivate mutating func take(_ messages: LinkMessage...) throws(NetlinkError) {
    try take(messages.flatMap(\.bytes))
  }
}

@Suite("Interfaces, by the kernel's messages")
struct LinkTableTests {
  private let vif = LinkMessage(number: 7, name: "vif1.0")

  @Test("what comes, goes, is renamed or made anew is told once; what only changes is not")
  func changes() throws {
    var table = LinkTable()
    try table.take(vif, LinkMessage(number: 8, name: "vif2.0"))
    #expect(table.number(of: "vif1.0") == 7 && table.number(of: "vif2.0") == 8 && table.number(of: "vif3.0") == 0)
    #expect(table.takeChanged() == ["vif1.0", "vif2.0"] && table.takeChanged().isEmpty)
    try table.take(vif)
    #expect(table.takeChanged().isEmpty)
    try table.take(LinkMessage(number: 7, name: "vif3.0"))
    #expect(table.number(of: "vif1.0") == 0 && table.number(of: "vif3.0") == 7)
    #expect(table.takeChanged() == ["vif1.0", "vif3.0"])
    // Within one look.
    try table.take(LinkMessage(type: LinkMessage.deleted, number: 8, name: "vif2.0"))
    try table.take(LinkMessage(number: 9, name: "vif2.0"))
    #expect(table.number(of: "vif2.0") == 9 && table.takeChanged() == ["vif2.0"])
    try table.take(LinkMessage(type: LinkMessage.deleted, number: 9, name: "vif2.0"))
    try table.take(LinkMessage(type: LinkMessage.deleted, number: 9, name: "vif2.0"))
    #expect(table.number(of: "vif2.0") == 0 && table.takeChanged() == ["vif2.0"])
  }

  @Test("made anew with the number that it had, it is another all the same")
  func sameNumber() throws {
    var table = LinkTable()
    try table.take(vif)
    _ = table.takeChanged()
    try table.take(LinkMessage(type: LinkMessage.deleted, number: 7, name: "vif1.0"), vif)
    #expect(table.takeChanged() == ["vif1.0"] && table.number(of: "vif1.0") == 7)
  }

  @Test("one that leaves its bridge is told as deleted by the bridge, and is there")
  func bridge() throws {
    var table = LinkTable()
    try table.take(vif)
    _ = table.takeChanged()
    try table.take(LinkMessage(type: LinkMessage.deleted, family: 7, number: 7, name: "vif1.0"))
    try table.take(LinkMessage(type: LinkMessage.new, family: 7, number: 9, name: "vif9.0"))
    // And an address.
    try table.take(LinkMessage(type: 20, number: 7, name: "vif1.0"))
    #expect(table.number(of: "vif1.0") == 7 && table.number(of: "vif9.0") == 0 && table.takeChanged().isEmpty)
  }

  @Test("a name whose interface was another's before: the news between were missed")
  func missed() throws {
    var table = LinkTable()
    try table.take(vif, LinkMessage(number: 12, name: "vif1.0"))
    #expect(table.number(of: "vif1.0") == 12)
    _ = table.takeChanged()
    try table.take(LinkMessage(type: LinkMessage.deleted, number: 7, name: "vif1.0"))
    #expect(table.number(of: "vif1.0") == 12 && table.takeChanged().isEmpty, "the old one's end is not the new one's")
  }

  @Test("what a whole list leaves out is gone; of one that broke off nothing is")
  func lists() throws {
    var table = LinkTable()
    for number in 1...4 { try table.take(LinkMessage(number: UInt32(number), name: "vif\(number).0")) }
    _ = table.takeChanged()
    table.beginList()
    try table.take(LinkMessage(number: 1, name: "vif1.0"))
    table.endList(isWhole: false)
    #expect(table.takeChanged().isEmpty && table.number(of: "vif4.0") == 4)
    table.beginList()
    try table.take(LinkMessage(number: 1, name: "vif1.0"), LinkMessage(number: 2, name: "new"))
    // News that come between: one is gone again, one came.
    try table.take(
      LinkMessage(number: 3, name: "vif3.0"), LinkMessage(type: LinkMessage.deleted, number: 3),
      LinkMessage(number: 5, name: "vif5.0"))
    table.endList(isWhole: true)
    #expect(table.takeChanged() == ["vif2.0", "new", "vif3.0", "vif4.0", "vif5.0"])
    #expect((1...5).map { table.number(of: "vif\($0).0") } == [1, 0, 0, 0, 5] && table.number(of: "new") == 2)
  }

  @Test("messages that are damaged are refused, and say nothing")
  func malformed() {
    let sound = vif.bytes
    var cases: [[UInt8]] = []
    // Its attributes overrun it; an attribute shorter than its own head; the header alone.
    for (at, value) in [(32, UInt8(200)), (32, 2), (40, 0xFF), (40, 3)] {
      var bytes = sound
      bytes[at] = value
      cases.append(bytes)
    }
    cases.append(LinkMessage(number: 0, name: "vif1.0").bytes)
    cases.append(LinkMessage(number: 7, name: "").bytes)
    cases.append(LinkMessage(number: 7, name: nil).bytes)
    cases.append([28, 0, 0, 0] + sound[4..<28])
    cases.append(Array(sound.dropLast(4)))
    for bytes in cases {
      var table = LinkTable()
      #expect(throws: NetlinkError.self, "\(bytes)") { try table.take(bytes) }
      #expect(table.number(of: "vif1.0") == 0 && table.takeChanged().isEmpty, "\(bytes)")
    }
  }

  @Test("whatever comes, it is taken or refused, and never a trap")
  func mutations() {
    var random = SystemRandomNumberGenerator()
    let sound = vif.bytes + LinkMessage(type: LinkMessage.deleted, number: 8, name: "vif2.0").bytes
    for _ in 0..<20_000 {
      var bytes = sound
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
      }
      var table = LinkTable()
      try? table.take(Array(bytes.prefix(Int.random(in: 0...bytes.count, using: &random))))
      #expect(table.takeChanged().count <= 2)
    }
  }

  @Test("no more are known than fit, and those that are go on")
  func limit() throws {
    var table = LinkTable()
    for number in 1...UInt32(LinkTable.limit + 10) { try table.take(LinkMessage(number: number, name: "i\(number)")) }
    #expect(table.number(of: "i\(LinkTable.limit)") != 0 && table.number(of: "i\(LinkTable.limit + 1)") == 0)
    try table.take(LinkMessage(number: 5, name: "renamed"))
    #expect(table.number(of: "renamed") == 5 && table.number(of: "i5") == 0)
    try table.take(
      LinkMessage(type: LinkMessage.deleted, number: 6), LinkMessage(number: 70_000, name: "later"))
    #expect(table.number(of: "later") == 70_000)
  }
}
