import Testing
import VMFenceCore
import VMFencePackets

@Suite struct CommunityIDTests {
  /// Vectors that the specification publishes, with seeds 0 and 1.
  static let vectors: [(source: String, UInt16, destination: String, UInt16, UInt8, seed0: String, seed1: String)] = [
    ("128.232.110.120", 34855, "66.35.250.204", 80, 6, "LQU9qZlK+B5F3KDmev6m5PMibrg=", "3V71V58M3Ksw/yuFALMcW0LAHvc="),
    ("192.168.1.52", 54585, "8.8.8.8", 53, 17, "d/FP5EW3wiY1vCndhwleRRKHowQ=", "Q9We8WO3piVF8yEQBNJF4uiSVrI="),
    ("192.168.0.89", 8, "192.168.0.1", 0, 1, "X0snYXpgwiv9TZtqg64sgzUn6Dk=", "03g6IloqVBdcZlPyX8r0hgoE7kA="),
    (
      "fe80::200:86ff:fe05:80da", 135, "fe80::260:97ff:fe07:69ea", 0, 58, "dGHyGvjMfljg6Bppwm3bg0LO8TY=",
      "kHa1FhMYIT6Ym2Vm2AOtoOARDzY="
    ),
    ("192.168.170.8", 7, "192.168.170.56", 80, 132, "jQgCxbku+pNGw8WPbEc/TS/uTpQ=", "Y1/0jQg6e+I3ZwZZ9LP65DNbTXU="),
  ]

  @Test(arguments: vectors.indices)
  func `the published vectors come out`(index: Int) throws {
    let (sourceText, sourcePort, destinationText, destinationPort, number, seed0, seed1) = Self.vectors[index]
    let source = try #require(IPAddress(sourceText))
    let destination = try #require(IPAddress(destinationText))
    for (seed, expected) in [(0, seed0), (1, seed1)] as [(UInt16, String)] {
      let id = CommunityID.v1(
        source: source, sourcePort: sourcePort, destination: destination, destinationPort: destinationPort,
        ipProtocol: number, seed: seed)
      #expect(id == "1:" + expected)
    }
    guard number != 1, number != 58 else { return }
    let reverse = CommunityID.v1(
      source: destination, sourcePort: destinationPort, destination: source, destinationPort: sourcePort,
      ipProtocol: number)
    #expect(reverse == "1:" + seed0)
  }

  @Test(arguments: [(1, 8, 0), (1, 13, 14), (58, 128, 129), (58, 135, 136)] as [(UInt8, UInt16, UInt16)])
  func `an ICMP request and its answer are one flow`(ipProtocol: UInt8, request: UInt16, answer: UInt16) throws {
    let a = try #require(IPAddress("192.0.2.1"))
    let b = try #require(IPAddress("192.0.2.2"))
    #expect(
      CommunityID.v1(source: a, sourcePort: request, destination: b, destinationPort: 0, ipProtocol: ipProtocol)
        == CommunityID.v1(source: b, sourcePort: answer, destination: a, destinationPort: 0, ipProtocol: ipProtocol))
  }

  @Test func `a one-way ICMP message is another flow in the other direction`() throws {
    let a = try #require(IPAddress("192.0.2.1"))
    let b = try #require(IPAddress("192.0.2.2"))
    #expect(
      CommunityID.v1(source: a, sourcePort: 3, destination: b, destinationPort: 1, ipProtocol: 1)
        != CommunityID.v1(source: b, sourcePort: 3, destination: a, destinationPort: 1, ipProtocol: 1))
  }

  @Test func `SHA-1 is that of FIPS 180`() {
    func hex(_ text: String) -> String {
      SHA1.digest(of: Array(text.utf8)).map { $0.hexadecimal(width: 2) }.joined()
    }
    #expect(hex("abc") == "a9993e364706816aba3e25717850c26c9cd0d89d")
    #expect(hex("") == "da39a3ee5e6b4b0d3255bfef95601890afd80709")
    #expect(
      hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") == "84983e441c3bd26ebaae4aa1f95129e5e54670f1")
    #expect(hex(String(repeating: "a", count: 1_000)) == "291e9a6c66994949b57ba5e650361e98fc36b1ba")
  }

  @Test(arguments: [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")])
  func `Base64 is that of RFC 4648`(text: String, expected: String) {
    #expect(Base64.encode(Array(text.utf8)) == Array(expected.utf8))
  }
}
