public import VMFenceCore

/// What happened on a channel, as Dom0 sees it. All of it is the guest's claim.
public enum HostChannelEvent: Hashable, Sendable {
  /// The guest took up the session.
  case opened(version: UInt16)
  case acknowledged(PolicyAcknowledgement)
  case inForce(InForceReport)
  case declared(TenantDeclaration)
  /// A policy has not been answered in time, or not even been read. It is not sent again in this session.
  case silent(version: UInt64)
  /// The frontend began anew: attach again.
  case restarted
  /// The guest broke the protocol: nothing more is read or written.
  case closed(ChannelViolation)
}

/// Dom0's side of one guest's channel.
///
/// The page is the guest's, and hostile: each word is fetched once, indices are this side's own, and what breaks the protocol closes the channel
/// and nothing else. `step` never waits and never loops longer than the lanes are; whoever owns the channel calls it when the guest
/// rang and now and then besides. Used by one thread at a time.
public struct HostChannel: Sendable {
  public enum State: Hashable, Sendable {
    /// Waits for the guest to take up the session: a guest without a frontend stays here.
    case offered
    case open
    case closed
  }

  /// Messages that a guest may send at once, and one more in each of these times. More wait in the page, at the guest's cost.
  static let messageBurst = 128
  static let messageInterval = Duration.milliseconds(20)
  /// How often one policy is sent when it arrives damaged.
  static let attemptLimit = 3
  /// After so long a policy that was not answered is `silent`, counted from when it could first be sent, or the policy before it that was not answered either.
  public static let answerTime = Duration.seconds(30)
  /// How many policies back an acknowledgement may be: more than there is room for in the page (10), in the hands of a guest that read them all at once,
  /// and, as answers, in the page again.
  static let memory = 64

  private struct Outgoing {
    var policy: GuestPolicy
    var bytes: [UInt8]
    var digest: [UInt8]
    var nextChunk = 0
    /// How often it came damaged.
    var damages = 0
    /// Since when the guest owes an answer.
    var owedSince: Timestamp?
    /// When the last part was in the page.
    var sentAt: Timestamp?
    var isAnswered = false
  }

  public private(set) var state = State.offered
  /// What the two agreed upon.
  public let version: UInt16
  private let page: SharedPage
  private let epoch: UInt64
  private let session: UInt64
  private var writer: LaneWriter
  private var reader: LaneReader
  private var budget: TokenBucket
  private var outgoing: Outgoing?
  /// What was sent whole in this session.
  private var sent: [InForceReport.PolicyName] = []
  private var isQuerying = false
  private var assembly = DeclarationAssembly()
  /// Rises with every message that was put into the page: then the guest is to be rung.
  public private(set) var messagesSent: UInt64 = 0
  /// How long the policy that was answered last took, from its last part in the page to the answer: with the guest's packet filter, and the time until this
  /// side looked.
  public private(set) var answerDelay: Duration?
  /// Messages of a type that may be passed over.
  public private(set) var passedOver: UInt64 = 0

  /// Begins a session on a page that a guest prepared.
  ///
  /// - `epoch`: random and not zero; another one for every session.
  /// - Throws: `page` or `version` when the guest prepared none, or speaks no version that this side does.
  public init(_ page: SharedPage, epoch: UInt64, at now: Timestamp) throws(ChannelViolation) {
    precondition(epoch != 0, "an epoch is not zero")
    self.page = page
    self.epoch = epoch
    guard page.acquire(ChannelLayout.Guest.magic) == ChannelLayout.magic else {
      throw ChannelViolation(.page, "the guest's page was not prepared")
    }
    session = page.acquire(ChannelLayout.Guest.session)
    let versions = page.acquire(ChannelLayout.Guest.versions)
    let (lowest, highest) = (UInt16(truncatingIfNeeded: versions), UInt16(truncatingIfNeeded: versions >> 16))
    let ours = ChannelLayout.versions
    guard versions >> 32 == 0, lowest <= highest, max(lowest, ours.lowerBound) <= min(highest, ours.upperBound) else {
      throw ChannelViolation(.version, "the guest speaks versions \(lowest) to \(highest), and this side \(ours)")
    }
    version = min(highest, ours.upperBound)
    writer = LaneWriter(page, .down)
    reader = LaneReader(page, .up)
    budget = TokenBucket(capacity: Self.messageBurst, every: Self.messageInterval, at: now)
    // Whoever sees the new epoch sees indices of zero; whoever sees them before reads the epoch again.
    page.release(0, at: ChannelLayout.Host.epoch)
    writer.reset()
    reader.reset()
    page.release(UInt64(version), at: ChannelLayout.Host.state)
    page.release(epoch, at: ChannelLayout.Host.epoch)
  }

  // MARK: What the owner wants

  /// Sends a policy as soon as there is room, instead of one that was not sent whole yet.
  public mutating func offer(_ policy: GuestPolicy) {
    let bytes = policy.encoded
    // A guest that reads nothing is silent however often its policy changes.
    let owedSince = outgoing.flatMap { $0.isAnswered ? nil : $0.owedSince }
    outgoing = Outgoing(
      policy: policy, bytes: bytes, digest: Array(bytes.suffix(GuestPolicy.Form.digestBytes)), owedSince: owedSince)
  }

  /// Asks what is in force.
  public mutating func query() { isQuerying = true }

  /// Ends the session: the guest keeps what is in force.
  public mutating func close() {
    guard state != .closed else { return }
    state = .closed
    page.release(0, at: ChannelLayout.Host.epoch)
  }

  // MARK: Work

  /// Does what can be done now.
  ///
  /// - Returns: what happened; at most `messageBurst` events and two more.
  public mutating func step(at now: Timestamp) -> [HostChannelEvent] {
    guard state != .closed else { return [] }
    var events: [HostChannelEvent] = []
    do throws(ChannelViolation) {
      if state == .offered {
        guard page.acquire(ChannelLayout.Guest.session) == session else { return restart() }
        guard page.acquire(ChannelLayout.Guest.epoch) == epoch else { return [] }
        state = .open
        events.append(.opened(version: version))
      }
      for _ in 0..<Self.messageBurst where state == .open {
        guard budget.hasToken(at: now), let message = try reader.next(epoch: epoch, version: version) else { break }
        budget.take()
        if let event = try take(message.type, message.payload, at: now) { events.append(event) }
      }
      try send(at: now)
      if let late = lateness(at: now) { events.append(late) }
    } catch {
      // A frontend that begins anew writes its session first.
      guard page.acquire(ChannelLayout.Guest.session) == session else { return events + restart() }
      state = .closed
      page.release(UInt64(version) | UInt64(error.code.rawValue) << 32, at: ChannelLayout.Host.state)
      page.release(0, at: ChannelLayout.Host.epoch)
      events.append(.closed(error))
      return events
    }
    guard page.acquire(ChannelLayout.Guest.session) == session else { return events + restart() }
    return events
  }

  private mutating func restart() -> [HostChannelEvent] {
    close()
    return [.restarted]
  }

  // MARK: Sending

  private mutating func send(at now: Timestamp) throws(ChannelViolation) {
    if isQuerying, try writer.send(MessageType.query, [], epoch: epoch, version: version) {
      isQuerying = false
      messagesSent += 1
    }
    if outgoing?.owedSince == nil { outgoing?.owedSince = now }
    while var next = outgoing, next.sentAt == nil {
      let chunk = PolicyChunk(
        version: next.policy.version, digest: next.digest, whole: next.bytes, index: next.nextChunk, now: now)
      guard try writer.send(MessageType.policy, chunk.encoded, epoch: epoch, version: version) else { return }
      messagesSent += 1
      next.nextChunk += 1
      if next.nextChunk == chunk.count {
        next.sentAt = now
        sent.append(.init(version: next.policy.version, digest: next.digest))
        if sent.count > Self.memory { sent.removeFirst() }
      }
      outgoing = next
    }
  }

  private mutating func lateness(at now: Timestamp) -> HostChannelEvent? {
    guard let waiting = outgoing, !waiting.isAnswered, let owedSince = waiting.owedSince,
      now - owedSince >= Self.answerTime
    else { return nil }
    outgoing?.isAnswered = true
    return .silent(version: waiting.policy.version)
  }

  // MARK: Receiving

  private mutating func take(
    _ type: UInt8, _ payload: [UInt8], at now: Timestamp
  ) throws(ChannelViolation) -> HostChannelEvent? {
    switch type {
    case MessageType.acknowledgement: return try take(PolicyAcknowledgement(payload), at: now)
    case MessageType.inForce: return .inForce(try InForceReport(payload))
    case MessageType.declaration: return try assembly.add(DeclarationPart(payload)).map { .declared($0) }
    case MessageType.firstOptional...:
      passedOver += 1
      return nil
    default: throw ChannelViolation(.message, "a message of unknown type \(type)")
    }
  }

  private mutating func take(
    _ answer: PolicyAcknowledgement, at now: Timestamp
  ) throws(ChannelViolation) -> HostChannelEvent {
    let isCurrent = outgoing?.policy.version == answer.version && outgoing?.digest == answer.digest
    let wasSent = sent.contains(.init(version: answer.version, digest: answer.digest))
    // A part that came damaged may be answered before the last was sent.
    guard wasSent || (isCurrent && answer.status == .damaged) else {
      throw ChannelViolation(.unexpected, "an acknowledgement of policy \(answer.version), which was not sent")
    }
    // Whoever answers late to the one before reads.
    outgoing?.owedSince = now
    guard isCurrent, outgoing?.isAnswered == false else { return .acknowledged(answer) }
    answerDelay = outgoing?.sentAt.map { now - $0 }
    outgoing?.damages += answer.status == .damaged ? 1 : 0
    if answer.status == .damaged, let damages = outgoing?.damages, damages < Self.attemptLimit {
      outgoing?.nextChunk = 0
      outgoing?.sentAt = nil
    } else {
      outgoing?.isAnswered = true
    }
    return .acknowledged(answer)
  }
}
