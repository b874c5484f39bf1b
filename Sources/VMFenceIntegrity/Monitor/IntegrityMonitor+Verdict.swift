public import VMFenceCore

// What is refused, and what waits for somebody to decide.
extension IntegrityMonitor {
  /// A request that a policy with `freeze` holds.
  public struct HeldRequest: Hashable, Sendable {
    public var sequence: UInt64
    public var since: Timestamp
    /// When `freezeVerdict` counts, if nobody decides before.
    public var deadline: Timestamp
    /// The protected paths that it would change, at most 16 of them.
    public var paths: [[UInt8]]
    /// Nil as long as nobody has decided.
    public var decision: BlockVerdict?
  }

  /// The request that waits for a decision; nil when none does.
  public var heldRequest: HeldRequest? { held }

  /// Decides about the request that is held: `allow` or `deny`. It is judged so when it is shown the next time; what other rules
  /// refuse in it stays refused.
  ///
  /// - Returns: false when none is held, or it is decided already.
  @discardableResult
  public mutating func decide(_ verdict: BlockVerdict) -> Bool {
    guard held != nil, held?.decision == nil, verdict != .hold else { return false }
    held?.decision = verdict
    return true
  }

  /// Whether fast commits are refused: the guest's journal has them, they are not read, and the policy judges what changes metadata
  /// (`freeze`, `denyMetadata`). A guest whose fast commit fails commits in full, and that is judged.
  public var refusesFastCommits: Bool {
    configuration.policy.judgesMetadata && view?.fileSystem.journal?.header.hasFastCommits == true
  }

  mutating func expireHeld(at time: Timestamp) {
    guard let held, held.decision == nil, time >= held.deadline else { return }
    self.held?.decision = configuration.freezeVerdict
  }

  /// The answer to a request that is shown again and not decided yet; nil when it must be looked at.
  mutating func heldVerdict(_ request: BlockRequest) -> BlockVerdict? {
    guard let held else { return nil }
    guard held.sequence == request.sequence else {
      // Whoever delivers requests has given it up.
      self.held = nil
      return nil
    }
    return held.decision == nil ? .hold : nil
  }

  /// - `verdict`: as it is answered.
  mutating func noteVerdict(_ verdict: BlockVerdict, _ request: BlockRequest) {
    switch verdict {
    case .allow: held = nil
    case .deny:
      held = nil
      statisticsStorage.denied += 1
    case .hold: statisticsStorage.held += 1
    }
  }

  /// What is done with a request because of one protected file.
  private func refusal(_ action: ProtectionPolicy.Action, isMetadata: Bool) -> BlockVerdict {
    switch action {
    case .alert, .rollback: .allow
    case .denyData: isMetadata ? .allow : .deny
    case .denyMetadata: .deny
    case .freeze:
      held?.decision ?? (configuration.freezeLimit <= .zero ? configuration.freezeVerdict : .hold)
    }
  }

  /// What the verbs of all protected files say together to a write that takes them from view.
  func strongestRefusal(isMetadata: Bool = false) -> BlockVerdict {
    var actions: Set<ProtectionPolicy.Action> = []
    for node in (view?.nodes ?? [:]).values { for link in node.links { actions.insert(link.action) } }
    return actions.map { refusal($0, isMetadata: isMetadata) }.max() ?? .allow
  }

  /// Judges changes of contents, and tells at once what is refused or held.
  mutating func refuse(_ changes: [ContentChange], _ moment: Moment) -> BlockVerdict {
    var refused: [FileEvent] = []
    var verdict = BlockVerdict.allow
    var names: [UInt32: [ToldName]] = [:]
    for change in changes {
      guard let node = view?.nodes[change.inode], let action = node.links.map(\.action).max(), action >= .denyData
      else { continue }
      let range = change.range.clamped(to: 0..<node.inode.size)
      let own = range.isEmpty ? .allow : refusal(action, isMetadata: false)
      guard own != .allow else { continue }
      verdict = max(verdict, own)
      let told = names[change.inode] ?? toldNames(of: node)
      names[change.inode] = told
      for name in told {
        refused.append(
          event(
            .write, at: moment, path: name.path, inode: change.inode, offset: range.lowerBound,
            length: UInt64(range.count), changes: name.notes))
      }
    }
    return tellRefused(refused, verdict, moment)
  }

  /// Judges what a transaction was found to change: the events of the batch, which are replaced by those that are refused.
  mutating func refuseMetadata(_ moment: Moment) -> BlockVerdict {
    var refused: [FileEvent] = []
    var verdict = BlockVerdict.allow
    for event in batch {
      switch event.operation {
      case .times, .read, .damage, .gap: continue
      default: break
      }
      let own =
        ([event.path] + (event.oldPath.map { [$0] } ?? []))
        .compactMap { configuration.policy.action(forPath: $0) }
        .map { refusal($0, isMetadata: true) }.max() ?? .allow
      guard own != .allow else { continue }
      verdict = max(verdict, own)
      refused.append(event)
    }
    guard verdict != .allow else { return .allow }
    batch.removeAll(keepingCapacity: true)
    return tellRefused(refused, verdict, moment)
  }

  private mutating func tellRefused(_ events: [FileEvent], _ verdict: BlockVerdict, _ moment: Moment) -> BlockVerdict {
    guard verdict != .allow else { return .allow }
    for var event in events {
      event.verdict = verdict
      batch.append(event)
    }
    flushBatch()
    if verdict == .hold {
      hold(moment, paths: Array(Set(events.map(\.path))).sorted { $0.lexicographicallyPrecedes($1) })
    }
    return verdict
  }

  /// - `paths`: that the request would change; the first 16 are kept.
  mutating func hold(_ moment: Moment, paths: [[UInt8]] = []) {
    held = HeldRequest(
      sequence: moment.sequence, since: moment.time, deadline: moment.time + configuration.freezeLimit,
      paths: Array(paths.prefix(16)))
  }
}
