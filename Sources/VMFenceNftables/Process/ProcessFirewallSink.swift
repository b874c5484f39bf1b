internal import Glibc
internal import Synchronization
public import VMFenceCore

/// The packet filter through a process of its own, `vmfence-firewall`, which holds CAP_NET_ADMIN in the place of this one, and nothing else.
///
/// ```swift
/// let sink = try ProcessFirewallSink.open { () throws(DetectorError) in try HelperProcess("vmfence-firewall") }
/// ```
///
/// It does what `NftablesSink` does, which the process has. Nobody waits for that process for long: one that has ended, that does not answer in time, or says what no sound one
/// says is gone, and another is started, which goes on with the table that the kernel keeps and is told the ports again. Meanwhile what stands in the kernel stays in force, and every
/// call fails at once; `news` says so, and when there is one again: then what is in force is to be read back. Generations rise over all of that, so a change of before conflicts.
///
/// Safe to use from any thread; calls go one after another, and may keep their thread for as long as is waited.
public final class ProcessFirewallSink: FirewallSink, FlowFirewall {
  /// Starts the program: `HelperProcess` of `VMFenceProcess`. Called again after the end of a process, from a thread of the sink.
  public typealias Start = @Sendable () throws(DetectorError) -> any MessageProcess

  /// How long is waited for what.
  public struct Patience: Hashable, Sendable {
    /// Until a process that was started has the packet filter.
    public var open: Duration = .seconds(30)
    /// A call, and besides for each measure that is named in it, or, where all are looked at, that stands; for these so long at the most. A call that is not answered within this is
    /// not carried out later: the process is ended.
    public var call: Duration = .seconds(2)
    public var measure: Duration = .microseconds(200)
    public var measuresMost: Duration = .seconds(20)
    /// From one start of a process to the next.
    public var restart: Duration = .seconds(1)
    /// From one look whether it lives, and what others did, to the next.
    public var look: Duration = .milliseconds(200)

    public init() {}
  }

  public enum News: Hashable, Sendable {
    /// What is in force has to be read back.
    case changedByOthers(ForeignChange)
    /// There is no process any more, or again none could be started, and why.
    case gone(String)
    /// There is one again: what is in force has to be read back.
    case back
  }

  /// Of changes by others so many are told at once at the most.
  static let changeLimit = 16
  private static let portLimit = 65_536

  public let configuration: NftablesSink.Configuration
  private let patience: Patience
  private let link: Mutex<FirewallLink>
  private let streams = NewsStreams<News>()

  private init(_ configuration: NftablesSink.Configuration, _ patience: Patience, _ start: @escaping Start) {
    self.configuration = configuration
    self.patience = patience
    let keeper = ProcessKeeper("vmfence-firewall", restart: patience.restart, start)
    link = Mutex(FirewallLink(table: configuration.table, patience: patience, keeper))
  }

  deinit {
    link.withLock { $0.close() }
    streams.finish()
  }

  /// Starts the process, and returns when it has opened the packet filter of this program's network namespace, and can do nothing else any more.
  ///
  /// - Throws: as `NftablesSink.open`; `unsupported` for a configuration that is too long; `failed` when the process cannot be started.
  public static func open(
    _ configuration: NftablesSink.Configuration = .init(), patience: Patience = Patience(), _ start: @escaping Start
  ) throws(FirewallError) -> ProcessFirewallSink {
    let sink = try opening(configuration, patience: patience, start)
    let pause = UInt32(clamping: patience.look.wholeNanoseconds / 1_000)
    let error = DetachedThread.start { [weak sink] in
      while sink?.look() != nil { usleep(pause) }
    }
    guard error == 0 else { throw FirewallError(.failed, "cannot start a thread: \(describeError(error))") }
    return sink
  }

  /// One that nobody looks after: `look` is the caller's to call.
  static func opening(
    _ configuration: NftablesSink.Configuration, patience: Patience, _ start: @escaping Start
  ) throws(FirewallError) -> ProcessFirewallSink {
    guard configuration.table.utf8.count <= FirewallRecord.textLimit,
      configuration.quarantineExceptions.networks.count <= portLimit
    else {
      throw FirewallError(.unsupported, "the table's name or the list of exceptions from quarantine is too long")
    }
    let sink = ProcessFirewallSink(configuration, patience, start)
    try sink.begin()
    return sink
  }

  /// Why there is no process now; nil when there is one.
  public var problem: String? { link.withLock { $0.absence } }

  /// Why resets cannot be sent; nil when they can.
  public var resetProblem: String? { link.withLock { $0.resetProblem } }

  /// What of `SpoofingKind.mac` is not stopped on this kernel, and what helps; nil when all of it is.
  public var portProblem: String? { link.withLock { $0.portProblem } }

  /// What happens to the process, and what others do to the table. Who reads too slowly gets the newest. Ends with the sink.
  public func news() -> AsyncStream<News> { streams.add() }

  // MARK: FirewallSink

  public func apply(_ change: FirewallChange) async throws(FirewallError) -> UInt64 {
    let records = change.remove.map { FirewallRecord.removed($0) } + change.add.map { FirewallRecord.measure($0) }
    try checkRoom(records.count)
    return try link.withLock { link throws(FirewallError) in
      // One of before the process conflicts there, too: its own begin at 1.
      let from = change.from > link.base ? change.from - link.base : 0
      let question = FirewallQuestion(.apply, time: change.time.nanoseconds, number: from, records: records)
      _ = try link.ask(question, "change the packet filter", limit: 0)
      link.standing = min(link.standing + change.add.count, configuration.capacity)
      link.acknowledge(at: change.time)
      return link.generation
    }
  }

  public func replace(with measures: [FirewallMeasure], at time: Timestamp) async throws(FirewallError) -> UInt64 {
    try checkRoom(measures.count)
    let question = FirewallQuestion(.replace, time: time.nanoseconds, records: measures.map { .measure($0) })
    return try link.withLock { link throws(FirewallError) in
      _ = try link.ask(question, "change the packet filter", limit: 0)
      link.standing = measures.count
      link.acknowledge(at: time)
      return link.generation
    }
  }

  public func readBack(at time: Timestamp) async throws(FirewallError) -> FirewallState {
    let limit = min(configuration.capacity, FirewallMessage.recordLimit)
    return try link.withLock { link throws(FirewallError) in
      let answer = try link.ask(
        FirewallQuestion(.read, time: time.nanoseconds), "read the packet filter back", limit: limit)
      link.standing = answer.records.count
      link.acknowledge(at: time)
      return FirewallState(generation: link.generation, measures: answer.records.compactMap(\.measure))
    }
  }

  public func acknowledgements() async -> AsyncStream<FirewallAcknowledgement> {
    let (stream, continuation) = AsyncStream.makeStream(
      of: FirewallAcknowledgement.self, bufferingPolicy: .bufferingNewest(64))
    let number = link.withLock { $0.addListener(continuation) }
    continuation.onTermination = { [weak self] _ in
      self?.link.withLock { $0.listeners[number] = nil }
    }
    return stream
  }

  // MARK: Ports and flows

  /// See `NftablesSink.update`. They are said again to every process that is started.
  ///
  /// - Throws: besides, `full` for more ports than 65,536.
  public func update(
    ports: [DomainUUID: [NetworkPort]], antiSpoofing: AntiSpoofing = .off
  ) async throws(FirewallError) {
    var records: [FirewallRecord] = []
    for (domain, list) in SinkContents.assign(ports) {
      for var port in list {
        port.bridge = port.bridge.flatMap { NetworkPort.isInterfaceName($0) ? $0 : nil }
        records += FirewallRecord.ports(domain, port)
      }
    }
    records += antiSpoofing.exceptions.map { .exception($0.key, $0.value) }
    records += antiSpoofing.reserved.filter(\.isV6LinkLocal).map { .network(IPNetwork($0)) }
    guard records.count <= Self.portLimit else {
      throw FirewallError(.full, "\(records.count) ports, exceptions and addresses, and \(Self.portLimit) fit")
    }
    let question = FirewallQuestion(
      .ports, number: UInt64(SpoofingKind.mask(of: antiSpoofing.kinds)), records: records)
    try link.withLock { link throws(FirewallError) in
      link.ports = question
      try link.sayPorts()
    }
  }

  /// See `NftablesSink.trafficCounts`; without those of single measures.
  public func trafficCounts() async throws(FirewallError) -> TrafficCounts {
    let answer = try link.withLock { link throws(FirewallError) in
      try link.ask(FirewallQuestion(.counts), "read the packet filter's counters", limit: Self.portLimit)
    }
    var counts = TrafficCounts()
    for case .count(let count) in answer.records { count.add(to: &counts) }
    counts.elements = Int(exactly: answer.number)
    return counts
  }

  /// See `NftablesSink.cut`.
  @discardableResult
  public func cut(
    _ flows: [FlowCut], for duration: Duration = .seconds(60)
  ) async throws(FirewallError) -> NftablesSink.CutOutcome {
    let flows = flows.filter { $0.source.family == $0.destination.family }
    guard !flows.isEmpty else { return NftablesSink.CutOutcome() }
    try checkRoom(flows.count)
    let question = FirewallQuestion(.cut, time: duration.wholeNanoseconds, records: flows.map { .flow($0) })
    let answer = try link.withLock { link throws(FirewallError) in
      try link.ask(question, "cut flows", limit: flows.count)
    }
    return NftablesSink.CutOutcome(
      cut: min(Int(clamping: answer.number), flows.count), left: answer.records.compactMap(\.flow))
  }

  func send(_ resets: [AddressedReset]) async -> [Bool]? {
    let question = FirewallQuestion(.reset, records: resets.map { .reset($0) })
    return link.withLock { link in
      do throws(FirewallError) {
        let answer = try link.ask(question, "reset connections", limit: resets.count)
        if answer.records.isEmpty, link.resetProblem != nil { return nil }
        let sent = answer.records.compactMap(\.isSent)
        return sent.count == resets.count ? sent : resets.map { _ in false }
      } catch { return resets.map { _ in false } }
    }
  }

  private func checkRoom(_ count: Int) throws(FirewallError) {
    guard count > FirewallMessage.recordLimit else { return }
    throw FirewallError(
      .full, "\(count) things at once, and \(FirewallMessage.recordLimit) fit",
      remedy: "block networks instead of single addresses")
  }

  // MARK: The process

  /// Starts a process, and goes on with it when it has opened the packet filter. Until then every call fails at once.
  private func begin() throws(FirewallError) {
    var session = link.withLock { $0.session }
    do throws(FirewallError) {
      let answer = try session.open(configuration, within: patience.open)
      link.withLock { link in
        link.install(session, answer)
        // Before anybody asks something else. What is refused is tried again at the next look.
        try? link.sayPorts()
      }
    } catch {
      link.withLock { $0.session = session }
      throw error
    }
  }

  /// Looks whether the process lives, and what it has heard; starts another where there is none.
  func look() {
    var news: [News] = []
    let mayBegin = link.withLock { link in
      if link.absence == nil {
        if link.hasUnsaidPorts { try? link.sayPorts() }
        let changes = try? link.ask(FirewallQuestion(.look), "look at the packet filter", limit: Self.changeLimit)
        news += changes?.records.compactMap(\.change).map { .changedByOthers($0) } ?? []
      }
      if let reason = link.takeAbsence() { news.append(.gone(reason)) }
      return link.session.keeper.mayBegin(at: .now)
    }
    news.forEach(streams.report)
    guard mayBegin else { return }
    // Why none could be started is told at the next look.
    do throws(FirewallError) { try begin() } catch { return }
    streams.report(.back)
  }
}
