import Testing
import VMFenceCore

@Suite struct DigestTests {
  private func hex(_ bytes: [UInt8]) -> String { bytes.map { $0.hexadecimal(width: 2) }.joined() }

  /// FIPS 180-4's examples, and the lengths around the end of a block.
  @Test(arguments: [
    ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
      "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
    (String(repeating: "a", count: 1_000_000), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
    (String(repeating: "a", count: 55), "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318"),
    (String(repeating: "a", count: 64), "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"),
  ]) func sha256(text: String, digest: String) {
    #expect(hex(SHA256.digest(of: Array(text.utf8))) == digest)
  }

  @Test func sha256TakesItsInputInAnyPieces() {
    let bytes = (0..<1000).map { UInt8(truncatingIfNeeded: $0 * 7) }
    for size in [1, 3, 63, 64, 65, 200] {
      var hash = SHA256()
      for start in stride(from: 0, to: bytes.count, by: size) {
        Array(bytes[start..<min(bytes.count, start + size)]).withRawSpan { hash.update($0) }
      }
      #expect(hash.digest() == SHA256.digest(of: bytes))
    }
  }

  /// The check values of the catalogue of CRC algorithms, for "123456789".
  @Test func checksums() {
    let text = Array("123456789".utf8)
    var castagnoli = CRC32C()
    text.withRawSpan { castagnoli.update($0) }
    #expect(castagnoli.value == 0xE306_9283 && CRC32C.checksum(text) == 0xE306_9283)
    var iso = CRC32()
    text.withRawSpan { iso.update($0) }
    #expect(iso.value == 0xCBF4_3926)
    var short = CRC16(state: 0)
    text.withRawSpan { short.update($0) }
    #expect(short.state == 0xBB3D)
    var big = CRC32BigEndian()
    text.withRawSpan { big.update($0) }
    // CRC-32/MPEG-2.
    #expect(big.state == 0x0376_E6E7)
  }

  @Test func numbersAndZeroesAreAddedAsBytes() {
    var a = CRC32C()
    a.update(littleEndian: 0x0403_0201)
    a.update(zeroes: 3)
    #expect(a.value == CRC32C.checksum([1, 2, 3, 4, 0, 0, 0] as [UInt8]))
    let long = (0..<100).map { UInt8($0) }
    var b = CRC32C()
    long.withRawSpan { b.update($0) }
    #expect(b.value == CRC32C.checksum(long))
  }
}
