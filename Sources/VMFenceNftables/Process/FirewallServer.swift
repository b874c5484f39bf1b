internal import Glibc
internal import Synchronization
package import VMFenceCore

/// The process's side: the packet filter, and the answers. It decides nothing, and reads nothing that a guest wrote. Used by one thread.
package struct FirewallServer {
  /// Bytes of a message to it.
  package static let messageLimit = FirewallMessage.byteLimit
  /// How long a table that another process owns is waited for: the process before this one may end only now.
  private static let holderPatience = Duration.seconds(3)

  private let opens: KeptFirewall.Opening
  private let senderProblem: FirewallError?
  private var firewall: (any KeptFirewall)?
  private let heard = HeardChanges()
  private var lastSequence: UInt64?
  /// The parts of a question that goes on.
  private var begun: FirewallQuestion?
  /// An answer of which only a part was asked for, and the record that comes next.
  private var rest: (answer: FirewallAnswer, next: Int)?

  /// - `sender`: sends resets, or why nothing does.
  package init(sender: Result<ResetSender, FirewallError>) {
    var (resets, problem) = (ResetSender?.none, FirewallError?.none)
    switch sender {
    case .success(let sender): resets = sender
    case .failure(let failure): problem = failure
    }
    self.init(senderProblem: problem) { [resets] configuration, heard throws(NetlinkError) in
      SinkWithResets(sink: try NftablesSink.opening(configuration, heard), resets: resets)
    }
  }

  init(senderProblem: FirewallError?, _ opens: @escaping KeptFirewall.Opening) {
    self.senderProblem = senderProblem
    self.opens = opens
  }

  /// - `isolate`: called when the packet filter is open, before that is answered.
  /// - Returns: the answer; nil when the owner asked what no sound one asks: then this is to end.
  package mutating func answer(_ message: [UInt8], isolate: () -> Void) -> [UInt8]? {
    guard let question = FirewallQuestion(message), lastSequence.map({ question.sequence > $0 }) ?? true,
      begun == nil || begun?.verb == question.verb, (question.verb == .open) == (firewall == nil)
    else { return nil }
    lastSequence = question.sequence
    if question.verb == .more { return more(question) }
    rest = nil
    if begun == nil { begun = question } else { begun?.records += question.records }
    guard let whole = begun, whole.records.count <= FirewallMessage.recordLimit else { return nil }
    if question.hasMore { return say(FirewallAnswer(question.verb), question) }
    begun = nil
    if let firewall { return say(Self.obey(whole, firewall, heard), question) }
    let answer = open(whole)
    isolate()
    return say(answer, question)
  }

  private mutating func say(_ answer: FirewallAnswer, from start: Int = 0, _ question: FirewallQuestion) -> [UInt8] {
    let part = answer.part(from: start, sequence: question.sequence)
    rest = part.next < answer.records.count ? (answer, part.next) : nil
    return part.bytes
  }

  private mutating func more(_ question: FirewallQuestion) -> [UInt8]? {
    guard let rest else { return nil }
    return say(rest.answer, from: rest.next, question)
  }

  // MARK: What is asked

  private mutating func open(_ question: FirewallQuestion) -> FirewallAnswer {
    var configuration = NftablesSink.Configuration(
      protectsHost: question.number & FirewallQuestion.Option.protectsHost != 0,
      holdsTable: question.number & FirewallQuestion.Option.holdsTable != 0,
      capacity: Int(clamping: min(max(question.time, 0), Int64(FirewallMessage.recordLimit))))
    configuration.quarantineExceptions.allowsDHCP = question.number & FirewallQuestion.Option.allowsDHCP != 0
    for record in question.records {
      if case .network(let network) = record { configuration.quarantineExceptions.networks.append(network) }
      if case .text(let text) = record { configuration.table = text }
    }
    do throws(NetlinkError) {
      let firewall = try openFree(configuration)
      self.firewall = firewall
      var answer = FirewallAnswer(.open)
      answer.generation = firewall.generation
      answer.number = UInt64(firewall.adoptedMeasures)
      answer.records = [.text(senderProblem?.message ?? ""), .text(firewall.portProblem ?? "")]
      return answer
    } catch .held(let port, let family) {
      return FirewallAnswer(.open, heldBy: port, family)
    } catch {
      return FirewallAnswer(
        .open, FirewallError(error, during: NftablesSink.openingAction, table: configuration.table))
    }
  }

  private func openFree(_ configuration: NftablesSink.Configuration) throws(NetlinkError) -> any KeptFirewall {
    let (heard, deadline) = (heard, ContinuousClock.now + Self.holderPatience)
    while true {
      do throws(NetlinkError) {
        return try opens(configuration) { heard.put($0) }
      } catch .held(let port, let family) {
        guard ContinuousClock.now < deadline else { throw .held(port, family) }
        usleep(20_000)
      }
    }
  }

  private static func obey(
    _ question: FirewallQuestion, _ firewall: any KeptFirewall, _ heard: HeardChanges
  ) -> FirewallAnswer {
    var answer: FirewallAnswer
    do throws(FirewallError) {
      answer = try carryOut(question, firewall, heard)
    } catch { answer = FirewallAnswer(question.verb, error) }
    answer.generation = firewall.generation
    return answer
  }

  private static func carryOut(
    _ question: FirewallQuestion, _ firewall: any KeptFirewall, _ heard: HeardChanges
  ) throws(FirewallError) -> FirewallAnswer {
    var answer = FirewallAnswer(question.verb)
    let time = Timestamp(nanoseconds: question.time)
    switch question.verb {
    case .apply:
      try firewall.apply(
        FirewallChange(
          from: question.number, time: time, add: question.records.compactMap(\.measure),
          remove: question.records.compactMap(\.removed)))
    case .replace: try firewall.replace(with: question.records.compactMap(\.measure), at: time)
    case .read: answer.records = try firewall.measures(at: time).map { .measure($0) }
    case .ports:
      let (ports, antiSpoofing) = ports(question)
      try firewall.update(ports, antiSpoofing)
    case .cut:
      let outcome = try firewall.cut(question.records.compactMap(\.flow), for: .nanoseconds(question.time))
      answer.number = UInt64(outcome.cut)
      answer.records = outcome.left.map { .flow($0) }
    case .reset:
      let results = firewall.send(question.records.compactMap(\.reset))
      answer.records = results?.map { .isSent($0) } ?? []
    case .counts:
      let counts = try firewall.counts()
      answer.records = FirewallCount.list(counts).map { .count($0) }
      answer.number = counts.elements.map { UInt64(clamping: $0) } ?? .max
    case .look: answer.records = heard.take().map { .change($0) }
    case .open, .more: break
    }
    return answer
  }

  private static func ports(_ question: FirewallQuestion) -> ([DomainUUID: [NetworkPort]], AntiSpoofing) {
    var ports: [DomainUUID: [NetworkPort]] = [:]
    var antiSpoofing = AntiSpoofing(SpoofingKind.set(of: UInt8(truncatingIfNeeded: question.number)) ?? [])
    for record in question.records {
      switch record {
      case .port(let domain, let port):
        if let last = ports[domain]?.last, last.interface == port.interface {
          ports[domain]![ports[domain]!.count - 1].addresses += port.addresses
        } else {
          ports[domain, default: []].append(port)
        }
      case .exception(let domain, let kinds): antiSpoofing.exceptions[domain] = kinds
      case .network(let network): antiSpoofing.reserved.insert(network.base)
      default: break
      }
    }
    return (ports, antiSpoofing)
  }
}

/// The packet filter as the process's side has it: the kernel's, or, to try that side, none. Used by one thread.
protocol KeptFirewall {
  /// Opens it; what it is given is called, on any thread, for each change by others.
  typealias Opening =
    @Sendable (NftablesSink.Configuration, @escaping @Sendable (ForeignChange) -> Void) throws(NetlinkError) ->
    any KeptFirewall

  var generation: UInt64 { get }
  /// What stood when it was opened.
  var adoptedMeasures: Int { get }
  /// What is not stopped at ports, and what helps.
  var portProblem: String? { get }
  func apply(_ change: FirewallChange) throws(FirewallError)
  func replace(with measures: [FirewallMeasure], at time: Timestamp) throws(FirewallError)
  func measures(at time: Timestamp) throws(FirewallError) -> [FirewallMeasure]
  func update(_ ports: [DomainUUID: [NetworkPort]], _ antiSpoofing: AntiSpoofing) throws(FirewallError)
  func cut(_ flows: [FlowCut], for duration: Duration) throws(FirewallError) -> NftablesSink.CutOutcome
  /// - Returns: for each whether it was sent; nil where none are.
  func send(_ resets: [AddressedReset]) -> [Bool]?
  func counts() throws(FirewallError) -> TrafficCounts
}

extension SinkWithResets: KeptFirewall {
  var generation: UInt64 { sink.contents.withLock { $0.generation } }
  var adoptedMeasures: Int { sink.adoptedMeasures }
  var portProblem: String? { sink.features.portProblem }

  func apply(_ change: FirewallChange) throws(FirewallError) {
    _ = try sink.locked { contents throws(FirewallError) in try contents.apply(change) }
  }
  func replace(with measures: [FirewallMeasure], at time: Timestamp) throws(FirewallError) {
    _ = try sink.locked { contents throws(FirewallError) in
      try contents.change(adding: measures, removing: [], at: time, replacesAll: true)
    }
  }
  func measures(at time: Timestamp) throws(FirewallError) -> [FirewallMeasure] {
    try sink.locked { contents throws(FirewallError) in try contents.readBack(at: time) }.measures
  }
  func update(_ ports: [DomainUUID: [NetworkPort]], _ antiSpoofing: AntiSpoofing) throws(FirewallError) {
    try sink.locked { contents throws(FirewallError) in try contents.update(ports, antiSpoofing) }
  }
  func cut(_ flows: [FlowCut], for duration: Duration) throws(FirewallError) -> NftablesSink.CutOutcome {
    try sink.locked { contents throws(FirewallError) in try contents.cut(flows, for: duration) }
  }
  func counts() throws(FirewallError) -> TrafficCounts {
    try sink.locked { contents throws(FirewallError) in try contents.readCounts(ofMeasures: false) }
  }
}

/// What others did, until it is asked for. The newest are kept.
private final class HeardChanges: Sendable {
  private let changes = Mutex<[ForeignChange]>([])

  func put(_ change: ForeignChange) {
    changes.withLock { changes in
      if changes.count == ProcessFirewallSink.changeLimit { changes.removeFirst() }
      changes.append(change)
    }
  }

  func take() -> [ForeignChange] {
    changes.withLock { changes in
      defer { changes = [] }
      return changes
    }
  }
}

extension FirewallRecord {
  var measure: FirewallMeasure? { if case .measure(let measure) = self { measure } else { nil } }
  var removed: FirewallMeasure.Key? { if case .removed(let key) = self { key } else { nil } }
  var flow: FlowCut? { if case .flow(let flow) = self { flow } else { nil } }
  var reset: AddressedReset? { if case .reset(let reset) = self { reset } else { nil } }
  var isSent: Bool? { if case .isSent(let isSent) = self { isSent } else { nil } }
  var change: ForeignChange? { if case .change(let change) = self { change } else { nil } }
}
