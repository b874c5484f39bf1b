import Testing
import VMFenceCore
import VMFencePackets

@Suite struct ChecksumTests {
  private func verdict(_ bytes: [UInt8], _ linkType: LinkType = .ethernet) -> ChecksumVerdict {
    bytes.withRawSpan { DecodedPacket.decode($0, linkType: linkType, strippedVLAN: 0).verifyChecksums(in: $0) }
  }

  @Test func `the sum is that of RFC 1071's own example`() {
    let bytes: [UInt8] = [0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7]
    #expect(bytes.withRawSpan { Checksum.internet($0) } == ~0xDDF2)
  }

  @Test func `the sum is that of the definition, for every length and position`() {
    var random = SeededGenerator(state: 5)
    for length in 0...130 {
      let bytes = (0..<length + 3).map { _ in UInt8.random(in: 0...255, using: &random) }
      for start in 0...3 {
        let expected = Frame.checksum(Array(bytes[start..<start + length]))
        #expect(Int(bytes.withRawSpan { Checksum.internet($0, from: start, count: length) }) == expected)
      }
    }
  }

  @Test(arguments: [0, 0xFF] as [UInt8])
  func `the longest frames do not overflow the sum`(byte: UInt8) {
    let bytes = [UInt8](repeating: byte, count: 1 << 20)
    #expect(bytes.withRawSpan { Checksum.internet($0) } == (byte == 0 ? 0xFFFF : 0))
  }

  @Test(arguments: Frame.samples.indices)
  func `the checksums of sound frames are right or not verifiable`(index: Int) {
    let (name, linkType, bytes) = Frame.samples[index]
    let unverifiable = ["arp", "fragment", "sctp"].contains(name)
    #expect(verdict(bytes, linkType) == (unverifiable ? .unverifiable : .correct), "\(name)")
  }

  @Test(arguments: Frame.samples.indices)
  func `a flipped bit in what a checksum covers is noticed`(index: Int) {
    let (name, linkType, bytes) = Frame.samples[index]
    let packet = DecodedPacket.decode(bytes, linkType)
    guard [.tcp, .udp, .icmp, .icmpv6].contains(packet.transport), packet.payloadLength > 0 else { return }
    var damaged = bytes
    damaged[Int(packet.payloadOffset)] ^= 0x10
    #expect(verdict(damaged, linkType) == .badTransport, "\(name)")
    guard packet.network == .ipv4 else { return }
    damaged = bytes
    damaged[Int(packet.networkOffset) + 8] ^= 0x10
    #expect(verdict(damaged, linkType) == .badNetwork, "\(name)")
  }

  @Test func `UDP without a checksum is right over IPv4 and wrong over IPv6`() {
    var v4 = Frame.udp(Frame.hello)
    v4.replaceSubrange(6..<8, with: [0, 0])
    #expect(verdict(Frame.ethernet(0x0800, Frame.ipv4(17, v4))) == .correct)
    #expect(verdict(Frame.ethernet(0x86DD, Frame.ipv6(17, v4))) == .badTransport)
  }

  @Test func `bytes after the UDP length are not summed`() {
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(17, Frame.udp(Frame.hello) + [1, 2, 3]))
    #expect(verdict(bytes) == .correct)
  }

  @Test func `a datagram that was not captured whole is not judged`() {
    let bytes = Frame.ethernet(0x0800, Frame.ipv4(6, Frame.tcp(Frame.hello)))
    #expect(verdict(Array(bytes.dropLast(3))) == .unverifiable)
  }

  @Test func `bytes that are not the packet's own are not judged`() {
    let packet = DecodedPacket.decode(Frame.ethernet(0x0800, Frame.ipv4(6, Frame.tcp(Frame.hello))))
    #expect([UInt8](repeating: 0, count: 20).withRawSpan { packet.verifyChecksums(in: $0) } == .unverifiable)
  }
}
