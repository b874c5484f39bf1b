public import Testing
public import VMFenceCore

/// What every `FirewallSink` must do, checked from outside. Call it inside a `@Test`:
///
///     @Test func isAFirewallSink() async throws {
///       try await FirewallSinkConformance().check { MySink() }
///     }
///
/// `make` is called several times, and gives a sink with nothing in force each time. A sink that counts the time by a clock of
/// its own says with `start` what it shows, and with `reach` how to wait for a time.
public struct FirewallSinkConformance: Sendable {
  /// The time at which the checks begin.
  public var start: Timestamp
  /// Returns when the sink's clock shows this time.
  public var reach: @Sendable (Timestamp) async throws -> Void
  /// What is blocked or limited in the checks; all of it must be supported.
  public var kinds: [FirewallMeasureKind]
  /// Whether the sink acknowledges changes by itself.
  public var acknowledges: Bool

  public init(
    start: Timestamp = Timestamp(seconds: 1_800_000_000), kinds: [FirewallMeasureKind] = Self.allKinds,
    acknowledges: Bool = true, reach: @escaping @Sendable (Timestamp) async throws -> Void = { _ in }
  ) {
    self.start = start
    self.kinds = kinds
    self.acknowledges = acknowledges
    self.reach = reach
  }

  /// One of each form: single addresses and networks of both families, a quarantine and a rate limit.
  public static let allKinds: [FirewallMeasureKind] = [
    .block(IPNetwork(IPAddress(v4: 0xCB00_7107))),
    .block(IPNetwork(IPAddress(v4: 0xC633_6400), prefix: 24)),
    .block(IPNetwork(IPAddress(v6High: 0x2001_0DB8_0000_0001, low: 7))),
    .block(IPNetwork(IPAddress(v6High: 0x2001_0DB8_0000_0002, low: 0), prefix: 64)),
    .quarantine,
    .rateLimit(packetsPerSecond: 1_000),
  ]

  private static let domain = FirewallScope.domain(
    DomainUUID(high: 0x7F3C_0000_0000_4000, low: 0x8000_0000_0000_0001))
  private static let otherDomain = FirewallScope.domain(
    DomainUUID(high: 0x7F3C_0000_0000_4000, low: 0x8000_0000_0000_0002))

  /// Checks: what is applied is read back, with its end and its decision; a change from another generation conflicts and changes
  /// nothing, also when many come at once; an equal key replaces; removing what is not there is no error; `replace` replaces
  /// all; measures end on time; acknowledgements come in order.
  ///
  /// - Throws: what the sink throws where it must not.
  public func check<Sink: FirewallSink>(
    sourceLocation: SourceLocation = #_sourceLocation, _ make: () async throws -> Sink
  ) async throws {
    try await checkEmpty(make(), sourceLocation)
    try await checkAppliedIsReadBack(make(), sourceLocation)
    try await checkConflict(make(), sourceLocation)
    try await checkRace(make(), sourceLocation)
    try await checkSameKeyReplaces(make(), sourceLocation)
    try await checkRemoval(make(), sourceLocation)
    try await checkReplace(make(), sourceLocation)
    try await checkExpiry(make(), sourceLocation)
    if acknowledges { try await checkAcknowledgements(make(), sourceLocation) }
  }

  private func measure(
    _ kind: FirewallMeasureKind, _ scope: FirewallScope = Self.domain, for duration: Duration? = .seconds(3_600),
    decision: UInt64 = 1
  ) -> FirewallMeasure {
    FirewallMeasure(
      scope: scope, kind: kind, expires: duration.map { start + $0 }, decision: decision, comment: "conformance")
  }

  /// One measure of each kind, for two domains and, if it is a block, the host.
  private var everything: [FirewallMeasure] {
    var decision: UInt64 = 0
    return kinds.flatMap { kind -> [FirewallMeasure] in
      var scopes = [Self.domain, Self.otherDomain]
      if case .block = kind { scopes.append(.host) }
      return scopes.map { scope in
        decision += 1
        return measure(kind, scope, decision: decision)
      }
    }
  }

  private var first: FirewallMeasureKind { kinds[0] }

  private func keys(_ measures: [FirewallMeasure]) -> Set<FirewallMeasure.Key> { Set(measures.map(\.key)) }

  // MARK: The checks

  private func checkEmpty<Sink: FirewallSink>(_ sink: Sink, _ location: SourceLocation) async throws {
    let state = try await sink.readBack(at: start)
    #expect(state.measures.isEmpty, "a new sink holds measures", sourceLocation: location)
  }

  private func checkAppliedIsReadBack<Sink: FirewallSink>(_ sink: Sink, _ location: SourceLocation) async throws {
    let before = try await sink.readBack(at: start).generation
    let wanted = everything
    let applied = ContinuousClock.now
    let generation = try await sink.apply(FirewallChange(from: before, time: start, add: wanted))
    #expect(generation > before, "the generation does not rise with a change", sourceLocation: location)
    let state = try await sink.readBack(at: start)
    #expect(state.generation == generation, "another generation is read back", sourceLocation: location)
    #expect(state.measures.count == wanted.count, "another number of measures is read back", sourceLocation: location)
    for measure in wanted {
      let held = state.measures.first { $0.key == measure.key }
      #expect(held != nil, "\(measure.key) is not read back", sourceLocation: location)
      #expect(held?.decision == measure.decision, "its decision got lost", sourceLocation: location)
      #expect(
        isClose(held?.expires, measure.expires, since: applied), "its end is \(String(describing: held?.expires))",
        sourceLocation: location)
    }
    let again = try await sink.readBack(at: start)
    #expect(
      again.measures.map(\.key) == state.measures.map(\.key), "the order is not stable", sourceLocation: location)
    #expect(again.generation == generation, "reading back changes the generation", sourceLocation: location)
  }

  private func checkConflict<Sink: FirewallSink>(_ sink: Sink, _ location: SourceLocation) async throws {
    let zero = try await sink.readBack(at: start).generation
    let one = try await sink.apply(FirewallChange(from: zero, time: start, add: [measure(first)]))
    let other = measure(first, Self.otherDomain)
    for stale in [zero, one &+ 1] {
      await #expect("a change from generation \(stale) at \(one) is applied", sourceLocation: location) {
        try await sink.apply(
          FirewallChange(from: stale, time: start, add: [other], remove: [measure(first).key]))
      } throws: { error in
        (error as? FirewallError)?.code == .conflict
      }
    }
    let state = try await sink.readBack(at: start)
    #expect(state.generation == one, "a conflict changes the generation", sourceLocation: location)
    #expect(keys(state.measures) == keys([measure(first)]), "a conflict changes something", sourceLocation: location)
  }

  /// Of changes from one generation, made at once, exactly one wins.
  private func checkRace<Sink: FirewallSink>(_ sink: Sink, _ location: SourceLocation) async throws {
    let zero = try await sink.readBack(at: start).generation
    let time = start
    let measures = (0..<16).map { number in
      measure(first, .domain(DomainUUID(high: 1, low: UInt64(number))), decision: UInt64(number))
    }
    let winners = await withTaskGroup(of: UInt64?.self) { group in
      for measure in measures {
        group.addTask {
          let change = FirewallChange(from: zero, time: time, add: [measure])
          return (try? await sink.apply(change)) == nil ? nil : measure.decision
        }
      }
      var winners: [UInt64] = []
      for await winner in group { if let winner { winners.append(winner) } }
      return winners
    }
    #expect(winners.count == 1, "\(winners.count) changes from one generation win", sourceLocation: location)
    let held = try await sink.readBack(at: start).measures.map(\.decision)
    #expect(held == winners, "what is held is not what won", sourceLocation: location)
  }

  private func checkSameKeyReplaces<Sink: FirewallSink>(_ sink: Sink, _ location: SourceLocation) async throws {
    var generation = try await sink.readBack(at: start).generation
    let steps = [
      measure(first, for: .seconds(600)), measure(first, for: .seconds(3_600), decision: 2),
      measure(first, for: .seconds(300), decision: 3),
    ]
    for step in steps {
      let applied = ContinuousClock.now
      generation = try await sink.apply(FirewallChange(from: generation, time: start, add: [step]))
      let held = try await sink.readBack(at: start).measures
      #expect(held.count == 1, "adding an equal key adds a second measure", sourceLocation: location)
      #expect(held.first?.decision == step.decision, "the decision is not replaced", sourceLocation: location)
      #expect(
        isClose(held.first?.expires, step.expires, since: applied), "the end of a measure that stands is not replaced",
        sourceLocation: location)
    }
    generation = try await sink.apply(
      FirewallChange(from: generation, time: start, add: [steps[0]], remove: [steps[0].key]))
    #expect(
      keys(try await sink.readBack(at: start).measures) == keys([steps[0]]),
      "a key that is removed and added in one change does not stand afterwards", sourceLocation: location)
  }

  private func checkRemoval<Sink: FirewallSink>(_ sink: Sink, _ location: SourceLocation) async throws {
    var generation = try await sink.readBack(at: start).generation
    let all = everything
    generation = try await sink.apply(FirewallChange(from: generation, time: start, add: all))
    let absent = FirewallMeasure.Key(scope: .domain(DomainUUID(high: 9, low: 9)), kind: first)
    let change = FirewallChange(from: generation, time: start, remove: [absent, all[0].key])
    generation = try await sink.apply(change)
    #expect(
      keys(try await sink.readBack(at: start).measures) == keys(Array(all.dropFirst())),
      "removing takes away another thing than asked", sourceLocation: location)
    _ = try await sink.apply(FirewallChange(from: generation, time: start, remove: change.remove + change.remove))
    #expect(
      keys(try await sink.readBack(at: start).measures) == keys(Array(all.dropFirst())),
      "removing twice takes away more", sourceLocation: location)
  }

  private func checkReplace<Sink: FirewallSink>(_ sink: Sink, _ location: SourceLocation) async throws {
    let zero = try await sink.readBack(at: start).generation
    let one = try await sink.apply(FirewallChange(from: zero, time: start, add: [measure(first, Self.otherDomain)]))
    let wanted = everything.filter { $0.key.scope == Self.domain }
    let two = try await sink.replace(with: wanted, at: start)
    #expect(two > one, "replacing does not raise the generation", sourceLocation: location)
    let state = try await sink.readBack(at: start)
    #expect(state.generation == two, "another generation is read back", sourceLocation: location)
    #expect(keys(state.measures) == keys(wanted), "something else is in force", sourceLocation: location)
    let three = try await sink.replace(with: [], at: start)
    #expect(three > two, "replacing does not raise the generation", sourceLocation: location)
    #expect(try await sink.readBack(at: start).measures.isEmpty, "something stayed", sourceLocation: location)
  }

  private func checkExpiry<Sink: FirewallSink>(_ sink: Sink, _ location: SourceLocation) async throws {
    let zero = try await sink.readBack(at: start).generation
    let short = measure(first, for: .seconds(8), decision: 1)
    let long = measure(first, Self.otherDomain, for: .seconds(3_600), decision: 2)
    let endless = measure(first, .domain(DomainUUID(high: 3, low: 3)), for: nil, decision: 3)
    let applied = ContinuousClock.now
    _ = try await sink.apply(FirewallChange(from: zero, time: start, add: [short, long, endless]))
    let before = start + .seconds(1)
    try await reach(before)
    let early = keys(try await sink.readBack(at: before).measures)
    // A sink with a clock of its own has gone on when the machine stood still for so long, and rightly has ended it.
    let isLate = ContinuousClock.now - applied >= .seconds(8)
    #expect(
      early == keys([short, long, endless]) || isLate && early == keys([long, endless]),
      "a measure ends before its time", sourceLocation: location)
    let after = start + .seconds(10)
    try await reach(after)
    let state = try await sink.readBack(at: after)
    #expect(keys(state.measures) == keys([long, endless]), "a measure outlives its time", sourceLocation: location)
    #expect(
      state.measures.first { $0.key == endless.key }?.expires == nil, "a measure without end has one",
      sourceLocation: location)
    _ = try await sink.apply(FirewallChange(from: state.generation, time: after, remove: [short.key]))
    let again = FirewallMeasure(scope: Self.domain, kind: first, expires: after + .seconds(60), decision: 4)
    let generation = try await sink.readBack(at: after).generation
    _ = try await sink.apply(FirewallChange(from: generation, time: after, add: [again]))
    #expect(
      try await sink.readBack(at: after).measures.contains { $0.key == again.key && $0.decision == 4 },
      "what has ended cannot come again", sourceLocation: location)
  }

  private func checkAcknowledgements<Sink: FirewallSink>(_ sink: Sink, _ location: SourceLocation) async throws {
    let stream = await sink.acknowledgements()
    var generation = try await sink.readBack(at: start).generation
    for number in 0..<5 {
      generation = try await sink.apply(
        FirewallChange(from: generation, time: start, add: [measure(first, decision: UInt64(number))]))
    }
    let last = generation
    let seen = await withTaskGroup(of: [UInt64]?.self) { group in
      group.addTask {
        var seen: [UInt64] = []
        for await acknowledgement in stream {
          seen.append(acknowledgement.generation)
          if acknowledgement.generation >= last { break }
        }
        return seen
      }
      group.addTask {
        _ = await Looks.until(.seconds(60), every: .milliseconds(100)) { Task.isCancelled }
        return nil
      }
      let seen = await group.next() ?? nil
      group.cancelAll()
      return seen
    }
    guard let seen else {
      Issue.record("generation \(last) is not acknowledged within a minute", sourceLocation: location)
      return
    }
    #expect(seen.last == last, "a generation is acknowledged that never was", sourceLocation: location)
    #expect(zip(seen, seen.dropFirst()).allSatisfy { $0 < $1 }, "out of order: \(seen)", sourceLocation: location)
  }

  /// A firewall may count ends in whole seconds; to one with a clock of its own they have come nearer since it was told them.
  private func isClose(_ end: Timestamp?, _ wanted: Timestamp?, since applied: ContinuousClock.Instant) -> Bool {
    guard let end, let wanted else { return end == wanted }
    return end - wanted <= .seconds(2) && wanted - end <= .seconds(2) + (ContinuousClock.now - applied)
  }
}
