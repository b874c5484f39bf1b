import Testing
import VMFenceCore

private let guest = DomainUUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")!
private let other = DomainUUID("11111111-1111-4111-8111-111111111111")!
private let start = Timestamp(seconds: 1_800_000_000)

private func block(_ network: String, for seconds: Int64?, by decision: UInt64) -> FirewallMeasure {
  FirewallMeasure(
    scope: .domain(guest), kind: .block(IPNetwork(network)!), expires: seconds.map { start + .seconds($0) },
    decision: decision)
}

@Suite("The book of guests' policies")
struct GuestPolicyBookTests {
  @Test("a version rises when something changed, and not because time went by")
  func versions() throws {
    var book = GuestPolicyBook()
    let both = [block("192.0.2.1", for: 10, by: 1), block("192.0.2.2", for: 60, by: 2)]
    let first = try book.policy(for: guest, measures: both, at: start).policy
    #expect(first.version == 1_800_000_000_000, "milliseconds of the clock")
    #expect(try book.policy(for: guest, measures: both.reversed(), at: start + .seconds(5)).policy == first)
    // The first ran out: the guest has ended it itself.
    #expect(try book.policy(for: guest, measures: both, at: start + .seconds(10)).policy == first)
    #expect(try book.policy(for: guest, measures: [both[1]], at: start + .seconds(11)).policy == first)
    // Taken back before its time.
    let empty = try book.policy(for: guest, measures: [], at: start + .seconds(12)).policy
    #expect(empty.version == 1_800_000_012_000 && empty.measures.isEmpty && empty.digest != first.digest)
    // Twice within a millisecond, and with a clock that went back.
    let third = try book.policy(for: guest, measures: both, at: start + .seconds(1)).policy
    #expect(third.version == empty.version + 1)
    // What a guest in quarantine may reach is part of it.
    let exceptions = QuarantineExceptions(networks: [IPNetwork("192.0.2.9")!])
    let fourth = try book.policy(for: guest, measures: both, exceptions: exceptions, at: start + .seconds(1)).policy
    #expect(fourth.version == third.version + 1 && fourth.exceptions == exceptions)
  }

  @Test("each guest has a book of its own; a forgotten one goes on with the clock")
  func guests() throws {
    var book = GuestPolicyBook()
    let first = try book.policy(for: guest, measures: [block("192.0.2.1", for: 10, by: 1)], at: start).policy
    let others = try book.policy(for: other, measures: [block("192.0.2.1", for: 10, by: 1)], at: start).policy
    #expect(others.measures.isEmpty)
    book.forget(guest)
    let again = try book.policy(for: guest, measures: [], at: start + .seconds(1)).policy
    #expect(again.version > first.version)
  }

  @Test("what a guest holds is outbid, but no claim uses the versions up")
  func outbid() throws {
    var book = GuestPolicyBook()
    let first = try book.policy(for: guest, measures: [], at: start).policy
    book.outbid(first.version - 1, for: guest)
    #expect(try book.policy(for: guest, measures: [], at: start).policy == first)
    book.outbid(first.version + 1_000, for: guest)
    let higher = try book.policy(for: guest, measures: [], at: start).policy
    #expect(higher.version == first.version + 1_001)
    #expect(try book.policy(for: guest, measures: [], at: start + .seconds(9)).policy == higher)
    book.outbid(.max, for: guest)
    book.outbid(GuestPolicyBook.highestClaim, for: guest)
    #expect(try book.policy(for: guest, measures: [], at: start).policy == higher)
    #expect(throws: GuestPolicyError.self) {
      try book.policy(for: guest, measures: [], exceptions: .init(allowsDHCP: true), at: Timestamp(seconds: -1))
    }
  }
}
