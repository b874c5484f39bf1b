import VMFenceCore

/// The numbers of messages. Types from 128 on may be passed over by whoever does not know them; others may not.
enum MessageType {
  static let policy: UInt8 = 1
  static let query: UInt8 = 2
  static let acknowledgement: UInt8 = 16
  static let inForce: UInt8 = 17
  static let declaration: UInt8 = 18
  static let firstOptional: UInt8 = 128
}

/// What a guest says of a policy that it was sent. It is a claim: what must hold is enforced in Dom0.
public struct PolicyAcknowledgement: Hashable, Sendable {
  public enum Status: UInt16, Sendable {
    /// It is in force.
    case applied = 0
    /// It came damaged or with gaps: it should be sent again.
    case damaged = 1
    /// It is wrong, or for another guest.
    case refused = 2
    /// A newer one is in force.
    case stale = 3
    /// The guest's kernel or packet filter did not take it.
    case failed = 4
  }

  public var version: UInt64
  /// SHA-256.
  public var digest: [UInt8]
  public var status: Status
  /// How many measures are in force, and how many were over already.
  public var standing: UInt16
  public var over: UInt16
  /// Why not, in a few words; printable.
  public var reason: String

  public init(
    version: UInt64, digest: [UInt8], status: Status, standing: UInt16 = 0, over: UInt16 = 0, reason: String = ""
  ) {
    (self.version, self.digest, self.status) = (version, digest, status)
    (self.standing, self.over, self.reason) = (standing, over, reason)
  }
}

/// What a guest says is in force.
public struct InForceReport: Hashable, Sendable {
  /// nil: no policy is.
  public var policy: PolicyName?
  /// Measures that stand, of those that the policy had.
  public var standing: UInt16
  public var measures: UInt16
  /// Packets that were dropped because of where they came from, where they went, in quarantine, above the limit.
  public var dropped: [UInt64]

  /// A policy's version and digest.
  public struct PolicyName: Hashable, Sendable {
    public var version: UInt64
    public var digest: [UInt8]
    public init(version: UInt64, digest: [UInt8]) {
      self.version = version
      self.digest = digest
    }
  }

  /// - `dropped`: four numbers.
  public init(policy: PolicyName?, standing: UInt16 = 0, measures: UInt16 = 0, dropped: [UInt64] = [0, 0, 0, 0]) {
    precondition(dropped.count == 4, "four numbers")
    (self.policy, self.standing, self.measures, self.dropped) = (policy, standing, measures, dropped)
  }
}

/// A part of a policy. Every one names the whole, so that a receiver needs no other state.
struct PolicyChunk: Equatable {
  static let headerBytes = 56

  var version: UInt64
  var digest: [UInt8]
  var total: Int
  var index: Int
  var count: Int
  /// Dom0's clock when it was sent: by it the guest finds what is left of a measure's time.
  var now: Timestamp
  var bytes: [UInt8]

  static func count(of total: Int) -> Int {
    (total + ChannelLayout.chunkBytes - 1) / ChannelLayout.chunkBytes
  }

  var encoded: [UInt8] {
    var result: [UInt8] = []
    result.append(little: version)
    result += digest
    result.append(little: UInt32(total))
    result.append(little: UInt16(index))
    result.append(little: UInt16(count))
    result.append(little: now.nanoseconds)
    return result + bytes
  }

  init(version: UInt64, digest: [UInt8], whole: [UInt8], index: Int, now: Timestamp) {
    (self.version, self.digest, self.total, self.index, self.now) = (version, digest, whole.count, index, now)
    count = Self.count(of: whole.count)
    let start = index * ChannelLayout.chunkBytes
    bytes = Array(whole[start..<min(whole.count, start + ChannelLayout.chunkBytes)])
  }

  init(_ payload: [UInt8]) throws(ChannelViolation) {
    guard payload.count > Self.headerBytes else { throw ChannelViolation(.message, "a part of a policy without bytes") }
    digest = Array(payload[8..<40])
    bytes = Array(payload[Self.headerBytes...])
    (version, total, index, count, now) = payload.withRawSpan { span in
      (
        span.u64le(0), Int(span.u32le(40)), Int(span.u16le(44)), Int(span.u16le(46)),
        Timestamp(nanoseconds: Int64(bitPattern: span.u64le(48)))
      )
    }
    guard (1...GuestPolicy.byteLimit).contains(total), count == Self.count(of: total), index < count else {
      throw ChannelViolation(.message, "part \(index) of \(count) of a policy of \(total) bytes")
    }
    let expected = min(ChannelLayout.chunkBytes, total - index * ChannelLayout.chunkBytes)
    guard bytes.count == expected else {
      throw ChannelViolation(.message, "part \(index) of a policy has \(bytes.count) bytes instead of \(expected)")
    }
  }
}

extension PolicyAcknowledgement {
  private static let fixedBytes = 48

  var encoded: [UInt8] {
    var result: [UInt8] = []
    result.append(little: version)
    result += digest
    for number in [status.rawValue, standing, over] { result.append(little: number) }
    let text = ChannelText.cut(reason, ChannelLayout.reasonLimit)
    result.append(little: UInt16(text.count))
    return result + text
  }

  init(_ payload: [UInt8]) throws(ChannelViolation) {
    guard payload.count >= Self.fixedBytes else { throw ChannelViolation(.message, "an acknowledgement breaks off") }
    let (version, raw, standing, over, length) = payload.withRawSpan {
      ($0.u64le(0), $0.u16le(40), $0.u16le(42), $0.u16le(44), Int($0.u16le(46)))
    }
    guard let status = Status(rawValue: raw) else { throw ChannelViolation(.message, "an unknown status \(raw)") }
    guard length <= ChannelLayout.reasonLimit, payload.count == Self.fixedBytes + length,
      let reason = ChannelText.parse(payload[Self.fixedBytes...])
    else { throw ChannelViolation(.message, "an acknowledgement's reason is no text of its length") }
    self.init(
      version: version, digest: Array(payload[8..<40]), status: status, standing: standing, over: over, reason: reason)
  }
}

extension InForceReport {
  private static let byteCount = 76

  var encoded: [UInt8] {
    var result: [UInt8] = []
    result.append(little: policy?.version ?? 0)
    result += policy?.digest ?? [UInt8](repeating: 0, count: 32)
    result.append(little: standing)
    result.append(little: measures)
    for number in dropped { result.append(little: number) }
    return result
  }

  init(_ payload: [UInt8]) throws(ChannelViolation) {
    guard payload.count == Self.byteCount else {
      throw ChannelViolation(.message, "a report of \(payload.count) bytes instead of \(Self.byteCount)")
    }
    let digest = Array(payload[8..<40])
    self = payload.withRawSpan { span in
      InForceReport(
        policy: span.u64le(0) == 0 ? nil : PolicyName(version: span.u64le(0), digest: digest),
        standing: span.u16le(40), measures: span.u16le(42), dropped: (0..<4).map { span.u64le(44 + 8 * $0) })
    }
    guard policy != nil || digest.allSatisfy({ $0 == 0 }), standing <= measures else {
      throw ChannelViolation(.message, "a report that contradicts itself")
    }
  }
}

/// Texts that come out of a guest.
enum ChannelText {
  /// nil for what is no UTF-8, or would act on a terminal.
  static func parse(_ bytes: some Collection<UInt8>) -> String? {
    guard let text = String(validating: bytes, as: UTF8.self), !text.unicodeScalars.contains(where: \.actsOnDisplay)
    else { return nil }
    return text
  }

  /// The first bytes of a text that one of this side's own programs made: whole characters, and none that `parse` refuses.
  static func cut(_ text: String, _ limit: Int) -> [UInt8] {
    var result: [UInt8] = []
    for scalar in text.unicodeScalars {
      let bytes = scalar.actsOnDisplay ? [UInt8(ascii: "?")] : Array(String(Character(scalar)).utf8)
      guard result.count + bytes.count <= limit else { break }
      result += bytes
    }
    return result
  }
}
