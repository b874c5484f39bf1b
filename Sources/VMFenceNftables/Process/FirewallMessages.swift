import VMFenceCore

/// What passes between a daemon and the process that holds the packet filter for it: one question, one answer, and so on. All numbers are little-endian; both are
/// of one build. What does not fit into one message of `byteLimit` goes in parts, each of them a message that is answered: of a question while it has `more`, of an answer by
/// asking for `more`.
///
/// ```
/// question                                      answer
///  0  version      u32  of all this              0  verb         u32  the question's
///  4  verb         u32                           4  failure      u32  0: it was done
///  8  sequence     u64  one more each time       8  sequence     u64  the question's
/// 16  more         u32  1: a part follows       16  more         u32  1: there is more to ask for
/// 20  records      u32                          20  records      u32
/// 24  time         i64  nanoseconds             24  generation   u64
/// 32  number       u64                          32  number       u64
/// 40  records                                   40  records
/// ```
///
/// A record is a byte that says which, and its fields (`FirewallRecord`).
enum FirewallMessage {
  static let headBytes = 40
  /// Bytes of the longest. A socket takes several of these.
  static let byteLimit = 60 << 10
  /// Records of one question or answer, all of its parts together.
  static let recordLimit = 1_100_000
  static let version: UInt32 = 0x564D_4602

  /// Writes as many of the records as fit behind what is written already, and says at `countAt` how many these are.
  ///
  /// - Returns: the index of the first that did not fit.
  static func pack(
    _ records: [FirewallRecord], from start: Int, countAt: Int, into bytes: inout [UInt8]
  ) -> Int {
    var index = start
    while index < records.count {
      let before = bytes.count
      records[index].write(to: &bytes)
      if bytes.count > byteLimit {
        bytes.removeSubrange(before...)
        break
      }
      index += 1
    }
    for shift in 0..<4 { bytes[countAt + shift] = UInt8(truncatingIfNeeded: (index - start) >> (8 * shift)) }
    return index
  }
}

enum FirewallVerb: UInt32, Sendable, CaseIterable {
  /// The first question, asked once: opens the packet filter. Before it is answered the process gives up what it does not need any more. `time`: how many measures fit;
  /// `number`: what of `FirewallQuestion.Option` is wanted. The answer's number: how many measures stood already; its texts: why resets cannot be sent, what is not stopped at ports (empty: nothing).
  case open = 1
  /// A change, from the generation `number`.
  case apply
  case replace
  /// What is in force at `time`.
  case read
  /// All ports of all domains; `number`: which pretences are stopped.
  case ports
  /// Cuts flows for `time`. The answer: how many, and those for which there was no room.
  case cut
  /// Resets connections. The answer: for each whether it was; none where resets cannot be sent.
  case reset
  /// What others did to the table since the last look.
  case look
  /// What was stopped, by why, and of pretences by port. The answer's number: how many elements measures have; all ones: that is not known.
  case counts
  case more

  func asks(with record: FirewallRecord) -> Bool {
    switch (self, record) {
    case (.open, .text), (.open, .network), (.apply, .measure), (.apply, .removed), (.replace, .measure),
      (.ports, .port), (.ports, .exception), (.ports, .network), (.cut, .flow), (.reset, .reset):
      true
    default: false
    }
  }

  func answers(with record: FirewallRecord) -> Bool {
    switch (self, record) {
    case (.open, .text), (.read, .measure), (.cut, .flow), (.reset, .isSent), (.look, .change), (.counts, .count):
      true
    default: false
    }
  }
}

struct FirewallQuestion: Equatable, Sendable {
  enum Option {
    static let protectsHost: UInt64 = 1
    static let holdsTable: UInt64 = 2
    static let allowsDHCP: UInt64 = 4
  }

  var verb: FirewallVerb
  var sequence: UInt64 = 0
  var hasMore = false
  var time: Int64 = 0
  var number: UInt64 = 0
  var records: [FirewallRecord] = []

  init(_ verb: FirewallVerb, time: Int64 = 0, number: UInt64 = 0, records: [FirewallRecord] = []) {
    self.verb = verb
    self.time = time
    self.number = number
    self.records = records
  }

  /// The part that begins with this record.
  ///
  /// - Returns: it, and the record that the next part begins with; as many as there are: there is no next one.
  func part(from start: Int, sequence: UInt64) -> (bytes: [UInt8], next: Int) {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(records.isEmpty ? FirewallMessage.headBytes : 4 << 10)
    bytes.append(little: FirewallMessage.version)
    bytes.append(little: verb.rawValue)
    bytes.append(little: sequence)
    bytes.append(little: UInt64(0))
    bytes.append(little: UInt64(bitPattern: time))
    bytes.append(little: number)
    let next = FirewallMessage.pack(records, from: start, countAt: 20, into: &bytes)
    if next < records.count { bytes[16] = 1 }
    return (bytes, next)
  }

  /// nil when it is none, or one of another build.
  init?(_ bytes: [UInt8]) {
    var reader = RecordReader(bytes)
    do throws(RecordFailure) {
      guard bytes.count <= FirewallMessage.byteLimit, try reader.number(UInt32.self) == FirewallMessage.version,
        let verb = FirewallVerb(rawValue: try reader.number(UInt32.self))
      else { return nil }
      self.init(verb)
      sequence = try reader.number(UInt64.self)
      hasMore = try reader.flag(UInt32.self)
      let count = try reader.number(UInt32.self)
      time = Int64(bitPattern: try reader.number(UInt64.self))
      number = try reader.number(UInt64.self)
      records = try reader.records(count, verb.asks)
    } catch { return nil }
    guard !hasMore || !records.isEmpty else { return nil }
  }
}

struct FirewallAnswer: Equatable, Sendable {
  /// Why something was not done. Two texts say it in words, and what can be done.
  enum Failure: UInt32, Sendable, CaseIterable {
    case conflict = 1
    case unsupported, permissionDenied, full, failed
    /// Another process owns a table of ours: the answer's number is its netlink port, and above that the table's family.
    case held
    case inUse
  }

  var verb: FirewallVerb
  var sequence: UInt64 = 0
  var failure: Failure?
  var hasMore = false
  var generation: UInt64 = 0
  var number: UInt64 = 0
  var records: [FirewallRecord] = []

  init(_ verb: FirewallVerb) { self.verb = verb }

  init(_ verb: FirewallVerb, _ error: FirewallError) {
    self.verb = verb
    failure =
      switch error.code {
      case .conflict: .conflict
      case .unsupported: .unsupported
      case .permissionDenied: .permissionDenied
      case .inUse: .inUse
      case .full: .full
      default: .failed
      }
    records = [.text(error.message), .text(error.remedy)]
  }

  init(_ verb: FirewallVerb, heldBy port: UInt32, _ family: TableFamily) {
    self.verb = verb
    failure = .held
    number = UInt64(family.rawValue) << 32 | UInt64(port)
  }

  /// Whose the table is, and which; nil when it is nobody's, or none of ours.
  private var holder: NetlinkError? {
    guard failure == .held, let family = UInt8(exactly: number >> 32).flatMap(TableFamily.init), family != .inet else {
      return nil
    }
    return .held(UInt32(truncatingIfNeeded: number), family)
  }

  /// The part that begins with this record.
  func part(from start: Int, sequence: UInt64) -> (bytes: [UInt8], next: Int) {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(records.isEmpty ? FirewallMessage.headBytes : 4 << 10)
    bytes.append(little: verb.rawValue)
    bytes.append(little: failure?.rawValue ?? 0)
    bytes.append(little: sequence)
    bytes.append(little: UInt64(0))
    bytes.append(little: generation)
    bytes.append(little: number)
    let next = FirewallMessage.pack(records, from: start, countAt: 20, into: &bytes)
    if next < records.count { bytes[16] = 1 }
    return (bytes, next)
  }

  /// The answer to the question of this verb and sequence number, or a part of it, which a process gave that may have been taken over; nil when no sound one gives it.
  init?(_ bytes: [UInt8], to verb: FirewallVerb, _ sequence: UInt64) {
    self.init(verb)
    var reader = RecordReader(bytes)
    do throws(RecordFailure) {
      guard bytes.count <= FirewallMessage.byteLimit, try reader.number(UInt32.self) == verb.rawValue else {
        return nil
      }
      let failure = try reader.number(UInt32.self)
      self.failure = Failure(rawValue: failure)
      guard failure == 0 || self.failure != nil, try reader.number(UInt64.self) == sequence else { return nil }
      self.sequence = sequence
      hasMore = try reader.flag(UInt32.self)
      let count = try reader.number(UInt32.self)
      generation = try reader.number(UInt64.self)
      number = try reader.number(UInt64.self)
      let isFailure = failure != 0
      records = try reader.records(count) { record in
        if isFailure, case .text = record { true } else { !isFailure && verb.answers(with: record) }
      }
    } catch { return nil }
    guard generation <= 1 << 40, !hasMore || !records.isEmpty && failure == nil,
      failure == nil || records.count == (failure == .held ? 0 : 2), (failure == .held) == (holder != nil)
    else { return nil }
  }

  /// What went wrong, in the words of the process, made fit to be shown.
  ///
  /// - Returns: nil when nothing did.
  func error(during action: String, table: String) -> FirewallError? {
    guard let failure else { return nil }
    if let holder { return FirewallError(holder, during: action, table: table) }
    let code: FirewallError.Code
    switch failure {
    case .conflict: code = .conflict
    case .unsupported: code = .unsupported
    case .permissionDenied: code = .permissionDenied
    case .inUse, .held: code = .inUse
    case .full: code = .full
    case .failed: code = .failed
    }
    let texts = records.map { record in
      if case .text(let text) = record { text.escapedForDisplay } else { "" }
    }
    return FirewallError(code, texts.first ?? "", remedy: texts.last ?? "")
  }
}
