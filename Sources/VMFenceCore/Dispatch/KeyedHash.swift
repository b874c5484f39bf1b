/// A hash with a secret key, for tables that the network fills: whoever does not know the key cannot choose inputs that
/// collide.
///
/// NH over 64-bit words, as VMAC uses it (draft-krovetz-vmac §5): each pair of words, with a key word added to each, is multiplied to 128
/// bits, and the products are added up. For a key drawn at random, two different inputs of one length
/// give the same sum with a probability of about 2⁻⁶⁴. Two more key words then mix the sum down to 64 bits. It is not a message
/// authentication code: never show a hash to whoever chose its input.
public struct KeyedHash: Sendable, BitwiseCopyable {
  @usableFromInline let k0: UInt64
  @usableFromInline let k1: UInt64
  @usableFromInline let k2: UInt64
  @usableFromInline let k3: UInt64
  @usableFromInline let k4: UInt64
  @usableFromInline let k5: UInt64
  @usableFromInline let m0: UInt64
  @usableFromInline let m1: UInt64

  /// `key`: 128 secret bits: fixed in a replay, drawn at start in the daemon.
  public init(key: (UInt64, UInt64)) {
    var state = key.0
    func next() -> UInt64 {
      // SplitMix64's step, keyed with the second half: expands the key, once.
      state &+= 0x9E37_79B9_7F4A_7C15
      var z = state
      z = (z ^ z >> 30 ^ key.1) &* 0xBF58_476D_1CE4_E5B9
      z = (z ^ z >> 27 ^ key.1 << 32 ^ key.1 >> 32) &* 0x94D0_49BB_1331_11EB
      return z ^ z >> 31
    }
    k0 = next()
    k1 = next()
    k2 = next()
    k3 = next()
    k4 = next()
    k5 = next()
    m0 = next()
    m1 = next()
  }

  @inlinable
  public func hash(_ word: UInt64) -> UInt64 { finish(add((0, 0), word &+ k0, k1)) }

  @inlinable
  public func hash(_ a: UInt64, _ b: UInt64) -> UInt64 { finish(add((0, 0), a &+ k0, b &+ k1)) }

  @inlinable
  public func hash(_ a: UInt64, _ b: UInt64, _ c: UInt64, _ d: UInt64) -> UInt64 {
    finish(add(add((0, 0), a &+ k0, b &+ k1), c &+ k2, d &+ k3))
  }

  @inlinable
  public func hash(
    _ a: UInt64, _ b: UInt64, _ c: UInt64, _ d: UInt64, _ e: UInt64, _ f: UInt64
  ) -> UInt64 {
    finish(add(add(add((0, 0), a &+ k0, b &+ k1), c &+ k2, d &+ k3), e &+ k4, f &+ k5))
  }

  @inlinable
  public func hash(_ address: IPAddress) -> UInt64 {
    hash(address.high, address.low, UInt64(address.family.rawValue), 0)
  }

  /// `sum` + `a` × `b`, modulo 2¹²⁸.
  @inlinable @inline(__always)
  func add(_ sum: (high: UInt64, low: UInt64), _ a: UInt64, _ b: UInt64) -> (high: UInt64, low: UInt64) {
    let product = a.multipliedFullWidth(by: b)
    let (low, carry) = sum.low.addingReportingOverflow(product.low)
    return (sum.high &+ product.high &+ (carry ? 1 : 0), low)
  }

  @inlinable @inline(__always)
  func finish(_ sum: (high: UInt64, low: UInt64)) -> UInt64 {
    let mixed = (sum.low ^ m0).multipliedFullWidth(by: sum.high ^ m1 | 1)
    let folded = mixed.high ^ mixed.low ^ sum.high
    return (folded ^ folded >> 32) &* 0x9E37_79B9_7F4A_7C15 ^ folded >> 29
  }
}
