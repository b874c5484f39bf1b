import VMFenceCore

/// What the table says of the policy that made it, in the user data of its chain `about`: 75 bytes, numbers big-endian: version 1 of
/// this form · policy's version, 8 bytes · UUID, 16 · made at, 8 · applied at, 8 (the guest's clock) · measures, 2 · digest, 32.
struct PolicyRecord: Equatable {
  private static let version: UInt8 = 1
  static let byteCount = 75

  var domain: DomainUUID
  var version: UInt64
  var issued: Timestamp
  var applied: Timestamp
  var measures: UInt16
  var digest: [UInt8]

  init(_ policy: GuestPolicy, appliedAt now: Timestamp) {
    domain = policy.domain
    version = policy.version
    issued = policy.issued
    applied = now
    measures = UInt16(policy.measures.count)
    digest = policy.digest
  }

  var encoded: [UInt8] {
    var bytes = [Self.version]
    bytes.append(big: version)
    bytes.append(big: domain.high)
    bytes.append(big: domain.low)
    bytes.append(big: issued.nanoseconds)
    bytes.append(big: applied.nanoseconds)
    bytes.append(big: measures)
    return bytes + digest
  }

  /// nil when the bytes are none.
  init?(_ bytes: [UInt8]) {
    guard bytes.count == Self.byteCount, bytes[0] == Self.version else { return nil }
    digest = Array(bytes.suffix(32))
    (version, domain, issued, applied, measures) = bytes.withRawSpan { span in
      (
        span.u64(1), DomainUUID(high: span.u64(9), low: span.u64(17)),
        Timestamp(nanoseconds: Int64(bitPattern: span.u64(25))),
        Timestamp(nanoseconds: Int64(bitPattern: span.u64(33))), span.u16(41)
      )
    }
  }
}

/// What an element says of its measure besides the comment: 13 bytes: version 1 of this form · decision, 8 bytes · packets a second,
/// 4 bytes.
struct MeasureRecord: Equatable {
  private static let version: UInt8 = 1
  static let byteCount = 13

  var decision: UInt64
  var packetsPerSecond: UInt32

  init(_ measure: GuestPolicy.Measure) {
    decision = measure.decision
    packetsPerSecond = 0
    if case .rateLimit(let rate) = measure.kind { packetsPerSecond = rate }
  }

  var encoded: [UInt8] {
    var bytes = [Self.version]
    bytes.append(big: decision)
    bytes.append(big: packetsPerSecond)
    return bytes
  }

  init?(_ bytes: [UInt8]) {
    guard bytes.count == Self.byteCount, bytes[0] == Self.version else { return nil }
    (decision, packetsPerSecond) = bytes.withRawSpan { ($0.u64(1), $0.u32(9)) }
  }
}
