/// SHA-256 as in FIPS 180-4, in place: nothing is allocated until somebody wants the digest as an array. For what is read from a disk or
/// the network, not for secrets: its time depends on the length only, but nothing is wiped.
package struct SHA256: Sendable {
  package static let digestSize = 32
  private static let blockSize = 64

  private var state: InlineArray<8, UInt32> = [
    0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19,
  ]
  /// Bytes that do not fill a block yet: the first `pendingCount` of these.
  private var pending = InlineArray<64, UInt8>(repeating: 0)
  private var pendingCount = 0
  private var length: UInt64 = 0

  /// The fractional parts of the cube roots of the first 64 primes.
  private static let constants: InlineArray<64, UInt32> = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
  ]

  package init() {}

  package mutating func update(_ bytes: RawSpan) {
    length &+= UInt64(bytes.byteCount)
    var position = 0
    if pendingCount > 0 {
      position = min(Self.blockSize - pendingCount, bytes.byteCount)
      for index in 0..<position { pending[pendingCount + index] = bytes.u8(index) }
      pendingCount += position
      guard pendingCount == Self.blockSize else { return }
      Self.compress(pending, into: &state)
      pendingCount = 0
    }
    let blocks = (bytes.byteCount - position) / Self.blockSize
    if blocks > 0 {
      Self.compress(bytes.extracting(position..<position + blocks * Self.blockSize), count: blocks, into: &state)
      position += blocks * Self.blockSize
    }
    while position < bytes.byteCount {
      pending[pendingCount] = bytes.u8(position)
      pendingCount += 1
      position += 1
    }
  }

  /// The digest of everything given so far, as eight words, the first byte in the highest bits of the first.
  package func words() -> InlineArray<8, UInt32> {
    var copy = self
    let bits = length &* 8
    copy.pending[pendingCount] = 0x80
    for index in pendingCount + 1..<max(pendingCount + 1, Self.blockSize) { copy.pending[index] = 0 }
    if pendingCount + 1 > Self.blockSize - 8 {
      Self.compress(copy.pending, into: &copy.state)
      for index in 0..<Self.blockSize { copy.pending[index] = 0 }
    }
    for index in 0..<8 { copy.pending[56 + index] = UInt8(truncatingIfNeeded: bits >> UInt64(56 - index * 8)) }
    Self.compress(copy.pending, into: &copy.state)
    return copy.state
  }

  /// The digest of everything given so far: 32 bytes.
  package func digest() -> [UInt8] {
    let words = words()
    return (0..<Self.digestSize).map { UInt8(truncatingIfNeeded: words[$0 / 4] >> UInt32(24 - $0 % 4 * 8)) }
  }

  package static func words(of bytes: RawSpan) -> InlineArray<8, UInt32> {
    var hash = SHA256()
    hash.update(bytes)
    return hash.words()
  }

  package static func digest(of bytes: [UInt8]) -> [UInt8] {
    var hash = SHA256()
    bytes.withRawSpan { hash.update($0) }
    return hash.digest()
  }

  @inline(__always)
  private static func rotate(_ word: UInt32, _ by: UInt32) -> UInt32 { word &>> by | word &<< (32 &- by) }

  @inline(__always)
  private static func round(
    _ a: UInt32, _ b: UInt32, _ c: UInt32, _ d: inout UInt32, _ e: UInt32, _ f: UInt32, _ g: UInt32, _ h: inout UInt32,
    _ word: UInt32
  ) {
    let t1 = h &+ (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) &+ (g ^ e & (f ^ g)) &+ word
    d = d &+ t1
    h = t1 &+ (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) &+ (a & b | c & (a | b))
  }

  private static func compress(_ block: InlineArray<64, UInt8>, into state: inout InlineArray<8, UInt32>) {
    // SAFETY: UInt8 has no padding, so every byte of the array is initialised.
    compress(unsafe block.span.bytes, count: 1, into: &state)
  }

  /// - Precondition: `bytes` has `count` blocks of 64 bytes.
  private static func compress(_ bytes: RawSpan, count: Int, into state: inout InlineArray<8, UInt32>) {
    let k = constants
    var words = InlineArray<64, UInt32>(repeating: 0)
    for block in 0..<count {
      for index in 0..<16 { words[index] = bytes.u32(block &* blockSize &+ index &* 4) }
      for index in 16..<64 {
        let a = words[index &- 15]
        let b = words[index &- 2]
        let s0 = rotate(a, 7) ^ rotate(a, 18) ^ a &>> 3
        let s1 = rotate(b, 17) ^ rotate(b, 19) ^ b &>> 10
        words[index] = words[index &- 16] &+ s0 &+ words[index &- 7] &+ s1
      }
      var (a, b, c, d) = (state[0], state[1], state[2], state[3])
      var (e, f, g, h) = (state[4], state[5], state[6], state[7])
      var index = 0
      while index < 64 {
        // After eight rounds every word is in its own place again: nothing is moved from one to the next.
        round(a, b, c, &d, e, f, g, &h, k[index] &+ words[index])
        round(h, a, b, &c, d, e, f, &g, k[index &+ 1] &+ words[index &+ 1])
        round(g, h, a, &b, c, d, e, &f, k[index &+ 2] &+ words[index &+ 2])
        round(f, g, h, &a, b, c, d, &e, k[index &+ 3] &+ words[index &+ 3])
        round(e, f, g, &h, a, b, c, &d, k[index &+ 4] &+ words[index &+ 4])
        round(d, e, f, &g, h, a, b, &c, k[index &+ 5] &+ words[index &+ 5])
        round(c, d, e, &f, g, h, a, &b, k[index &+ 6] &+ words[index &+ 6])
        round(b, c, d, &e, f, g, h, &a, k[index &+ 7] &+ words[index &+ 7])
        index &+= 8
      }
      state[0] &+= a
      state[1] &+= b
      state[2] &+= c
      state[3] &+= d
      state[4] &+= e
      state[5] &+= f
      state[6] &+= g
      state[7] &+= h
    }
  }
}
