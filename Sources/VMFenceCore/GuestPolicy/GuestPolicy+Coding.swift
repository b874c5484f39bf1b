/// The form in which a policy lies in a file and goes over the policy channel. Numbers are big-endian, and everything between the
/// fields is zero:
///
/// ```
///  0  8  "VMFGUEST"
///  8  2  version of this form: 1
/// 10  2  flags: bit 0, DHCP is an exception from quarantine
/// 12  4  length of the whole, in bytes
/// 16  8  version of the policy, from 1
/// 24 16  UUID of the guest
/// 40  8  when it was made: nanoseconds since 1970, UTC, on Dom0's clock
/// 48  2  number of measures: at most 512
/// 50  2  number of exceptions from quarantine: at most 64
/// 52  4  zero
/// 56     measures, 72 bytes each, in canonical order
///         0  1  kind: 1 block, 2 quarantine, 3 rate limit
///         1  1  address family of a block: 4 or 6
///         2  1  prefix length of a block
///         3  1  zero
///         4  4  packets a second of a rate limit
///         8 16  network of a block; IPv4 in the first four bytes
///        24  8  when it ends, on Dom0's clock; 0: no end
///        32  8  number of the decision
///        40 32  comment: printable ASCII, zeros behind it
///     …  exceptions, 20 bytes each, in canonical order
///         0  1  address family: 4 or 6
///         1  1  prefix length
///         2  2  zero
///         4 16  network; IPv4 in the first four bytes
///     … 32  SHA-256 of all bytes before
/// ```
extension GuestPolicy {
  package enum Form {
    package static let magic = Array("VMFGUEST".utf8)
    package static let version: UInt16 = 1
    package static let headerBytes = 56
    package static let measureBytes = 72
    package static let exceptionBytes = 20
    package static let digestBytes = SHA256.digestSize
    static let allowsDHCP: UInt16 = 1
  }

  /// No policy has more bytes.
  public static let byteLimit =
    Form.headerBytes + measureLimit * Form.measureBytes + exceptionLimit * Form.exceptionBytes + Form.digestBytes

  // MARK: Writing

  /// The bytes of this policy; their last 32 are its digest.
  public var encoded: [UInt8] {
    var bytes = Form.magic
    let length =
      Form.headerBytes + measures.count * Form.measureBytes + exceptions.networks.count * Form.exceptionBytes
      + Form.digestBytes
    bytes.reserveCapacity(length)
    bytes.append(big: Form.version)
    bytes.append(big: exceptions.allowsDHCP ? Form.allowsDHCP : 0)
    bytes.append(big: UInt32(length))
    bytes.append(big: version)
    bytes.append(big: domain.high)
    bytes.append(big: domain.low)
    bytes.append(big: issued.nanoseconds)
    bytes.append(big: UInt16(measures.count))
    bytes.append(big: UInt16(exceptions.networks.count))
    bytes.append(big: UInt32(0))
    for measure in measures { Self.append(measure, to: &bytes) }
    for network in exceptions.networks {
      bytes += [network.base.family.rawValue, network.prefix, 0, 0]
      Self.append(network.base, to: &bytes)
    }
    return bytes + SHA256.digest(of: bytes)
  }

  /// The SHA-256 that identifies it.
  public var digest: [UInt8] { Array(encoded.suffix(Form.digestBytes)) }

  private static func append(_ measure: Measure, to bytes: inout [UInt8]) {
    var rate: UInt32 = 0
    var network: IPNetwork?
    if case .rateLimit(let packetsPerSecond) = measure.kind { rate = packetsPerSecond }
    if case .block(let blocked) = measure.kind { network = blocked }
    bytes += [MeasureOrder(measure.kind).rank, network?.base.family.rawValue ?? 0, network?.prefix ?? 0, 0]
    bytes.append(big: rate)
    if let network { append(network.base, to: &bytes) } else { bytes += Array(repeating: 0, count: 16) }
    bytes.append(big: measure.expires?.nanoseconds ?? 0)
    bytes.append(big: measure.decision)
    bytes += measure.comment.utf8
    bytes += Array(repeating: 0, count: commentLimit - measure.comment.utf8.count)
  }

  private static func append(_ address: IPAddress, to bytes: inout [UInt8]) {
    if address.family == .v4 {
      bytes.append(big: UInt32(address.low))
      bytes += Array(repeating: 0, count: 12)
    } else {
      bytes.append(big: address.high)
      bytes.append(big: address.low)
    }
  }

  // MARK: Reading

  /// Takes a policy from bytes that anybody may have written.
  public init(_ bytes: [UInt8]) throws(GuestPolicyError) {
    self = try bytes.withRawSpan { (span) throws(GuestPolicyError) in try GuestPolicy(span) }
  }

  /// As above. Takes time and memory in proportion to the bytes, of which more than `byteLimit` are refused at once.
  public init(_ bytes: RawSpan) throws(GuestPolicyError) {
    let counts = try Self.checkHeader(bytes)
    let body = bytes.byteCount - Form.digestBytes
    var hash = SHA256()
    hash.update(bytes.extracting(0..<body))
    guard hash.digest() == (body..<bytes.byteCount).map({ bytes.u8($0) }) else {
      throw GuestPolicyError(
        .damaged, "the digest does not match: the policy was damaged or changed", remedy: "send or copy it again")
    }
    var measures: [Measure] = []
    measures.reserveCapacity(counts.measures)
    var offset = Form.headerBytes
    for _ in 0..<counts.measures {
      measures.append(try Self.measure(bytes, offset))
      offset += Form.measureBytes
    }
    var networks: [IPNetwork] = []
    networks.reserveCapacity(counts.exceptions)
    for _ in 0..<counts.exceptions {
      try Self.expectZero(bytes, offset + 2..<offset + 4)
      networks.append(try Self.network(bytes, family: offset, prefix: offset + 1, base: offset + 4))
      offset += Form.exceptionBytes
    }
    try self.init(
      domain: DomainUUID(high: bytes.u64(24), low: bytes.u64(32)), version: bytes.u64(16),
      issued: Timestamp(nanoseconds: Int64(bitPattern: bytes.u64(40))), measures: measures,
      exceptions: QuarantineExceptions(networks: networks, allowsDHCP: bytes.u16(10) & Form.allowsDHCP != 0))
    guard self.measures == measures, exceptions.networks == networks else {
      throw GuestPolicyError(.malformed, "measures or exceptions are not in canonical order")
    }
  }

  /// Checks everything that lengths depend on.
  private static func checkHeader(_ bytes: RawSpan) throws(GuestPolicyError) -> (measures: Int, exceptions: Int) {
    let least = Form.headerBytes + Form.digestBytes
    guard bytes.byteCount <= byteLimit else {
      throw GuestPolicyError(.tooLarge, "\(bytes.byteCount) bytes, and a policy has at most \(byteLimit)")
    }
    for offset in 0..<min(Form.magic.count, bytes.byteCount) where bytes.u8(offset) != Form.magic[offset] {
      throw GuestPolicyError(
        .malformed, "byte \(offset): this is no policy for a guest: it does not begin with VMFGUEST",
        remedy: "give a file that Dom0 wrote")
    }
    guard bytes.byteCount >= least else {
      throw GuestPolicyError(.truncated, "\(bytes.byteCount) bytes, and a policy has at least \(least)")
    }
    guard bytes.u16(8) == Form.version else {
      throw GuestPolicyError(
        .unsupported, "byte 8: form \(bytes.u16(8)), and this program knows form \(Form.version)",
        remedy: "update vmfence-guest")
    }
    guard bytes.u16(10) & ~Form.allowsDHCP == 0 else {
      throw GuestPolicyError(.unsupported, "byte 10: unknown flags", remedy: "update vmfence-guest")
    }
    let counts = (measures: Int(bytes.u16(48)), exceptions: Int(bytes.u16(50)))
    guard counts.measures <= measureLimit, counts.exceptions <= exceptionLimit else {
      throw GuestPolicyError(
        .tooLarge,
        "byte 48: \(counts.measures) measures and \(counts.exceptions) exceptions, and "
          + "\(measureLimit) and \(exceptionLimit) are the most")
    }
    let length = least + counts.measures * Form.measureBytes + counts.exceptions * Form.exceptionBytes
    guard Int(bytes.u32(12)) == length else {
      throw GuestPolicyError(.malformed, "byte 12: a length of \(bytes.u32(12)), and its parts have \(length)")
    }
    guard bytes.byteCount == length else {
      throw GuestPolicyError(
        bytes.byteCount < length ? .truncated : .malformed, "\(bytes.byteCount) bytes of a policy of \(length)")
    }
    try expectZero(bytes, 52..<56)
    return counts
  }

  private static func measure(_ bytes: RawSpan, _ offset: Int) throws(GuestPolicyError) -> Measure {
    let rate = bytes.u32(offset + 4)
    let kind: FirewallMeasureKind
    switch bytes.u8(offset) {
    case 1:
      kind = .block(try network(bytes, family: offset + 1, prefix: offset + 2, base: offset + 8))
      try expectZero(bytes, offset + 4..<offset + 8)
    case 2:
      kind = .quarantine
      try expectZero(bytes, offset + 1..<offset + 24)
    case 3:
      kind = .rateLimit(packetsPerSecond: rate)
      try expectZero(bytes, offset + 1..<offset + 3)
      try expectZero(bytes, offset + 8..<offset + 24)
    case let other: throw GuestPolicyError(.malformed, "byte \(offset): a measure of unknown kind \(other)")
    }
    try expectZero(bytes, offset + 3..<offset + 4)
    let expires = Int64(bitPattern: bytes.u64(offset + 24))
    guard expires >= 0 else { throw GuestPolicyError(.malformed, "byte \(offset + 24): an end before 1970") }
    var comment: [UInt8] = []
    for position in offset + 40..<offset + Form.measureBytes {
      let byte = bytes.u8(position)
      if byte == 0 {
        try expectZero(bytes, position..<offset + Form.measureBytes)
        break
      }
      comment.append(byte)
    }
    return Measure(
      kind, expires: expires == 0 ? nil : Timestamp(nanoseconds: expires), decision: bytes.u64(offset + 32),
      comment: String(decoding: comment, as: UTF8.self))
  }

  private static func network(
    _ bytes: RawSpan, family: Int, prefix: Int, base: Int
  ) throws(GuestPolicyError) -> IPNetwork {
    guard let kind = IPAddress.Family(rawValue: bytes.u8(family)) else {
      throw GuestPolicyError(.malformed, "byte \(family): address family \(bytes.u8(family)) instead of 4 or 6")
    }
    let length = Int(bytes.u8(prefix))
    guard length <= kind.bitWidth else {
      throw GuestPolicyError(.malformed, "byte \(prefix): a prefix of \(length) of \(kind.bitWidth) bits")
    }
    let address =
      kind == .v4 ? IPAddress(v4: bytes.u32(base)) : IPAddress(v6High: bytes.u64(base), low: bytes.u64(base + 8))
    if kind == .v4 { try expectZero(bytes, base + 4..<base + 16) }
    let network = IPNetwork(address, prefix: length)
    guard network.base == address else {
      throw GuestPolicyError(.malformed, "byte \(base): \(address)/\(length) has bits behind its prefix")
    }
    return network
  }

  private static func expectZero(_ bytes: RawSpan, _ range: Range<Int>) throws(GuestPolicyError) {
    for offset in range where bytes.u8(offset) != 0 {
      throw GuestPolicyError(.malformed, "byte \(offset): \(bytes.u8(offset)) where nothing may be")
    }
  }
}
