public import VMFenceCore

/// Dom0's side of one guest's channel, wherever it runs: in this process (`HostChannel`), or in one of its own that holds nothing but the page. Used by one
/// thread.
public protocol GuestSession: Sendable {
  /// Sends a policy as soon as there is room, instead of one that was not sent whole yet.
  mutating func offer(_ policy: GuestPolicy)
  /// Does what can be done now, without waiting.
  ///
  /// - `now`: of the system's clock.
  /// - `rang`: the guest rang since the last time.
  mutating func step(at now: Timestamp, rang: Bool) -> [HostChannelEvent]
  /// Ends the session: the guest keeps what is in force. Nothing is mapped when it returns.
  mutating func close()
  /// Rises with messages that were put into the page: then the guest is to be rung.
  var messagesSent: UInt64 { get }
  /// How long the policy that was answered last took.
  var answerDelay: Duration? { get }
  /// Readable when `step` brings something; -1: nobody can tell.
  var descriptor: Int32 { get }
}

extension HostChannel: GuestSession {
  public mutating func step(at now: Timestamp, rang: Bool) -> [HostChannelEvent] { step(at: now) }
  public var descriptor: Int32 { -1 }
}

// Between a session's owner and its process: messages of a byte that names them, and what they carry, little-endian. The owner's are believed. The process's
// are as hostile as the guest whose page it reads, and checked as that guest's messages are.

/// What a session's owner sends its process.
package enum SessionOrder: Hashable, Sendable {
  /// The first, once.
  ///
  /// - `page`: which grant of which domain; nil: the memory file that was passed.
  /// - `looks`: whether it looks at the page again and again, because nobody rings.
  case begin(epoch: UInt64, page: Grant?, looks: Bool)
  /// Look at the page; after `mapped`: the page is the right guest's, begin.
  case look
  case offer(GuestPolicy)
  case close

  package struct Grant: Hashable, Sendable {
    package var domain: UInt32
    package var reference: UInt32
    package init(domain: UInt32, reference: UInt32) { (self.domain, self.reference) = (domain, reference) }
  }

  package var encoded: [UInt8] {
    switch self {
    case .begin(let epoch, let page, let looks):
      var bytes: [UInt8] = [1]
      bytes.append(little: epoch)
      bytes.append(little: page?.domain ?? 0)
      bytes.append(little: page?.reference ?? 0)
      return bytes + [page == nil ? 0 : 1, looks ? 1 : 0]
    case .look: return [2]
    case .offer(let policy): return [3] + policy.encoded
    case .close: return [4]
    }
  }

  /// nil for what no owner of this version sends.
  package init?(_ bytes: [UInt8]) {
    switch (bytes.first, bytes.count) {
    case (1, 19):
      let (epoch, domain, reference) = bytes.withRawSpan { ($0.u64le(1), $0.u32le(9), $0.u32le(13)) }
      self = .begin(
        epoch: epoch, page: bytes[17] == 0 ? nil : Grant(domain: domain, reference: reference), looks: bytes[18] != 0)
    case (2, 1): self = .look
    case (3, _):
      guard let policy = try? GuestPolicy(Array(bytes[1...])) else { return nil }
      self = .offer(policy)
    case (4, 1): self = .close
    default: return nil
    }
  }
}

/// What a session's process sends its owner.
package enum SessionReport: Hashable, Sendable {
  /// The page is mapped, and the process has given up everything.
  case mapped
  /// It cannot serve.
  case failed(String)
  case sent(UInt64)
  case opened(version: UInt16)
  case acknowledged(PolicyAcknowledgement, delay: Duration?)
  case inForce(InForceReport)
  /// Part of what the guest declared.
  case declared([UInt8])
  case silent(version: UInt64)
  case restarted
  case closed(ChannelViolation)

  private static var textLimit: Int { 400 }

  package var encoded: [UInt8] {
    var bytes: [UInt8] = [number]
    switch self {
    case .mapped, .restarted: break
    case .failed(let text): bytes += ChannelText.cut(text, Self.textLimit)
    case .sent(let count): bytes.append(little: count)
    case .opened(let version): bytes.append(little: version)
    case .acknowledged(let answer, let delay):
      bytes.append(little: delay?.wholeNanoseconds ?? -1)
      bytes += answer.encoded
    case .inForce(let report): bytes += report.encoded
    case .declared(let part): bytes += part
    case .silent(let version): bytes.append(little: version)
    case .closed(let violation):
      bytes.append(little: violation.code.rawValue)
      bytes += ChannelText.cut(violation.message, Self.textLimit)
    }
    return bytes
  }

  private var number: UInt8 {
    switch self {
    case .mapped: 1
    case .failed: 2
    case .sent: 3
    case .opened: 4
    case .acknowledged: 5
    case .inForce: 6
    case .declared: 7
    case .silent: 8
    case .restarted: 9
    case .closed: 10
    }
  }

  /// - Throws: `message` for what no sound process sends.
  package init(_ bytes: [UInt8]) throws(ChannelViolation) {
    let payload = Array(bytes.dropFirst())
    switch (bytes.first, payload.count) {
    case (1, 0): self = .mapped
    case (2, _): self = .failed(try Self.text(payload[...]))
    case (3, 8): self = .sent(payload.withRawSpan { $0.u64le(0) })
    case (4, 2): self = .opened(version: payload.withRawSpan { $0.u16le(0) })
    case (5, 8...):
      let delay = Int64(bitPattern: payload.withRawSpan { $0.u64le(0) })
      self = .acknowledged(
        try PolicyAcknowledgement(Array(payload[8...])), delay: delay < 0 ? nil : .nanoseconds(delay))
    case (6, _): self = .inForce(try InForceReport(payload))
    case (7, _): self = .declared(payload)
    case (8, 8): self = .silent(version: payload.withRawSpan { $0.u64le(0) })
    case (9, 0): self = .restarted
    case (10, 2...):
      let number = payload.withRawSpan { $0.u16le(0) }
      guard let code = ChannelViolation.Code(rawValue: number) else {
        throw ChannelViolation(.message, "its process names an unknown violation \(number)")
      }
      self = .closed(ChannelViolation(code, try Self.text(payload[2...])))
    default: throw ChannelViolation(.message, "its process sent what is no report")
    }
  }

  private static func text(_ bytes: ArraySlice<UInt8>) throws(ChannelViolation) -> String {
    guard bytes.count <= textLimit, let text = ChannelText.parse(bytes) else {
      throw ChannelViolation(.message, "its process sent a text that is none")
    }
    return text
  }
}

/// What a session's process does with the page. Without the socket, so that it can be tried without a process.
package struct SessionWorker: Sendable {
  private var channel: HostChannel
  private var generation: UInt32 = 0
  private var told: UInt64 = 0
  package var isOver: Bool { channel.state == .closed }

  /// - Throws: as `HostChannel`.
  package init(_ page: SharedPage, epoch: UInt64, at now: Timestamp) throws(ChannelViolation) {
    channel = try HostChannel(page, epoch: epoch, at: now)
  }

  package mutating func take(_ order: SessionOrder) {
    switch order {
    case .offer(let policy): channel.offer(policy)
    case .close: channel.close()
    case .begin, .look: break
    }
  }

  package mutating func step(at now: Timestamp) -> [SessionReport] {
    var reports: [SessionReport] = []
    for event in channel.step(at: now) { reports += self.reports(of: event) }
    if channel.messagesSent != told {
      told = channel.messagesSent
      reports.append(.sent(told))
    }
    return reports
  }

  private mutating func reports(of event: HostChannelEvent) -> [SessionReport] {
    switch event {
    case .opened(let version): return [.opened(version: version)]
    case .acknowledged(let answer): return [.acknowledged(answer, delay: channel.answerDelay)]
    case .inForce(let report): return [.inForce(report)]
    case .declared(let declaration):
      generation += 1
      let items = declaration.items.isEmpty ? [DeclarationItem(kind: .nothing, text: "")] : declaration.items
      return items.enumerated().map { index, item in
        .declared(
          DeclarationPart(generation: generation, index: index, count: items.count, item: item).encoded)
      }
    case .silent(let version): return [.silent(version: version)]
    case .restarted: return [.restarted]
    case .closed(let violation): return [.closed(violation)]
    }
  }
}

/// What a session's owner makes of the reports.
package struct SessionReader: Sendable {
  package private(set) var messagesSent: UInt64 = 0
  package private(set) var answerDelay: Duration?
  private var assembly = DeclarationAssembly()
  private var budget: TokenBucket
  private var isOpen = false

  /// Reports that may come at once, and one more in each of these times: more than a guest gets through (`HostChannel`), so that no sound process has more.
  private static let burst = 1024
  private static let interval = Duration.milliseconds(5)

  package init(at now: Timestamp) { budget = TokenBucket(capacity: Self.burst, every: Self.interval, at: now) }

  /// - Returns: what follows for whoever owns the session; nothing for what is the session's own business.
  /// - Throws: for what a process says that a sound one does not say, or says too often.
  package mutating func take(
    _ report: SessionReport, at now: Timestamp
  ) throws(ChannelViolation) -> HostChannelEvent? {
    guard budget.hasToken(at: now) else {
      throw ChannelViolation(.message, "its process says more than a guest can make it say")
    }
    budget.take()
    switch report {
    case .mapped: return nil
    case .failed(let text): return .closed(ChannelViolation(.page, text))
    case .sent(let count):
      messagesSent = count
      return nil
    case .opened(let version):
      guard ChannelLayout.versions.contains(version) else {
        throw ChannelViolation(.version, "its process names a version that nobody speaks")
      }
      guard !isOpen else { throw ChannelViolation(.order, "its process opened a session twice") }
      isOpen = true
      return .opened(version: version)
    case .acknowledged(let answer, let delay):
      answerDelay = delay
      return .acknowledged(answer)
    case .inForce(let report): return .inForce(report)
    case .declared(let part): return try assembly.add(DeclarationPart(part)).map { .declared($0) }
    case .silent(let version): return .silent(version: version)
    case .restarted: return .restarted
    case .closed(let violation): return .closed(violation)
    }
  }
}
