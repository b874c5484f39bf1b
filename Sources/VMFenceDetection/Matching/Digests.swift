import VMFenceCore

/// Digests of bytes in place: nothing is allocated. None of them keeps a secret here, so none is made against side channels.

/// Words of a digest as bytes.
struct DigestBytes {
  private var bytes = InlineArray<64, UInt8>(repeating: 0)
  private(set) var count = 0

  mutating func append(_ byte: UInt8) {
    bytes[count] = byte
    count += 1
  }

  /// The words' bytes, the lowest first or last.
  mutating func append(_ word: UInt32, isLittleEndian: Bool = false) {
    for index in 0..<4 { append(UInt8(truncatingIfNeeded: word >> UInt32(8 * (isLittleEndian ? index : 3 - index)))) }
  }

  func isEqual(to other: RawSpan, at offset: Int) -> Bool {
    for index in 0..<count where bytes[index] != other.u8(offset + index) { return false }
    return true
  }

  func append(to output: inout Scratch) {
    for index in 0..<count { output.append(bytes[index]) }
  }
}

/// A message with its padding: a bit 1, zeros up to a whole block, and the length in bits at its end (RFC 1321 §3.1, FIPS 180-4 §5.1).
struct MessagePadding: BitwiseCopyable {
  let count: Int
  let blockBytes: Int
  var isLittleEndian = false

  /// SHA-512 has room for a length of 16 bytes, the others of 8.
  var blocks: Int { (count + 1 + blockBytes / 8 + blockBytes - 1) / blockBytes }

  @inline(__always)
  func byte(_ index: Int, _ bytes: RawSpan) -> UInt8 {
    if index < count { return bytes.u8(index) }
    if index == count { return 0x80 }
    let place = blocks * blockBytes - 1 - index
    guard place < 8 else { return 0 }
    return UInt8(truncatingIfNeeded: (UInt64(count) * 8) >> UInt64(8 * (isLittleEndian ? 7 - place : place)))
  }

  /// The big-endian word at byte `index`.
  func word(_ index: Int, _ bytes: RawSpan) -> UInt32 {
    UInt32(byte(index, bytes)) << 24 | UInt32(byte(index + 1, bytes)) << 16 | UInt32(byte(index + 2, bytes)) << 8
      | UInt32(byte(index + 3, bytes))
  }
}

@inline(__always)
private func rotated(_ value: UInt32, left count: UInt32) -> UInt32 { value << count | value >> (32 - count) }

@inline(__always)
private func rotated(_ value: UInt64, right count: UInt64) -> UInt64 { value >> count | value << (64 - count) }

/// RFC 1321.
enum MD5 {
  private static let sines: InlineArray<64, UInt32> = [
    0xD76A_A478, 0xE8C7_B756, 0x2420_70DB, 0xC1BD_CEEE, 0xF57C_0FAF, 0x4787_C62A, 0xA830_4613, 0xFD46_9501,
    0x6980_98D8, 0x8B44_F7AF, 0xFFFF_5BB1, 0x895C_D7BE, 0x6B90_1122, 0xFD98_7193, 0xA679_438E, 0x49B4_0821,
    0xF61E_2562, 0xC040_B340, 0x265E_5A51, 0xE9B6_C7AA, 0xD62F_105D, 0x0244_1453, 0xD8A1_E681, 0xE7D3_FBC8,
    0x21E1_CDE6, 0xC337_07D6, 0xF4D5_0D87, 0x455A_14ED, 0xA9E3_E905, 0xFCEF_A3F8, 0x676F_02D9, 0x8D2A_4C8A,
    0xFFFA_3942, 0x8771_F681, 0x6D9D_6122, 0xFDE5_380C, 0xA4BE_EA44, 0x4BDE_CFA9, 0xF6BB_4B60, 0xBEBF_BC70,
    0x289B_7EC6, 0xEAA1_27FA, 0xD4EF_3085, 0x0488_1D05, 0xD9D4_D039, 0xE6DB_99E5, 0x1FA2_7CF8, 0xC4AC_5665,
    0xF429_2244, 0x432A_FF97, 0xAB94_23A7, 0xFC93_A039, 0x655B_59C3, 0x8F0C_CC92, 0xFFEF_F47D, 0x8584_5DD1,
    0x6FA8_7E4F, 0xFE2C_E6E0, 0xA301_4314, 0x4E08_11A1, 0xF753_7E82, 0xBD3A_F235, 0x2AD7_D2BB, 0xEB86_D391,
  ]
  private static let shifts: InlineArray<16, UInt32> = [7, 12, 17, 22, 5, 9, 14, 20, 4, 11, 16, 23, 6, 10, 15, 21]

  static func digest(_ bytes: RawSpan) -> DigestBytes {
    let message = MessagePadding(count: bytes.byteCount, blockBytes: 64, isLittleEndian: true)
    var state: (UInt32, UInt32, UInt32, UInt32) = (0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476)
    for block in 0..<message.blocks {
      var words = InlineArray<16, UInt32>(repeating: 0)
      for index in 0..<16 { words[index] = message.word(block * 64 + index * 4, bytes).byteSwapped }
      var (a, b, c, d) = state
      for step in 0..<64 {
        let (mixed, word) =
          switch step / 16 {
          case 0: (b & c | ~b & d, step)
          case 1: (d & b | ~d & c, (5 * step + 1) % 16)
          case 2: (b ^ c ^ d, (3 * step + 5) % 16)
          default: (c ^ (b | ~d), 7 * step % 16)
          }
        let sum = a &+ mixed &+ sines[step] &+ words[word]
        (a, d, c) = (d, c, b)
        b = b &+ rotated(sum, left: shifts[step / 16 * 4 + step % 4])
      }
      state = (state.0 &+ a, state.1 &+ b, state.2 &+ c, state.3 &+ d)
    }
    var result = DigestBytes()
    for word in [state.0, state.1, state.2, state.3] { result.append(word, isLittleEndian: true) }
    return result
  }
}

/// FIPS 180-4 §6.1.
enum SHA1 {
  static func digest(_ bytes: RawSpan) -> DigestBytes {
    let message = MessagePadding(count: bytes.byteCount, blockBytes: 64)
    var state: InlineArray<5, UInt32> = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0]
    for block in 0..<message.blocks {
      var words = InlineArray<80, UInt32>(repeating: 0)
      for index in 0..<16 { words[index] = message.word(block * 64 + index * 4, bytes) }
      for index in 16..<80 {
        words[index] = rotated(words[index - 3] ^ words[index - 8] ^ words[index - 14] ^ words[index - 16], left: 1)
      }
      var (a, b, c, d, e) = (state[0], state[1], state[2], state[3], state[4])
      for step in 0..<80 {
        let (mixed, constant): (UInt32, UInt32) =
          switch step / 20 {
          case 0: (b & c | ~b & d, 0x5A82_7999)
          case 1: (b ^ c ^ d, 0x6ED9_EBA1)
          case 2: (b & c | b & d | c & d, 0x8F1B_BCDC)
          default: (b ^ c ^ d, 0xCA62_C1D6)
          }
        let sum = rotated(a, left: 5) &+ mixed &+ e &+ constant &+ words[step]
        (e, d, c, b, a) = (d, c, rotated(b, left: 30), a, sum)
      }
      for (index, value) in [a, b, c, d, e].enumerated() { state[index] &+= value }
    }
    var result = DigestBytes()
    for index in 0..<5 { result.append(state[index]) }
    return result
  }
}

extension SHA256 {
  static func digest(_ bytes: RawSpan) -> DigestBytes {
    let words = words(of: bytes)
    var result = DigestBytes()
    for index in 0..<8 { result.append(words[index]) }
    return result
  }
}

/// FIPS 180-4 §6.4.
enum SHA512 {
  private static let constants: InlineArray<80, UInt64> = [
    0x428A_2F98_D728_AE22, 0x7137_4491_23EF_65CD, 0xB5C0_FBCF_EC4D_3B2F, 0xE9B5_DBA5_8189_DBBC,
    0x3956_C25B_F348_B538, 0x59F1_11F1_B605_D019, 0x923F_82A4_AF19_4F9B, 0xAB1C_5ED5_DA6D_8118,
    0xD807_AA98_A303_0242, 0x1283_5B01_4570_6FBE, 0x2431_85BE_4EE4_B28C, 0x550C_7DC3_D5FF_B4E2,
    0x72BE_5D74_F27B_896F, 0x80DE_B1FE_3B16_96B1, 0x9BDC_06A7_25C7_1235, 0xC19B_F174_CF69_2694,
    0xE49B_69C1_9EF1_4AD2, 0xEFBE_4786_384F_25E3, 0x0FC1_9DC6_8B8C_D5B5, 0x240C_A1CC_77AC_9C65,
    0x2DE9_2C6F_592B_0275, 0x4A74_84AA_6EA6_E483, 0x5CB0_A9DC_BD41_FBD4, 0x76F9_88DA_8311_53B5,
    0x983E_5152_EE66_DFAB, 0xA831_C66D_2DB4_3210, 0xB003_27C8_98FB_213F, 0xBF59_7FC7_BEEF_0EE4,
    0xC6E0_0BF3_3DA8_8FC2, 0xD5A7_9147_930A_A725, 0x06CA_6351_E003_826F, 0x1429_2967_0A0E_6E70,
    0x27B7_0A85_46D2_2FFC, 0x2E1B_2138_5C26_C926, 0x4D2C_6DFC_5AC4_2AED, 0x5338_0D13_9D95_B3DF,
    0x650A_7354_8BAF_63DE, 0x766A_0ABB_3C77_B2A8, 0x81C2_C92E_47ED_AEE6, 0x9272_2C85_1482_353B,
    0xA2BF_E8A1_4CF1_0364, 0xA81A_664B_BC42_3001, 0xC24B_8B70_D0F8_9791, 0xC76C_51A3_0654_BE30,
    0xD192_E819_D6EF_5218, 0xD699_0624_5565_A910, 0xF40E_3585_5771_202A, 0x106A_A070_32BB_D1B8,
    0x19A4_C116_B8D2_D0C8, 0x1E37_6C08_5141_AB53, 0x2748_774C_DF8E_EB99, 0x34B0_BCB5_E19B_48A8,
    0x391C_0CB3_C5C9_5A63, 0x4ED8_AA4A_E341_8ACB, 0x5B9C_CA4F_7763_E373, 0x682E_6FF3_D6B2_B8A3,
    0x748F_82EE_5DEF_B2FC, 0x78A5_636F_4317_2F60, 0x84C8_7814_A1F0_AB72, 0x8CC7_0208_1A64_39EC,
    0x90BE_FFFA_2363_1E28, 0xA450_6CEB_DE82_BDE9, 0xBEF9_A3F7_B2C6_7915, 0xC671_78F2_E372_532B,
    0xCA27_3ECE_EA26_619C, 0xD186_B8C7_21C0_C207, 0xEADA_7DD6_CDE0_EB1E, 0xF57D_4F7F_EE6E_D178,
    0x06F0_67AA_7217_6FBA, 0x0A63_7DC5_A2C8_98A6, 0x113F_9804_BEF9_0DAE, 0x1B71_0B35_131C_471B,
    0x28DB_77F5_2304_7D84, 0x32CA_AB7B_40C7_2493, 0x3C9E_BE0A_15C9_BEBC, 0x431D_67C4_9C10_0D4C,
    0x4CC5_D4BE_CB3E_42B6, 0x597F_299C_FC65_7E2A, 0x5FCB_6FAB_3AD6_FAEC, 0x6C44_198C_4A47_5817,
  ]

  static func digest(_ bytes: RawSpan) -> DigestBytes {
    let message = MessagePadding(count: bytes.byteCount, blockBytes: 128)
    var state: InlineArray<8, UInt64> = [
      0x6A09_E667_F3BC_C908, 0xBB67_AE85_84CA_A73B, 0x3C6E_F372_FE94_F82B, 0xA54F_F53A_5F1D_36F1,
      0x510E_527F_ADE6_82D1, 0x9B05_688C_2B3E_6C1F, 0x1F83_D9AB_FB41_BD6B, 0x5BE0_CD19_137E_2179,
    ]
    for block in 0..<message.blocks {
      var words = InlineArray<80, UInt64>(repeating: 0)
      for index in 0..<16 {
        let place = block * 128 + index * 8
        words[index] = UInt64(message.word(place, bytes)) << 32 | UInt64(message.word(place + 4, bytes))
      }
      for index in 16..<80 {
        let (x, y) = (words[index - 15], words[index - 2])
        let low = rotated(x, right: 1) ^ rotated(x, right: 8) ^ x >> 7
        let high = rotated(y, right: 19) ^ rotated(y, right: 61) ^ y >> 6
        words[index] = words[index - 16] &+ low &+ words[index - 7] &+ high
      }
      var v = state
      for step in 0..<80 {
        let high = rotated(v[4], right: 14) ^ rotated(v[4], right: 18) ^ rotated(v[4], right: 41)
        let first = v[7] &+ high &+ (v[4] & v[5] ^ ~v[4] & v[6]) &+ constants[step] &+ words[step]
        let low = rotated(v[0], right: 28) ^ rotated(v[0], right: 34) ^ rotated(v[0], right: 39)
        let second = low &+ (v[0] & v[1] ^ v[0] & v[2] ^ v[1] & v[2])
        for index in (1..<8).reversed() { v[index] = v[index - 1] }
        v[4] &+= first
        v[0] = first &+ second
      }
      for index in 0..<8 { state[index] &+= v[index] }
    }
    var result = DigestBytes()
    for index in 0..<8 {
      result.append(UInt32(truncatingIfNeeded: state[index] >> 32))
      result.append(UInt32(truncatingIfNeeded: state[index]))
    }
    return result
  }
}
