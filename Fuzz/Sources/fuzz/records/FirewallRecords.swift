@testable import VMFenceCore
@testable import VMFenceNftables

enum FirewallRecords {
  // MARK: Messages

  static func readQuestion(_ operands: Operands) {
    let cut = Int(operands.number(UInt16.self))
    let bytes = operands.rest()
    guard let question = FirewallQuestion(bytes) else { return }
    precondition(bytes.count <= FirewallMessage.byteLimit, "longer than a message may be")
    precondition(question.records.count <= bytes.count / 2, "more records than bytes")
    precondition(question.records.allSatisfy(question.verb.asks), "a question with what is none of it")
    question.records.forEach(checkRecord)
    precondition(FirewallQuestion(Array(bytes.prefix(cut % bytes.count))) == nil, "a question without its end")
    precondition(FirewallQuestion(bytes + [0]) == nil, "a question with more behind it")
    let (again, next) = question.part(from: 0, sequence: question.sequence)
    precondition(again.count <= FirewallMessage.byteLimit, "longer than a message may be")
    compare(bytes, again, next, question.records, hasMore: question.hasMore)
    precondition(FirewallQuestion(again) != nil, "a question is written that is none")
  }

  /// An answer, after the verb of the question and a place at which it is cut.
  static func readAnswer(_ operands: Operands) {
    let verb = FirewallVerb.allCases[Int(operands.byte()) % FirewallVerb.allCases.count]
    let cut = Int(operands.number(UInt16.self))
    let bytes = operands.rest()
    let sequence = bytes.count < 16 ? 0 : (8..<16).reversed().reduce(0 as UInt64) { $0 << 8 | UInt64(bytes[$1]) }
    guard let answer = FirewallAnswer(bytes, to: verb, sequence) else { return }
    precondition(FirewallAnswer(bytes, to: verb, sequence &+ 1) == nil, "an answer to another question")
    precondition(bytes.count <= FirewallMessage.byteLimit && answer.records.count <= bytes.count / 2, "a long answer")
    precondition(answer.generation <= 1 << 40, "a generation that overflows")
    answer.records.forEach(checkRecord)
    if answer.failure == nil {
      precondition(answer.records.allSatisfy(verb.answers), "an answer with what is none of it")
      precondition(answer.error(during: "a", table: "t") == nil)
    } else {
      guard let error = answer.error(during: "a", table: "t") else { fatalError("a failure that is none") }
      for text in [error.message, error.remedy] {
        checkText(text)
        precondition(text.utf8.count <= 8 * 3 * FirewallRecord.textLimit, "a long text")
      }
    }
    precondition(FirewallAnswer(Array(bytes.prefix(cut % bytes.count)), to: verb, sequence) == nil, "without its end")
    precondition(FirewallAnswer(bytes + [0], to: verb, sequence) == nil, "an answer with more behind it")
    let (again, next) = answer.part(from: 0, sequence: sequence)
    precondition(again.count <= FirewallMessage.byteLimit, "longer than a message may be")
    compare(bytes, again, next, answer.records, hasMore: answer.hasMore)
  }

  private static func compare(
    _ bytes: [UInt8], _ again: [UInt8], _ next: Int, _ records: [FirewallRecord], hasMore: Bool
  ) {
    guard records.allSatisfy(\.isExact) else { return }
    precondition(next == records.count, "a message that does not fit into one any more")
    var again = again
    if hasMore { again[16] = 1 }
    precondition(again == bytes, "a message is written otherwise than it was read")
  }

  // MARK: The process, and a daemon that lies

  /// Messages, each after what it is made from: bytes as they are, or a question around records.
  static func serve(_ operands: Operands) {
    let firewalls = DoubleFirewalls()
    let refuses = operands.byte() % 8 == 7
    var server = firewalls.server(refuses: refuses)
    // What was asked last, all parts of it that have come; whether some of its answer has not come yet.
    var asked: FirewallQuestion?
    var (isolations, last, isLeft) = (0, UInt64?.none, false)
    for _ in 0..<64 where !operands.isAtEnd {
      let message = Self.message(operands, last ?? 0)
      let before = firewalls.last?.contents
      let answer = server.answer(message) { isolations += 1 }
      let isUnchanged = before?.generation == firewalls.last?.generation
      guard let answer else {
        precondition(isUnchanged, "it did what it took for no question")
        return
      }
      guard let question = FirewallQuestion(message) else { fatalError("an answer to what is none") }
      precondition(last.map { question.sequence > $0 } ?? true, "an answer to what was asked before")
      last = question.sequence
      if question.verb == .more {
        precondition(isLeft && isUnchanged, "more of nothing")
      } else if let begun = asked, begun.hasMore {
        precondition(begun.verb == question.verb, "a question that goes on as another")
        asked?.records += question.records
        asked?.hasMore = question.hasMore
      } else {
        asked = question
      }
      guard let asked, answer.count <= FirewallMessage.byteLimit,
        let read = FirewallAnswer(answer, to: asked.verb, question.sequence)
      else { fatalError("an answer that its owner does not take") }
      isLeft = read.hasMore
      precondition(firewalls.all.count <= 1 && (firewalls.last == nil || isolations == 1), "it keeps what it ought not")
      if asked.hasMore {
        precondition(isUnchanged && read.records.isEmpty && read.failure == nil, "an answer to half a question")
      } else if question.verb != .more, let firewall = firewalls.last {
        check(asked, read, hasChanged: !isUnchanged, firewall.contents)
      }
    }
  }

  private static func message(_ operands: Operands, _ last: UInt64) -> [UInt8] {
    let choice = operands.byte()
    guard choice % 4 != 0 else { return operands.bytes(Int(operands.number(UInt16.self)) % 4_096) }
    let verb = FirewallVerb.allCases[Int(operands.byte()) % FirewallVerb.allCases.count]
    var question = FirewallQuestion(verb, number: UInt64(operands.byte()))
    question.time = Int64(bitPattern: operands.byte() % 2 == 0 ? 1_000_000 : operands.number())
    question.records = records(operands, verb.asks)
    var (bytes, _) = question.part(from: 0, sequence: last &+ UInt64(operands.byte() % 16 == 0 ? 0 : 1))
    if choice % 4 == 1, !question.records.isEmpty { bytes[16] = 1 }
    return bytes
  }

  /// What was done is what was asked.
  private static func check(
    _ asked: FirewallQuestion, _ answer: FirewallAnswer, hasChanged: Bool, _ contents: DoubleFirewall.Contents
  ) {
    let measures = asked.records.compactMap(\.measure)
    switch asked.verb {
    case .apply, .replace:
      precondition(hasChanged == (answer.failure == nil), "done and refused, or neither")
      if hasChanged {
        precondition(measures.allSatisfy { contents.measures[$0.key] != nil }, "a measure is lost")
        let keys = Set(measures.map(\.key))
        precondition(asked.verb == .apply || contents.measures.count == keys.count, "more than was asked")
      }
    case .cut:
      precondition(contents.flows == asked.records.compactMap(\.flow), "other flows")
      precondition(answer.number == UInt64(contents.flows.count / 2), "another count")
    case .reset: precondition(contents.resets == asked.records.compactMap(\.reset), "other resets")
    case .ports:
      let domains = asked.records.compactMap { if case .port(let domain, _) = $0 { domain } else { nil } }
      precondition(Set(contents.ports.keys) == Set(domains), "other ports")
    case .open, .read, .look, .counts, .more: break
    }
    precondition(answer.generation == contents.generation, "another generation than what is in force")
  }

  /// Records as the input has them, as far as they may stand there.
  static func records(_ operands: Operands, _ isExpected: (FirewallRecord) -> Bool) -> [FirewallRecord] {
    let bytes = operands.bytes(Int(operands.byte()))
    guard !bytes.isEmpty else { return [] }
    var (reader, records) = (RecordReader(bytes), [FirewallRecord]())
    while records.count < 64 {
      do throws(RecordFailure) {
        let record = try FirewallRecord(&reader)
        if isExpected(record) { records.append(record) }
      } catch { break }
    }
    // Some of them many times: so that a list goes in parts.
    if let last = records.last, operands.byte() % 16 == 0 {
      records += Array(repeating: last, count: Int(operands.byte()) * 16)
    }
    return records
  }
}
