package import VMFenceCore

/// What passes between a daemon and the process that holds the hypervisor's handle for it: one question, one answer, and so on. All numbers are little-endian; a UUID is
/// as Xen has it. Both are of one build.
///
/// ```
/// question, 40 bytes                            answer, 32 bytes, and of `list` so many records as the result says
///  0  verb         u32                           0  verb         u32   the question's
///  4  number       u32  the domain's;            4  result       i32   of `list` how many records, else 0; or the negative of
///                       of `list` the first;                           an errno value
///                       of `open` Xen's major    8  sequence     u64   the question's
///  8  sequence     u64  one more each time      16  problem      u32   of `open`: why the library cannot be used, or 0
/// 16  UUID         16   the domain's, else 0    20  error        u32   of `open`: an errno value, or 0
/// 32  limit        u32  of `list`: records;     24  major        u32   of `open`: the hypervisor's release
///                       of `open` Xen's minor   28  minor        u32
/// 36  version      u32  of all this
///                                               record, 32 bytes
///                                                0  UUID         16
///                                               16  CPU time     u64   nanoseconds
///                                               24  number       u32   greater than the one before
///                                               28  flags        u32   XEN_DOMINF_*
/// ```
package enum XenVerb: UInt32, Sendable, CaseIterable {
  /// The first question, asked once: opens libxenctrl. Before it is answered the process gives up everything else.
  case open = 1
  case list = 2
  case pause = 3
  case unpause = 4
  case powerOff = 5
  case destroy = 6
}

package struct XenQuestion: Hashable, Sendable {
  package static let byteCount = 40
  private static let version: UInt32 = 0x564D_4601

  package var verb: XenVerb
  package var sequence: UInt64
  /// A domain's number, the first of a list, or the release's major number.
  package var number: UInt32
  package var uuid: DomainUUID
  /// Records of a list, or the release's minor number.
  package var limit: UInt32

  package init(
    _ verb: XenVerb, sequence: UInt64 = 0, number: UInt32, uuid: DomainUUID = DomainUUID(high: 0, low: 0),
    limit: UInt32 = 0
  ) {
    self.verb = verb
    self.sequence = sequence
    self.number = number
    self.uuid = uuid
    self.limit = limit
  }

  package init(_ verb: XenVerb, _ domain: Incarnation) {
    self.init(verb, number: domain.domainID.rawValue, uuid: domain.uuid)
  }

  /// nil when it is none, or one of another build.
  package init?(_ bytes: [UInt8]) {
    guard bytes.count == Self.byteCount else { return nil }
    let fields = bytes.withRawSpan { bytes in
      (bytes.u32le(0), bytes.u32le(4), bytes.u64le(8), bytes.u64(16), bytes.u64(24), bytes.u32le(32), bytes.u32le(36))
    }
    guard let verb = XenVerb(rawValue: fields.0), fields.6 == Self.version else { return nil }
    self.init(
      verb, sequence: fields.2, number: fields.1, uuid: DomainUUID(high: fields.3, low: fields.4), limit: fields.5)
  }

  package var encoded: [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Self.byteCount)
    bytes.append(little: verb.rawValue)
    bytes.append(little: number)
    bytes.append(little: sequence)
    bytes.append(little: uuid.high.byteSwapped)
    bytes.append(little: uuid.low.byteSwapped)
    bytes.append(little: limit)
    bytes.append(little: Self.version)
    return bytes
  }

  package var incarnation: Incarnation { Incarnation(uuid: uuid, domainID: DomainID(number)) }
}

package struct XenAnswer: Hashable, Sendable {
  private static let headBytes = 32
  private static let recordBytes = 32
  /// The greatest errno value (MAX_ERRNO of the kernel).
  private static let errorLimit: Int32 = 4095
  /// Bytes of the longest.
  package static let byteLimit = headBytes + XenDomain.listLimit * recordBytes

  package var domains: [XenDomain] = []
  /// An errno value; 0: it was done.
  package var error: Int32 = 0
  package var opening = XenOpeningFailure(problem: 0, number: 0, major: 0, minor: 0)

  package init(domains: [XenDomain] = [], error: Int32 = 0) {
    self.domains = domains
    self.error = error
  }

  /// The answer to `question`, which a process gave that may have been taken over; nil when no sound one gives it.
  package init?(_ bytes: [UInt8], to question: XenQuestion) {
    guard bytes.count >= Self.headBytes else { return nil }
    let answer: XenAnswer? = bytes.withRawSpan { bytes in
      let result = Int32(bitPattern: bytes.u32le(4))
      guard bytes.u32le(0) == question.verb.rawValue, bytes.u64le(8) == question.sequence,
        result >= -Self.errorLimit
      else { return nil }
      var answer = XenAnswer(error: max(0, -result))
      if question.verb == .open {
        answer.opening = XenOpeningFailure(
          problem: bytes.u32le(16), number: Int32(clamping: bytes.u32le(20)), major: bytes.u32le(24),
          minor: bytes.u32le(28))
      }
      let count = question.verb == .list ? Int(max(0, result)) : 0
      guard question.verb == .list || result <= 0, count <= min(Int(question.limit), XenDomain.listLimit),
        bytes.byteCount == Self.headBytes + count * Self.recordBytes
      else { return nil }
      var next = question.number
      answer.domains.reserveCapacity(count)
      for at in stride(from: Self.headBytes, to: bytes.byteCount, by: Self.recordBytes) {
        let number = bytes.u32le(at + 24)
        guard number >= next, number < XenDomain.numberLimit else { return nil }
        next = number + 1
        answer.domains.append(
          XenDomain(
            Incarnation(uuid: DomainUUID(high: bytes.u64(at), low: bytes.u64(at + 8)), domainID: DomainID(number)),
            xenFlags: bytes.u32le(at + 28), cpuTime: bytes.u64le(at + 16)))
      }
      return answer
    }
    guard let answer else { return nil }
    self = answer
  }

  package func encoded(to question: XenQuestion) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Self.headBytes + domains.count * Self.recordBytes)
    bytes.append(little: question.verb.rawValue)
    bytes.append(little: UInt32(bitPattern: error > 0 ? -error : Int32(domains.count)))
    bytes.append(little: question.sequence)
    for field in [opening.problem, UInt32(bitPattern: opening.number), opening.major, opening.minor] {
      bytes.append(little: field)
    }
    for domain in domains {
      bytes.append(little: domain.incarnation.uuid.high.byteSwapped)
      bytes.append(little: domain.incarnation.uuid.low.byteSwapped)
      bytes.append(little: UInt64(clamping: domain.cpuTime.wholeNanoseconds))
      bytes.append(little: domain.incarnation.domainID.rawValue)
      bytes.append(little: domain.xenFlags)
    }
    return bytes
  }
}

/// The process's side: the hypervisor's handle, and the answers. Used by one thread.
package struct XenServer {
  private var hypervisor: (any XenHypervisor)?
  private var lastSequence: UInt64?

  package init() {}

  /// - `open`: what the first question opens, for a release.
  /// - `isolate`: called when it is open, before that is answered.
  /// - Returns: the answer; nil when the owner asked what no sound one asks: then this is to end.
  package mutating func answer(
    _ message: [UInt8], open: (XenHost) throws(XenOpeningFailure) -> any XenHypervisor, isolate: () -> Void
  ) -> [UInt8]? {
    guard let question = XenQuestion(message), lastSequence.map({ question.sequence > $0 }) ?? true,
      (question.verb == .open) == (hypervisor == nil)
    else { return nil }
    lastSequence = question.sequence
    var answer = XenAnswer()
    if let hypervisor {
      do throws(SystemFailure) { answer.domains = try Self.obey(question, hypervisor) } catch {
        answer.error = min(max(error.number, 1), 4095)
      }
    } else {
      do throws(XenOpeningFailure) {
        hypervisor = try open(XenHost(major: question.number, minor: question.limit))
        isolate()
      } catch { answer.opening = error }
    }
    return answer.encoded(to: question)
  }

  private static func obey(_ question: XenQuestion, _ hypervisor: any XenHypervisor) throws(SystemFailure)
    -> [XenDomain]
  {
    let domain = question.incarnation
    switch question.verb {
    case .open: break
    case .list:
      let limit = min(Int(question.limit), XenDomain.listLimit)
      return try hypervisor.domains(from: domain.domainID, limit: limit)
    case .pause: try hypervisor.pause(domain)
    case .unpause: try hypervisor.unpause(domain)
    case .powerOff: try hypervisor.powerOff(domain)
    case .destroy: try hypervisor.destroy(domain)
    }
    return []
  }
}
