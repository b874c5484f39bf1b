import Testing
import VMFenceCore
import VMFencePackets

@Suite struct FlowKeyTests {
  private func address(_ text: String) -> IPAddress { IPAddress(text) ?? .anyV4 }

  @Test(arguments: [("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8::2"), ("2001:db8::9", "2001:db7::1")])
  func `both directions of a flow have one key`(ends: (String, String)) {
    let there = FlowKey.make(
      source: address(ends.0), sourcePort: 40_000, destination: address(ends.1), destinationPort: 80, ipProtocol: 6)
    let back = FlowKey.make(
      source: address(ends.1), sourcePort: 80, destination: address(ends.0), destinationPort: 40_000, ipProtocol: 6)
    #expect(there.key == back.key && there.isForward != back.isForward)
    let hash = KeyedHash(key: (1, 2))
    #expect(hash.hash(there.key) == hash.hash(back.key))
    #expect(Set([there.key.first, there.key.second]) == Set([address(ends.0), address(ends.1)]))
  }

  @Test func `one address talking to itself is ordered by port`() {
    let local = address("127.0.0.1")
    let there = FlowKey.make(
      source: local, sourcePort: 9, destination: local, destinationPort: 7, ipProtocol: 17)
    let back = FlowKey.make(source: local, sourcePort: 7, destination: local, destinationPort: 9, ipProtocol: 17)
    #expect(there.key == back.key && !there.isForward && back.isForward)
    #expect(there.key.firstPort == 7 && there.key.secondPort == 9)
  }

  @Test func `everything that tells flows apart is in the key`() {
    let a = address("192.0.2.1")
    let b = address("192.0.2.2")
    let mapped = (IPAddress(v6High: 0, low: a.low), IPAddress(v6High: 0, low: b.low))
    let keys = [
      FlowKey.make(source: a, sourcePort: 1, destination: b, destinationPort: 2, ipProtocol: 6),
      FlowKey.make(source: a, sourcePort: 2, destination: b, destinationPort: 1, ipProtocol: 6),
      FlowKey.make(source: a, sourcePort: 1, destination: b, destinationPort: 2, ipProtocol: 17),
      FlowKey.make(source: mapped.0, sourcePort: 1, destination: mapped.1, destinationPort: 2, ipProtocol: 6),
      FlowKey.make(source: a, sourcePort: 1, destination: b, destinationPort: 2, ipProtocol: 6, outerVLAN: 5),
      FlowKey.make(source: a, sourcePort: 1, destination: b, destinationPort: 2, ipProtocol: 6, innerVLAN: 5),
    ].map(\.key)
    #expect(Set(keys).count == keys.count)
    let hash = KeyedHash(key: (3, 4))
    #expect(Set(keys.map { hash.hash($0) }).count == keys.count)
  }

  @Test func `the priority bits of a VLAN tag do not split a flow`() {
    let a = DecodedPacket.decode(Frame.ethernet(0x0800, Frame.ipv4(6, Frame.tcp([]))), vlan: 0x0064)
    let b = DecodedPacket.decode(Frame.ethernet(0x0800, Frame.ipv4(6, Frame.tcp([]))), vlan: 0xE064)
    #expect(FlowKey.make(a).key == FlowKey.make(b).key)
  }

  @Test func `ICMP types do not split a flow`() {
    let request = DecodedPacket.decode(Frame.ethernet(0x0800, Frame.ipv4(1, Frame.icmp(8, 0, [0, 7, 0, 1]))))
    let reply = DecodedPacket.decode(Frame.ethernet(0x0800, Frame.ipv4(1, Frame.icmp(0, 0, [0, 7, 0, 1]))))
    #expect(FlowKey.make(request).key == FlowKey.make(reply).key)
  }

  @Test func `another key gives other hashes, the same key the same`() {
    let words: [UInt64] = [0, 1, 1 << 63, .max, 0x1234_5678]
    for word in words {
      #expect(KeyedHash(key: (1, 2)).hash(word) == KeyedHash(key: (1, 2)).hash(word))
      #expect(KeyedHash(key: (1, 2)).hash(word) != KeyedHash(key: (1, 3)).hash(word))
      #expect(KeyedHash(key: (1, 2)).hash(word) != KeyedHash(key: (2, 2)).hash(word))
    }
  }

  @Test func `consecutive flows spread evenly over the low and the high bits`() {
    let hash = KeyedHash(key: (7, 8))
    var low = [Int](repeating: 0, count: 256)
    var high = low
    for index in 0..<65_536 {
      let key = FlowKey.make(
        source: IPAddress(v4: 0x0A00_0000 + UInt32(index >> 8)), sourcePort: UInt16(1024 + index & 0xFF),
        destination: IPAddress(v4: 0x0A01_0001), destinationPort: 80, ipProtocol: 6
      ).key
      low[Int(hash.hash(key) & 0xFF)] += 1
      high[Int(hash.hash(key) >> 56)] += 1
    }
    // 256 expected in each of 256 cells, with a deviation of 16: seven deviations are never seen.
    #expect((low + high).allSatisfy { abs($0 - 256) < 112 })
  }
}
