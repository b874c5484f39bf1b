import VMFenceCore

extension SinkContents {
  /// Of transactions from this size on, our own listener is not told.
  static let quietTransaction = 64 << 10

  /// Sends the transaction that was written.
  ///
  /// While somebody listens, the kernel writes a message for each element that it takes, and for our own listener only to drop it in a filter: for
  /// 100,000 elements that takes more than twice as long as the change itself. So the listener leaves for the time of a large change. What
  /// others did meanwhile shows by the ruleset's generation: we alone raise it by one.
  mutating func commit() throws(NetlinkError) {
    guard let listener, batch.byteCount >= Self.quietTransaction else { return try sendCounted() }
    let before = try socket.rulesetGeneration()
    listener.listens(false)
    var failure: NetlinkError?
    do throws(NetlinkError) { try sendCounted() } catch { failure = error }
    listener.listens(true)
    let expected = failure == nil ? Self.generation(after: before) : before
    if (try? socket.rulesetGeneration()) != expected { listener.reportUnknownChange() }
    if let failure { throw failure }
  }

  private mutating func sendCounted() throws(NetlinkError) {
    do throws(NetlinkError) {
      try socket.send(batch)
    } catch {
      // After a refusal nothing has changed; otherwise it is not known.
      if case .refused = error {} else { knownGeneration = nil }
      throw error
    }
    transactions += 1
    knownGeneration = knownGeneration.map(Self.generation(after:))
  }

  /// Makes sure that the transaction raises the ruleset's generation, which one that turns out to change nothing (emptying what is empty) does not: an
  /// element that no interface can have comes and goes.
  mutating func writeTick() {
    var key = ElementKey()
    key.append(interface: "/")
    for deletes in [false, true] {
      batch.beginElements(of: SpoofingRules.guardedSet, deletes: deletes)
      batch.element(key)
      batch.endElements()
    }
  }

  /// The kernel leaves 0 out.
  static func generation(after generation: UInt32) -> UInt32 { generation == .max ? 1 : generation + 1 }

  /// Whether what is known stands, because nobody else has changed anything since it was read or written.
  mutating func isModelCurrent() throws(NetlinkError) -> Bool {
    guard let knownGeneration else { return false }
    return try socket.rulesetGeneration() == knownGeneration
  }
}
