import Foundation
import Testing
import VMFenceBlock

@Suite struct NBDHandshakeTests {
  private static let greeted = RawClient.big(3, 4)
  private static func go(_ name: String, option: UInt32 = 7, requests: [UInt16] = []) -> [UInt8] {
    let bytes = Array(name.utf8)
    return RawClient.option(
      option,
      RawClient.big(UInt64(bytes.count), 4) + bytes + RawClient.big(UInt64(requests.count), 2)
        + requests.flatMap { RawClient.big(UInt64($0), 2) })
  }
  private static func contexts(_ option: UInt32, _ name: String, _ queries: [String]) -> [UInt8] {
    RawClient.option(
      option,
      RawClient.big(UInt64(name.utf8.count), 4) + Array(name.utf8) + RawClient.big(UInt64(queries.count), 4)
        + queries.flatMap { RawClient.big(UInt64($0.utf8.count), 4) + Array($0.utf8) })
  }

  /// The types of the replies to a conversation, until the server hangs up, enters transmission or the count is reached.
  private func replies(_ client: RawClient, _ count: Int) throws -> [UInt32] {
    try (0..<count).map { _ in
      let header = try client.receive(20)
      try #require(header.count == 20 && header[..<8] == [0, 3, 0xE8, 0x89, 4, 0x55, 0x65, 0xA9])
      let length = header[16...].reduce(0) { $0 << 8 | Int($1) }
      _ = try client.receive(length)
      return header[12..<16].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    }
  }

  private static let error: UInt32 = 1 << 31

  private static let options: [(String, [UInt8], [UInt32])] = [
    ("list", RawClient.option(3), [UInt32(2), 1]),
    ("list with data", RawClient.option(3, [1]), [error | 3]),
    ("info", go("disk", option: 6), [3, 3, 1]),
    ("info with names", go("", option: 6, requests: [1, 3, 77]), [3, 3, 3, 1]),
    ("another export", go("other", option: 6), [error | 6]),
    ("a name longer than the option", RawClient.option(6, RawClient.big(99, 4) + [0, 0]), [error | 3]),
    (
      "a name of four thousand million bytes", RawClient.option(6, RawClient.big(0xFFFF_FFFF, 4) + [0, 0]), [error | 3]
    ),
    ("too many requests", RawClient.option(6, RawClient.big(0, 4) + [255, 255]), [error | 3]),
    ("an empty info", RawClient.option(6), [error | 3]),
    ("start TLS", RawClient.option(5), [error | 1]),
    ("an unknown option", RawClient.option(0xFFFF_FFFF, [1, 2, 3]), [error | 1]),
    ("a context before structured replies", contexts(10, "", ["base:allocation"]), [error | 3]),
    ("list contexts", contexts(9, "", []), [4, 1]),
    ("list contexts of a namespace", contexts(9, "disk", ["base:"]), [4, 1]),
    ("structured, context", RawClient.option(8) + contexts(10, "", ["x:y", "base:allocation"]), [1, 4, 1]),
    ("structured, no context", RawClient.option(8) + contexts(10, "", ["qemu:dirty-bitmap:x"]), [1, 1]),
    ("structured with data", RawClient.option(8, [0]), [error | 3]),
    ("context of another export", RawClient.option(8) + contexts(10, "other", ["base:allocation"]), [1, error | 6]),
    (
      "queries cut off", RawClient.option(8) + RawClient.option(10, RawClient.big(0, 4) + RawClient.big(9, 4)),
      [1, error | 3]
    ),
    ("a million queries", RawClient.option(9, RawClient.big(0, 4) + RawClient.big(1_000_000, 4)), [error | 3]),
    ("abort", RawClient.option(2), [1]),
  ]

  @Test(arguments: options.indices) func everyOptionIsAnsweredAsTheProtocolSays(index: Int) throws {
    let (name, bytes, expected) = Self.options[index]
    let disk = try ServedDisk()
    let client = try RawClient(disk.socketPath)
    _ = try client.receive(18)
    // A byte at a time: no answer depends on how it arrives.
    for byte in Self.greeted + bytes { try client.send([byte]) }
    #expect(try replies(client, expected.count) == expected, "\(name)")
    if name != "abort" {
      try client.send(RawClient.option(1))
      #expect(try client.receive(10) == [0, 0, 0, 0, 0, 0x10, 0, 0] + [0x0D, 0xED])
      if bytes.prefix(16) != RawClient.option(8)[...] { #expect(try client.ask(0, 0, 4).data == [0, 0, 0, 0]) }
    }
    _ = try disk.stop()
  }

  private static let random: [UInt8] = (0..<4096).map { (index: Int) -> UInt8 in
    UInt8(truncatingIfNeeded: index &* 2_654_435_761 >> 7)
  }
  private static let flood: [UInt8] = greeted + (0..<65).flatMap { _ in RawClient.option(99) }
  private static let broken: [(String, [UInt8])] = [
    ("unknown flags", RawClient.big(0xFFFF_FFFF, 4)),
    ("oldstyle", RawClient.big(0, 4)),
    ("no magic", greeted + [UInt8](repeating: 0x41, count: 16)),
    ("an option of 4 GiB", greeted + RawClient.option(6, length: .max)),
    ("an option of more than is taken", greeted + RawClient.option(6, length: 16_385)),
    ("a flood of options", flood),
    ("another export by its name", greeted + RawClient.option(1, Array("other".utf8))),
    ("random bytes", random),
  ]

  @Test(arguments: broken.indices) func aClientThatBreaksTheHandshakeIsHungUpOn(index: Int) throws {
    let (name, bytes) = Self.broken[index]
    let disk = try ServedDisk()
    let client = try RawClient(disk.socketPath)
    try? client.send(bytes)
    #expect(try client.isHungUp(), "\(name)")
    let other = try RawClient(disk.socketPath)
    try other.enter()
    #expect(try other.ask(0, 0, 1).error == 0)
    #expect(try disk.stop().refusedClients == 1)
  }

  @Test func withoutNoZeroesThePaddingIsSent() throws {
    let disk = try ServedDisk()
    let client = try RawClient(disk.socketPath)
    _ = try client.receive(18)
    try client.send(RawClient.big(1, 4) + RawClient.option(1, Array("disk".utf8)))
    #expect(try client.receive(134).suffix(124).allSatisfy { $0 == 0 })
    #expect(try client.ask(0, 0, 1).error == 0)
    _ = try disk.stop()
  }
}
