import Testing
import VMFenceCore

private let guest = DomainUUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")!
private let other = DomainUUID("11111111-1111-4111-8111-111111111111")!
private let start = Timestamp(seconds: 1_800_000_000)

private func cidr(_ text: String) -> IPNetwork { IPNetwork(text)! }

/// A policy with one of everything.
private func wholePolicy() throws -> GuestPolicy {
  try GuestPolicy(
    domain: guest, version: 7, issued: start,
    measures: [
      .init(.rateLimit(packetsPerSecond: 500), expires: start + .seconds(30), decision: 12),
      .init(.block(cidr("2001:db8:9::/64")), expires: start + .seconds(60), decision: 11, comment: "sid 1:2001219"),
      .init(.quarantine, expires: nil, decision: 13, comment: "by an administrator"),
      .init(.block(cidr("192.0.2.66")), expires: start + .seconds(600), decision: .max, comment: ""),
      .init(.block(cidr("198.51.100.0/24")), expires: nil, decision: 9, comment: "exactly thirty-two characters ok"),
    ],
    exceptions: QuarantineExceptions(networks: [cidr("2001:db8::5"), cidr("10.0.0.0/8")], allowsDHCP: true))
}

/// Bytes with the digest that belongs to them, so that what is wrong in them is looked at.
private func signed(_ bytes: [UInt8]) -> [UInt8] { bytes.dropLast(32) + SHA256.digest(of: Array(bytes.dropLast(32))) }

@Suite("A guest's policy")
struct GuestPolicyTests {
  @Test("comes back from its bytes as it was, and equal policies have equal bytes")
  func roundTrip() throws {
    let policy = try wholePolicy()
    let bytes = policy.encoded
    #expect(bytes.count == 56 + 5 * 72 + 2 * 20 + 32 && bytes.count <= GuestPolicy.byteLimit)
    #expect(try GuestPolicy(bytes) == policy)
    #expect(policy.digest == Array(bytes.suffix(32)))
    let turned = try GuestPolicy(
      domain: guest, version: 7, issued: start, measures: policy.measures.reversed(),
      exceptions: QuarantineExceptions(networks: policy.exceptions.networks.reversed(), allowsDHCP: true))
    #expect(turned.encoded == bytes)
    let empty = try GuestPolicy(domain: guest, version: 1, issued: start, measures: [])
    #expect(try GuestPolicy(empty.encoded) == empty)
  }

  @Test("has the bytes that its description draws")
  func layout() throws {
    let bytes = try wholePolicy().encoded
    #expect(Array(bytes[..<16]) == Array("VMFGUEST".utf8) + [0, 1, 0, 1, 0, 0, 1, 0xE8])
    #expect(Array(bytes[48..<56]) == [0, 5, 0, 2, 0, 0, 0, 0])
    // 192.0.2.66/32 comes after 198.51.100.0/24: wide networks first.
    #expect(Array(bytes[56..<68]) == [1, 4, 24, 0, 0, 0, 0, 0, 198, 51, 100, 0])
    #expect(Array(bytes[128..<140]) == [1, 4, 32, 0, 0, 0, 0, 0, 192, 0, 2, 66])
  }

  @Test("is refused when it breaks off anywhere, and when anything stands behind it")
  func truncation() throws {
    let bytes = try wholePolicy().encoded
    for count in 0..<bytes.count {
      #expect(throws: GuestPolicyError.self, "\(count) bytes") { try GuestPolicy(Array(bytes[..<count])) }
      // With a digest of its own it is still too short.
      if count >= 32 { #expect(throws: GuestPolicyError.self) { try GuestPolicy(signed(Array(bytes[..<count]))) } }
    }
    #expect(throws: GuestPolicyError.self) { try GuestPolicy(bytes + [0]) }
  }

  @Test("is refused with any bit turned")
  func damage() throws {
    let bytes = try wholePolicy().encoded
    for bit in 0..<bytes.count * 8 {
      var changed = bytes
      changed[bit / 8] ^= 1 << UInt8(bit % 8)
      #expect(throws: GuestPolicyError.self) { try GuestPolicy(changed) }
    }
  }

  @Test("is taken in its canonical form only, whatever any byte is changed to")
  func canonical() throws {
    let bytes = try wholePolicy().encoded
    var taken = 0
    for position in 0..<bytes.count - 32 {
      for value in [UInt8(0), 1, 2, 3, 4, 6, 0x20, 0x22, 0x7F, 0x80, 0xFF] where value != bytes[position] {
        var changed = bytes
        changed[position] = value
        changed = signed(changed)
        guard let policy = try? GuestPolicy(changed) else { continue }
        taken += 1
        #expect(policy.encoded == changed, "byte \(position) = \(value)")
      }
    }
    #expect(taken > 100, "versions, times and decisions may be anything")
  }

  /// Byte, what is written there, what the error says.
  static let wrong: [(offset: Int, bytes: [UInt8], code: GuestPolicyError.Code, words: String)] = [
    (0, [0], .malformed, "does not begin with VMFGUEST"), (8, [0, 2], .unsupported, "form 2"),
    (10, [0, 3], .unsupported, "flags"), (12, [0xFF, 0xFF, 0xFF, 0xFF], .malformed, "a length of 4294967295"),
    (12, [0, 0, 0, 0], .malformed, "a length of 0"), (16, [0, 0, 0, 0, 0, 0, 0, 0], .invalid, "version 0"),
    (40, [0x80], .invalid, "before 1970"), (48, [0xFF, 0xFF], .tooLarge, "65535 measures"),
    (48, [2, 1], .tooLarge, "513 measures"), (50, [0, 65], .tooLarge, "65 exceptions"),
    (48, [0, 4], .malformed, "length"), (52, [1], .malformed, "byte 52"), (56, [0], .malformed, "unknown kind 0"),
    (57, [5], .malformed, "address family 5"), (58, [33], .malformed, "a prefix of 33 of 32 bits"),
    (58, [7], .malformed, "bits behind its prefix"), (58, [0], .malformed, "bits behind its prefix"),
    (58, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], .invalid, "nearly everybody"), (59, [1], .malformed, "byte 59"),
    (60, [1], .malformed, "byte 60"), (68, [1], .malformed, "byte 68"), (80, [0xFF], .malformed, "before 1970"),
    (80, [0, 0, 0, 0, 0, 0, 0, 1], .invalid, "was over before"), (96, [0x1B], .invalid, "not plain text"),
    (96, [0], .malformed, "byte 97"), (128, [1, 4, 24, 0, 0, 0, 0, 0, 198, 51, 100, 0], .invalid, "contradict"),
    (132, [0, 0, 0, 0, 198], .malformed, "canonical order"), (136, [1], .malformed, "canonical order"),
    (56 + 5 * 72, [0], .malformed, "address family 0"),
  ]

  @Test("with a right digest, is refused for what is wrong in it, by name", arguments: 0..<wrong.count)
  func malformed(index: Int) throws {
    let wrong = Self.wrong[index]
    var bytes = try wholePolicy().encoded
    if wrong.offset == 136 {
      // The second block becomes one of /24 before the first.
      bytes.replaceSubrange(128..<140, with: [1, 4, 24, 0, 0, 0, 0, 0, 1, 0, 0, 0])
    } else if wrong.offset == 132 {
      bytes.replaceSubrange(128..<140, with: [1, 4, 16, 0, 0, 0, 0, 0, 198, 51, 0, 0])
    } else {
      bytes.replaceSubrange(wrong.offset..<wrong.offset + wrong.bytes.count, with: wrong.bytes)
    }
    #expect("\(wrong.words)") {
      try GuestPolicy(signed(bytes))
    } throws: { error in
      let error = error as? GuestPolicyError
      return error?.code == wrong.code && error?.message.contains(wrong.words) == true
    }
  }

  @Test("random bytes behind a right beginning are refused or come back as they were")
  func randomBytes() throws {
    var random = SystemRandomNumberGenerator()
    let whole = try wholePolicy().encoded
    for _ in 0..<5_000 {
      var bytes = whole
      for _ in 0..<Int.random(in: 1...8, using: &random) {
        bytes[Int.random(in: 0..<bytes.count - 32, using: &random)] = UInt8.random(in: 0...255, using: &random)
      }
      let changed = signed(bytes)
      if let policy = try? GuestPolicy(changed) { #expect(policy.encoded == changed) }
    }
  }

  @Test("more than the limits is refused before anything is looked at")
  func bounds() throws {
    let measures = (0...GuestPolicy.measureLimit).map {
      GuestPolicy.Measure(.block(IPNetwork(IPAddress(v4: UInt32(0x0A00_0000 + $0)))), expires: nil, decision: 1)
    }
    #expect(throws: GuestPolicyError.self) {
      try GuestPolicy(domain: guest, version: 1, issued: start, measures: measures)
    }
    let most = try GuestPolicy(domain: guest, version: 1, issued: start, measures: Array(measures.dropLast()))
    #expect(try GuestPolicy(most.encoded) == most)
    #expect(throws: GuestPolicyError.self) {
      try GuestPolicy([UInt8](repeating: 0x56, count: GuestPolicy.byteLimit + 1))
    }
  }

  @Test("time is what is left on the guest's clock, and never more than was meant")
  func remaining() throws {
    let measure = GuestPolicy.Measure(.quarantine, expires: start + .seconds(60), decision: 1)
    let policy = try GuestPolicy(domain: guest, version: 1, issued: start, measures: [measure])
    #expect(policy.remaining(of: measure, at: start + .seconds(20)) == .seconds(40))
    #expect(policy.remaining(of: measure, at: start + .seconds(-1_000)) == .seconds(60))
    #expect(policy.remaining(of: measure, at: start + .seconds(60)) == .zero)
    #expect(policy.remaining(of: .init(.quarantine, expires: nil, decision: 1), at: start) == nil)
  }
}

@Suite("Rendering a guest's policy")
struct GuestPolicyRenderingTests {
  private func measure(
    _ scope: FirewallScope, _ kind: FirewallMeasureKind, seconds: Int64? = 60, decision: UInt64, comment: String = ""
  ) -> FirewallMeasure {
    FirewallMeasure(
      scope: scope, kind: kind, expires: seconds.map { start + .seconds($0) }, decision: decision, comment: comment)
  }

  @Test("takes what concerns the guest, and leaves out what is another's or over")
  func selection() throws {
    let result = try GuestPolicy.render(
      for: guest, version: 3,
      measures: [
        measure(.host, .block(cidr("192.0.2.1")), decision: 1, comment: "sid \"1\""),
        measure(.domain(guest), .block(cidr("192.0.2.2")), decision: 2),
        measure(.domain(other), .block(cidr("192.0.2.3")), decision: 3),
        measure(.domain(guest), .block(cidr("192.0.2.4")), seconds: 0, decision: 4),
        measure(.domain(guest), .quarantine, seconds: nil, decision: 5),
        measure(.domain(other), .rateLimit(packetsPerSecond: 1), decision: 6),
      ], exceptions: QuarantineExceptions(networks: [cidr("10.0.0.1"), cidr("10.0.0.1")]), at: start)
    #expect(result.omitted == 0 && result.policy.version == 3 && result.policy.issued == start)
    #expect(
      result.policy.measures == [
        .init(.block(cidr("192.0.2.1")), expires: start + .seconds(60), decision: 1, comment: "sid ?1?"),
        .init(.block(cidr("192.0.2.2")), expires: start + .seconds(60), decision: 2),
        .init(.quarantine, expires: nil, decision: 5),
      ])
    #expect(result.policy.exceptions.networks == [cidr("10.0.0.1")])
  }

  @Test("where measures meet, the stricter stands")
  func stricter() throws {
    let block = FirewallMeasureKind.block(cidr("192.0.2.1"))
    let result = try GuestPolicy.render(
      for: guest, version: 1,
      measures: [
        measure(.host, block, seconds: 60, decision: 1), measure(.domain(guest), block, seconds: 90, decision: 2),
        measure(.domain(guest), .rateLimit(packetsPerSecond: 100), decision: 3),
        measure(.domain(guest), .rateLimit(packetsPerSecond: 50), seconds: 5, decision: 4),
        measure(.host, .rateLimit(packetsPerSecond: 200), decision: 5),
        measure(.domain(guest), .quarantine, seconds: 10, decision: 6),
        measure(.host, .quarantine, seconds: 20, decision: 7),
      ], at: start)
    #expect(result.policy.measures.map(\.decision) == [2, 7, 4] && result.omitted == 0)
  }

  @Test("of too many, the guest's own stay, then the latest decisions; the rest is counted")
  func tooMany() throws {
    let many: [FirewallMeasure] = (1...100_000).map { number in
      let address = IPAddress(v4: 0x0A00_0000 + UInt32(number))
      return measure(.host, .block(IPNetwork(address)), decision: UInt64(number))
    }
    let own = measure(.domain(guest), .block(cidr("192.0.2.1")), decision: 0)
    let limit = measure(.domain(guest), .rateLimit(packetsPerSecond: 9), decision: 0)
    let wide = measure(.host, .block(cidr("0.0.0.0/0")), decision: .max)
    let result = try GuestPolicy.render(for: guest, version: 1, measures: [own, wide] + many + [limit], at: start)
    #expect(result.policy.measures.count == GuestPolicy.measureLimit)
    #expect(result.omitted == 100_003 - GuestPolicy.measureLimit)
    #expect(result.policy.measures.contains { $0.kind == own.key.kind })
    #expect(result.policy.measures.map(\.decision).filter { $0 > 0 }.min() == 100_001 - 510)
    #expect(try GuestPolicy(result.policy.encoded) == result.policy)
  }

  @Test("equal measures in any order give equal bytes")
  func stable() throws {
    let measures: [FirewallMeasure] = (1...2_000).map { number in
      let scope: FirewallScope = number % 3 == 0 ? .host : .domain(guest)
      let network = IPNetwork(IPAddress(v4: UInt32(number % 700) << 8), prefix: 24)
      return measure(scope, .block(network), seconds: Int64(number), decision: UInt64(number))
    }
    let first = try GuestPolicy.render(for: guest, version: 1, measures: measures, at: start)
    let second = try GuestPolicy.render(for: guest, version: 1, measures: measures.reversed(), at: start)
    #expect(first.policy.measures == second.policy.measures)
  }
}
