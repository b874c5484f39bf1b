public import VMFenceCore

/// What happened on a channel, as the guest sees it.
public enum GuestChannelEvent: Hashable, Sendable {
  /// Dom0 began a session, the first or another.
  case opened(version: UInt16)
  /// A policy, whole and checked. It wants an answer: `acknowledge`.
  case policy(GuestPolicy, sentAt: Timestamp)
  /// Dom0 wants to know what is in force: `report`.
  case query
  /// Dom0 ended the session; it may begin another. The reason is a number of the specification, 0 for none.
  case ended(reason: UInt16)
  /// What came is not the protocol. The session is over on this side; Dom0 may begin another.
  case broken(ChannelViolation)
}

/// The guest's side of the channel. `step` never waits; whoever owns the channel calls it when Dom0 rang. Used by one thread at a time.
public struct GuestChannel: Sendable {
  /// Messages that wait for room in the lane; what is older and of the same kind is replaced by what is newer.
  static let queueLimit = 2 * ChannelLayout.declarationLimit + 16
  /// Messages that one step takes.
  static let stepLimit = 64

  private let page: SharedPage
  private var epoch: UInt64 = 0
  private var version: UInt16 = 0
  private var writer: LaneWriter
  private var reader: LaneReader
  private var queue: [(type: UInt8, payload: [UInt8])] = []
  private var incoming: Incoming?
  private var generation: UInt32 = 0

  /// A policy of which parts have come.
  private struct Incoming {
    var first: PolicyChunk
    var bytes: [UInt8]
    var next: Int
  }

  /// Whether Dom0 is there.
  public var isOpen: Bool { epoch != 0 }

  /// Prepares a page that is to be offered to Dom0.
  ///
  /// - `session`: random; another one each time.
  public init(preparing page: SharedPage, session: UInt64) {
    self.page = page
    writer = LaneWriter(page, .up)
    reader = LaneReader(page, .down)
    // First: by it Dom0 knows that what follows is no breach.
    page.release(session, at: ChannelLayout.Guest.session)
    page.release(0, at: ChannelLayout.Guest.epoch)
    writer.reset()
    reader.reset()
    let versions = ChannelLayout.versions
    page.release(UInt64(versions.lowerBound) | UInt64(versions.upperBound) << 16, at: ChannelLayout.Guest.versions)
    page.release(ChannelLayout.magic, at: ChannelLayout.Guest.magic)
  }

  // MARK: What the owner wants

  /// Answers a policy.
  public mutating func acknowledge(_ answer: PolicyAcknowledgement) {
    enqueue(MessageType.acknowledgement, answer.encoded)
  }

  /// Says what is in force; instead of a report that waits still.
  public mutating func report(_ report: InForceReport) {
    queue.removeAll { $0.type == MessageType.inForce }
    enqueue(MessageType.inForce, report.encoded)
  }

  /// Declares what the tenant wants. Say it again after every `opened`.
  ///
  /// - Throws: `message` when the declaration is more than the channel takes.
  public mutating func declare(_ declaration: TenantDeclaration) throws(ChannelViolation) {
    try declaration.validate()
    // One of which parts were sent goes on to its end.
    guard !queue.contains(where: { $0.type == MessageType.declaration }) else {
      throw ChannelViolation(.unexpected, "a declaration is still being sent")
    }
    generation += 1
    let items = declaration.items.isEmpty ? [DeclarationItem(kind: .nothing, text: "")] : declaration.items
    for (index, item) in items.enumerated() {
      let part = DeclarationPart(generation: generation, index: index, count: items.count, item: item)
      enqueue(MessageType.declaration, part.encoded)
    }
  }

  private mutating func enqueue(_ type: UInt8, _ payload: [UInt8]) {
    guard isOpen else { return }
    if queue.count >= Self.queueLimit, let oldest = queue.firstIndex(where: { $0.type == MessageType.acknowledgement })
    {
      queue.remove(at: oldest)
    }
    queue.append((type, payload))
  }

  // MARK: Work

  /// Does what can be done now.
  ///
  /// - Returns: what happened, at most `stepLimit` events and two more.
  public mutating func step() -> [GuestChannelEvent] {
    var events: [GuestChannelEvent] = []
    if let event = followEpoch() { events.append(event) }
    guard isOpen else { return events }
    do throws(ChannelViolation) {
      for _ in 0..<Self.stepLimit {
        guard let message = try reader.next(epoch: epoch, version: version) else { break }
        if let event = try take(message.type, message.payload) { events.append(event) }
      }
      while let next = queue.first {
        guard try writer.send(next.type, next.payload, epoch: epoch, version: version) else { break }
        queue.removeFirst()
      }
    } catch {
      // When Dom0 began a new session meanwhile, that is no breach. What came before it is not told: an answer would go into the new session, where the policy
      // was not sent, and Dom0 would close the channel for it. It sends the policy again.
      if let event = followEpoch() { return [event] }
      forget()
      page.release(0, at: ChannelLayout.Guest.epoch)
      events.append(.broken(error))
    }
    return events
  }

  /// Takes up a session that Dom0 began, or notes that it ended one.
  private mutating func followEpoch() -> GuestChannelEvent? {
    let seen = page.acquire(ChannelLayout.Host.epoch)
    guard seen != epoch, seen == 0 || seen != refusedEpoch else { return nil }
    let state = page.acquire(ChannelLayout.Host.state)
    let wasOpen = isOpen
    forget()
    page.release(0, at: ChannelLayout.Guest.epoch)
    guard seen != 0 else {
      return wasOpen ? .ended(reason: UInt16(truncatingIfNeeded: state >> 32)) : nil
    }
    let chosen = UInt16(truncatingIfNeeded: state)
    guard ChannelLayout.versions.contains(chosen) else {
      refusedEpoch = seen
      return .broken(ChannelViolation(.version, "Dom0 chose version \(chosen)"))
    }
    (epoch, version) = (seen, chosen)
    writer.reset()
    reader.reset()
    page.release(epoch, at: ChannelLayout.Guest.epoch)
    return .opened(version: version)
  }

  /// A session that this side gave up; another one is taken up.
  private var refusedEpoch: UInt64 = 0

  private mutating func forget() {
    refusedEpoch = epoch
    epoch = 0
    queue = []
    incoming = nil
    generation = 0
  }

  // MARK: Receiving

  private mutating func take(_ type: UInt8, _ payload: [UInt8]) throws(ChannelViolation) -> GuestChannelEvent? {
    switch type {
    case MessageType.policy: return try take(PolicyChunk(payload))
    case MessageType.query:
      guard payload.isEmpty else { throw ChannelViolation(.message, "a question with something behind it") }
      return .query
    case MessageType.firstOptional...: return nil
    default: throw ChannelViolation(.message, "a message of unknown type \(type)")
    }
  }

  private mutating func take(_ chunk: PolicyChunk) -> GuestChannelEvent? {
    if chunk.index == 0 { incoming = Incoming(first: chunk, bytes: [], next: 0) }
    guard var policy = incoming, chunk.index == policy.next, chunk.version == policy.first.version,
      chunk.digest == policy.first.digest, chunk.total == policy.first.total
    else {
      incoming = nil
      answer(chunk, .damaged, "part \(chunk.index) of \(chunk.count) does not follow")
      return nil
    }
    policy.bytes += chunk.bytes
    policy.next += 1
    incoming = policy
    guard policy.next == chunk.count else { return nil }
    incoming = nil
    do throws(GuestPolicyError) {
      let whole = try GuestPolicy(policy.bytes)
      guard whole.version == chunk.version, Array(policy.bytes.suffix(chunk.digest.count)) == chunk.digest else {
        answer(chunk, .damaged, "the parts name another policy")
        return nil
      }
      return .policy(whole, sentAt: policy.first.now)
    } catch {
      answer(chunk, error.code == .damaged ? .damaged : .refused, error.message)
      return nil
    }
  }

  private mutating func answer(_ chunk: PolicyChunk, _ status: PolicyAcknowledgement.Status, _ reason: String) {
    acknowledge(PolicyAcknowledgement(version: chunk.version, digest: chunk.digest, status: status, reason: reason))
  }
}
