import Testing
import VMFenceCore

@Suite("Block lookup")
struct BlockLookupTests {
  private func measure(
    _ kind: FirewallMeasureKind, _ scope: FirewallScope = .domain(uuid(1)), expires: Timestamp? = at(10)
  ) -> FirewallMeasure {
    FirewallMeasure(scope: scope, kind: kind, expires: expires, decision: 1)
  }

  private func lookup(_ measures: FirewallMeasure..., key: (UInt64, UInt64) = (1, 2)) -> BlockLookup {
    BlockLookup(FirewallState(generation: 1, measures: measures), key: key)
  }

  private let other = address("198.51.100.1")

  @Test("nothing in force stops nothing")
  func empty() {
    #expect(lookup().find(domain: uuid(1), source: attacker, destination: other, at: at(0)) == nil)
  }

  @Test("a block stops both directions of its domain until it ends")
  func block() {
    let lookup = lookup(measure(.block(network("203.0.113.0/24"))))
    #expect(lookup.find(domain: uuid(1), source: attacker, destination: other, at: at(0)) == 0)
    #expect(lookup.find(domain: uuid(1), source: other, destination: attacker, at: at(9.9)) == 0)
    #expect(lookup.find(domain: uuid(1), source: other, destination: attacker, at: at(10)) == nil)
    #expect(lookup.find(domain: uuid(2), source: attacker, destination: other, at: at(0)) == nil)
    #expect(lookup.find(domain: uuid(1), source: other, destination: other, at: at(0)) == nil)
  }

  @Test("a block on the host stops it for every domain; one without end does not end")
  func host() {
    let lookup = lookup(measure(.block(network("2001:db8::/64")), .host, expires: nil))
    let source = address("2001:db8::77")
    #expect(lookup.find(domain: uuid(9), source: source, destination: other, at: at(1e6)) == 0)
    #expect(lookup.find(domain: uuid(9), source: address("2001:db8:0:1::"), destination: other, at: at(0)) == nil)
  }

  @Test("a quarantine stops everything of its domain; a rate limit stops no single packet")
  func quarantine() {
    let lookup = lookup(measure(.rateLimit(packetsPerSecond: 1), .domain(uuid(2))), measure(.quarantine))
    #expect(lookup.find(domain: uuid(1), source: other, destination: other, at: at(0)) == 1)
    #expect(lookup.find(domain: uuid(2), source: other, destination: other, at: at(0)) == nil)
  }

  @Test("a look-up among many finds what a search through all of them finds", arguments: [UInt64(0), 7, .max])
  func many(key: UInt64) {
    let measures = (0..<2_000).map { number in
      let prefix = [32, 24, 28][number % 3]
      return measure(
        .block(IPNetwork(IPAddress(v4: UInt32(number) &* 2_654_435_761), prefix: prefix)),
        number % 5 == 0 ? .host : .domain(uuid(UInt64(number % 4))))
    }
    let lookup = BlockLookup(FirewallState(generation: 1, measures: measures), key: (key, key))
    for number in 0..<4_000 {
      let source = IPAddress(v4: UInt32(number) &* 2_654_435_761 &+ UInt32(number % 2))
      let domain = uuid(UInt64(number % 4))
      let expected = measures.contains { measure in
        guard case .block(let network) = measure.key.kind else { return false }
        return network.contains(source) && (measure.key.scope == .host || measure.key.scope == .domain(domain))
      }
      let found = lookup.find(domain: domain, source: source, destination: other, at: at(0))
      #expect((found != nil) == expected)
    }
  }
}
