import Testing
import VMFenceCore
import VMFenceDetection

/// Contents that are one byte again and again are searched for in another way than all others; nobody may see it.
@Suite("Runs of one byte") struct RunSearchTests {
  private struct Content {
    var byte: UInt8
    var count: Int
    var ignoresCase: Bool

    func stands(in payload: [UInt8]) -> Bool {
      var length = 0
      for byte in payload {
        let isEqual = byte == self.byte || ignoresCase && (byte | 0x20) == self.byte | 0x20
        length = isEqual ? length + 1 : 0
        if length == count { return true }
      }
      return false
    }
  }

  private static let contents = [
    Content(byte: 0x41, count: 8, ignoresCase: false), Content(byte: 0x41, count: 9, ignoresCase: false),
    Content(byte: 0x41, count: 16, ignoresCase: false), Content(byte: 0x41, count: 31, ignoresCase: false),
    Content(byte: 0x42, count: 12, ignoresCase: true), Content(byte: 0x90, count: 14, ignoresCase: true),
    Content(byte: 0x00, count: 11, ignoresCase: false), Content(byte: 0x00, count: 4, ignoresCase: false),
  ]

  private static func rules(_ contents: [Content]) -> String {
    contents.enumerated().map { index, content in
      let pattern = Array(repeating: content.byte.hexadecimal(width: 2), count: content.count).joined(separator: " ")
      let letters = content.ignoresCase ? "nocase; " : ""
      return "alert udp any any -> any any (content:\"|\(pattern)|\"; \(letters)sid:\(index + 1);)"
    }.joined(separator: "\n")
  }

  @Test("are found exactly where they are, at every place and beside each other")
  func everywhere() throws {
    var random = SeededGenerator(seed: 7)
    for chosen in [Self.contents, Array(Self.contents.prefix(1)), Array(Self.contents[3...5])] {
      var engine = try EngineUnderTest(Self.rules(chosen))
      for _ in 0..<600 {
        var payload: [UInt8] = []
        for _ in 0..<Int.random(in: 0...9, using: &random) {
          let byte: UInt8 = [0x41, 0x42, 0x62, 0x90, 0x00, 0x43].randomElement(using: &random) ?? 0
          payload += Array(repeating: byte, count: Int.random(in: 1...33, using: &random))
        }
        let expected = chosen.indices.filter { chosen[$0].stands(in: payload) }.map { UInt32($0 + 1) }
        #expect(engine.inspect(Frame().with { $0.payload = payload }.udp) == expected, "\(payload)")
      }
    }
  }

  @Test("of a stream's window are found across what was inspected before")
  func acrossWindows() throws {
    var engine = try EngineUnderTest(
      "alert tcp any any -> any any (flow:established; content:\"AAAAAAAAAAAAAAAAAAAA\"; sid:1;)")
    var connection = Connection()
    var fired = engine.inspect(connection.handshake()).flatMap { $0 }
    for text in ["begin AAAAAAAA", "AAAAAA", "AAAAAA end"] {
      fired += engine.inspect(connection.fromClient(text))
      fired += engine.inspect(connection.fromServer("yes"))
    }
    #expect(fired == [1])
  }

  @Test("more of them than are looked for at once are found as well")
  func many() throws {
    let contents = (0..<100).map { Content(byte: UInt8($0 + 100), count: 10, ignoresCase: false) }
    var engine = try EngineUnderTest(Self.rules(contents))
    for (index, content) in contents.enumerated() {
      let payload = [1, 2, 3] + Array(repeating: content.byte, count: 10) + [4]
      #expect(engine.inspect(Frame().with { $0.payload = payload }.udp) == [UInt32(index + 1)])
    }
  }
}
