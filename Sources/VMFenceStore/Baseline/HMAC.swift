internal import VMFenceCore

/// HMAC-SHA-256 as in RFC 2104.
struct HMACSHA256 {
  private var inner = SHA256()
  private var outer = SHA256()

  init(key: [UInt8]) {
    let short = key.count > 64 ? SHA256.digest(of: key) : key
    let padded = short + [UInt8](repeating: 0, count: 64 - short.count)
    padded.map { $0 ^ 0x36 }.withRawSpan { inner.update($0) }
    padded.map { $0 ^ 0x5C }.withRawSpan { outer.update($0) }
  }

  mutating func update(_ bytes: [UInt8]) { bytes.withRawSpan { inner.update($0) } }

  /// With its length before it, so that what is adjacent cannot be cut another way.
  mutating func updateField(_ bytes: [UInt8]) {
    update(StateKey.number(UInt64(bytes.count)))
    update(bytes)
  }

  consuming func code() -> [UInt8] {
    var outer = self.outer
    inner.digest().withRawSpan { outer.update($0) }
    return outer.digest()
  }

  /// Takes as long whatever differs.
  static func areEqual(_ a: [UInt8], _ b: [UInt8]) -> Bool {
    a.count == b.count && zip(a, b).reduce(UInt8(0)) { $0 | ($1.0 ^ $1.1) } == 0
  }
}
