import Testing
import VMFenceCore
import VMFencePackets

@Suite struct HeaderTests {
  @Test func `an ARP header gives both ends`() throws {
    let bytes = Frame.ethernet(0x0806, Frame.arp(2))
    let header = try bytes.withRawSpan { (span) throws(HeaderError) in try ARPHeader(span, at: 14) }
    #expect(header.operation == 2 && header.senderMAC == MACAddress("00:16:3e:0a:0b:0c"))
    #expect(header.sender == IPAddress("192.0.2.1") && header.target == IPAddress("198.51.100.2"))
    #expect(header.targetMAC == MACAddress(rawValue: 0))
  }

  @Test func `an IPv4 header gives its flags and options`() throws {
    let bytes = Frame.ipv4(17, [], options: [0x94, 4, 0, 0, 1, 7, 3, 4], id: 9, fragment: 0xC000)
    let header = try bytes.withRawSpan { (span) throws(HeaderError) in try IPv4Header(span, at: 0) }
    #expect(header.isReservedBitSet && header.dontFragment && !header.moreFragments && header.identification == 9)
    #expect(header.headerLength == 28 && header.totalLength == 28 && header.timeToLive == 64)
    #expect(kinds(header.options, bytes).map(\.kind) == [0x94, 1, 7])
  }

  @Test func `an IPv6 header gives traffic class and flow label`() throws {
    var bytes = Frame.ipv6(59, [])
    bytes.replaceSubrange(0..<4, with: [0x6A, 0xB1, 0x23, 0x45])
    let header = try bytes.withRawSpan { (span) throws(HeaderError) in try IPv6Header(span, at: 0) }
    #expect(header.trafficClass == 0xAB && header.flowLabel == 0x12345 && header.nextHeader == 59)
    #expect(header.source == IPAddress("2001:db8::1") && header.hopLimit == 64)
  }

  @Test func `TCP options are walked in order`() throws {
    let bytes = Frame.tcp([], options: [2, 4, 0x05, 0xB4, 1, 3, 3, 7, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 0, 9])
    let header = try bytes.withRawSpan { (span) throws(HeaderError) in try TCPHeader(span, at: 0) }
    let options = kinds(header.options, bytes)
    #expect(options.map(\.kind) == [2, 1, 3, 8])
    #expect(options.map(\.length) == [2, 0, 1, 8] && options[0].offset == 22)
    #expect(header.window == 0x2000 && header.urgentPointer == 0)
  }

  @Test(arguments: [[2, 0, 0, 0], [2, 1, 0, 0], [2, 5, 0, 0], [1, 1, 1, 2]] as [[UInt8]])
  func `a malformed option ends the walk and is told`(options: [UInt8]) throws {
    let bytes = Frame.tcp([], options: options)
    let header = try bytes.withRawSpan { (span) throws(HeaderError) in try TCPHeader(span, at: 0) }
    var cursor = header.options
    bytes.withRawSpan { while cursor.next(in: $0) != nil {} }
    #expect(cursor.isMalformed)
  }

  @Test func `an ICMP header gives identifier and sequence`() throws {
    let bytes = Frame.icmp(8, 0, [0, 7, 0, 1])
    let header = try bytes.withRawSpan { (span) throws(HeaderError) in try ICMPHeader(span, at: 0) }
    #expect(header.type == 8 && header.identifier == 7 && header.sequence == 1)
  }

  @Test func `every header cut short is refused, whatever the offset`() {
    func refusal(_ bytes: [UInt8], _ offset: Int, _ make: (RawSpan, Int) throws(HeaderError) -> Void) -> HeaderError? {
      do throws(HeaderError) {
        try bytes.withRawSpan { (span) throws(HeaderError) in try make(span, offset) }
        return nil
      } catch { return error }
    }
    let samples: [([UInt8], (RawSpan, Int) throws(HeaderError) -> Void)] = [
      (Frame.arp(), { (b, o) throws(HeaderError) in _ = try ARPHeader(b, at: o) }),
      (Frame.ipv4(6, [], options: [1, 1, 1, 1]), { (b, o) throws(HeaderError) in _ = try IPv4Header(b, at: o) }),
      (Frame.ipv6(6, []), { (b, o) throws(HeaderError) in _ = try IPv6Header(b, at: o) }),
      (Frame.tcp([], options: [1, 1, 1, 1]), { (b, o) throws(HeaderError) in _ = try TCPHeader(b, at: o) }),
      (Frame.icmp(8, 0, [0, 0, 0, 0]), { (b, o) throws(HeaderError) in _ = try ICMPHeader(b, at: o) }),
    ]
    for (bytes, make) in samples {
      #expect(refusal(bytes, 0, make) == nil)
      for length in 0..<bytes.count { #expect(refusal(Array(bytes[..<length]), 0, make)?.code == .truncated) }
      for offset in [-1, 1, bytes.count, bytes.count + 1, .max, .min] {
        #expect(refusal(bytes, offset, make) != nil)
      }
    }
    let error = refusal([0x45], 0) { (b, o) throws(HeaderError) in _ = try IPv4Header(b, at: o) }
    #expect(error?.description == "error: no IPv4 header: truncated")
  }

  @Test func `headers that contradict themselves are refused`() {
    func code(_ bytes: [UInt8], _ make: (RawSpan) throws(HeaderError) -> Void) -> HeaderError.Code? {
      do throws(HeaderError) {
        try bytes.withRawSpan(make)
        return nil
      } catch { return error.code }
    }
    var v4 = Frame.ipv4(6, [])
    v4[0] = 0x44
    #expect(code(v4) { (b) throws(HeaderError) in _ = try IPv4Header(b, at: 0) } == .badLength)
    v4[0] = 0x65
    #expect(code(v4) { (b) throws(HeaderError) in _ = try IPv4Header(b, at: 0) } == .wrongVersion)
    #expect(
      code(Frame.ipv4(6, Frame.tcp([]))) { (b) throws(HeaderError) in _ = try IPv6Header(b, at: 0) } == .wrongVersion)
    var tcp = Frame.tcp([])
    tcp[12] = 0x40
    #expect(code(tcp) { (b) throws(HeaderError) in _ = try TCPHeader(b, at: 0) } == .badLength)
    #expect(
      code([0, 6] + Frame.arp()[2...]) { (b) throws(HeaderError) in _ = try ARPHeader(b, at: 0) } == .unsupported)
  }

  private func kinds(_ options: OptionCursor, _ bytes: [UInt8]) -> [HeaderOption] {
    var cursor = options
    var result: [HeaderOption] = []
    bytes.withRawSpan { while let option = cursor.next(in: $0) { result.append(option) } }
    return result
  }
}
