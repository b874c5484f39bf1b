import Foundation
import Synchronization
import Testing
import VMFenceCore

@Suite("Decision log")
struct FileDecisionLogTests {
  /// One decision of every form.
  private static let samples: [Decision] = {
    let v6 = network("2001:db8::/64")
    let measures: [Decision.Measure] = [
      .notify, .block(network("203.0.113.7")), .blockOnHost(v6), .quarantine, .rateLimit(packetsPerSecond: 77), .pause,
      .shutDown, .lift(.init(scope: .host, kind: .block(v6))),
      .lift(.init(scope: .domain(uuid(1)), kind: .quarantine)),
      .lift(.init(scope: .domain(uuid(1)), kind: .rateLimit(packetsPerSecond: 1))),
    ]
    return measures.enumerated().map { index, measure in
      Decision(
        id: UInt64(index + 1), time: at(Double(index)), incarnation: index % 2 == 0 ? nil : incarnation(3),
        measure: measure, status: Decision.Status.allCases[index % Decision.Status.allCases.count],
        policy: "p\(index)", reason: "grüße \"\n", step: index, expires: index % 3 == 0 ? nil : at(1e9),
        trigger: "1:\(index)", source: index % 2 == 0 ? v6 : nil, isLogged: index != 4)
    }
  }()

  private func open(_ directory: TemporaryDirectory) throws -> (log: FileDecisionLog, recovery: DecisionLogRecovery) {
    try FileDecisionLog.open(path: directory.file("log"))
  }

  @Test("what was appended is read again, and appended to")
  func roundTrip() throws {
    let directory = try TemporaryDirectory()
    do {
      let (log, recovery) = try open(directory)
      #expect(recovery == DecisionLogRecovery(decisions: []))
      try log.append(Array(Self.samples.prefix(4)))
      try log.append([])
      try log.sync()
    }
    do {
      let (log, recovery) = try open(directory)
      #expect(recovery == DecisionLogRecovery(decisions: Array(Self.samples.prefix(4))))
      try log.append(Array(Self.samples.dropFirst(4)))
    }
    #expect(try open(directory).recovery == DecisionLogRecovery(decisions: Self.samples))
  }

  @Test("a log cut off anywhere gives the records before the cut, says so, and goes on")
  func torn() throws {
    let directory = try TemporaryDirectory()
    var ends: [Int] = []
    do {
      let (log, _) = try open(directory)
      ends.append(log.byteCount)
      for decision in Self.samples.prefix(3) {
        try log.append([decision])
        ends.append(log.byteCount)
      }
    }
    let whole = try directory.bytes("log")
    for cut in ends[0]...ends[3] where cut % 3 == 0 || ends.contains(cut) {
      // What a crash leaves behind: the beginning of the record, then the zeros allocated ahead.
      for tail in [0, 4_096] {
        try directory.write(Array(whole[..<cut]) + Array(repeating: 0, count: tail), to: "log")
        let complete = ends.dropFirst().filter { $0 <= cut }.count
        do {
          let (log, recovery) = try open(directory)
          #expect(recovery.decisions == Array(Self.samples.prefix(complete)), "cut at \(cut)")
          #expect((recovery.damage == nil) == ends.contains(cut), "cut at \(cut), tail \(tail)")
          try log.append([Self.samples[7]])
        }
        let again = try open(directory).recovery
        #expect(again == DecisionLogRecovery(decisions: Array(Self.samples.prefix(complete)) + [Self.samples[7]]))
      }
    }
  }

  @Test("no changed byte of a record is taken for a decision")
  func flipped() throws {
    let directory = try TemporaryDirectory()
    var ends: [Int] = []
    do {
      let (log, _) = try open(directory)
      ends.append(log.byteCount)
      for decision in Self.samples.prefix(2) {
        try log.append([decision])
        ends.append(log.byteCount)
      }
    }
    let whole = Array(try directory.bytes("log").prefix(ends[2]))
    for offset in ends[0]..<ends[2] {
      var bytes = whole
      bytes[offset] ^= 0x41
      try directory.write(bytes, to: "log")
      let recovery = try open(directory).recovery
      #expect(recovery.decisions == Array(Self.samples.prefix(offset < ends[1] ? 0 : 1)), "byte \(offset)")
      #expect(recovery.damage != nil)
    }
  }

  @Test("another file is not taken for a log, and stays as it is", arguments: ["#!/bin/sh\n", "VMFDLOG2", "V"])
  func notALog(text: String) throws {
    let directory = try TemporaryDirectory()
    let bytes = Array(text.utf8) + Array(repeating: 1, count: 100)
    try directory.write(bytes, to: "log")
    let error = #expect(throws: DecisionLogError.self) { try open(directory) }
    #expect(error?.code == .notALog)
    #expect(try directory.bytes("log") == bytes)
  }

  @Test("a file of zeros, left by a crash at the very beginning, is an empty log")
  func zeros() throws {
    let directory = try TemporaryDirectory()
    try directory.write(Array(repeating: 0, count: 64), to: "log")
    let (log, recovery) = try open(directory)
    #expect(recovery == DecisionLogRecovery(decisions: []))
    try log.append([Self.samples[0]])
  }

  @Test("one process at a time")
  func inUse() throws {
    let directory = try TemporaryDirectory()
    let (log, _) = try open(directory)
    let error = #expect(throws: DecisionLogError.self) { try open(directory) }
    #expect(error?.code == .inUse)
    _ = log
  }

  @Test("who has the lock for a moment, as a process that is being started does, is waited for")
  func inUseForAMoment() throws {
    let directory = try TemporaryDirectory()
    try open(directory).log.append([Self.samples[0]])
    // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
    let other = unsafe Glibc.open(directory.file("log"), O_RDWR | O_CLOEXEC)
    try #require(other >= 0 && flock(other, LOCK_EX) == 0)
    Thread {
      usleep(500_000)
      close(other)
    }.start()
    #expect(try open(directory).recovery.decisions == [Self.samples[0]])
  }

  @Test("no directory, no permission and no space have errors of their own")
  func errors() throws {
    let missing = #expect(throws: DecisionLogError.self) { try FileDecisionLog.open(path: "/nowhere/log") }
    #expect(missing?.code == .inputOutput)
    let directory = try TemporaryDirectory()
    let (log, _) = try FileDecisionLog.open(path: directory.file("log"), byteLimit: 300)
    try log.append([Self.samples[0]])
    let full = #expect(throws: DecisionLogError.self) { try log.append(Self.samples) }
    #expect(full?.code == .full)
    try log.append([Self.samples[1]])
  }

  @Test("a compacted log holds what it was told to, and nothing else")
  func compact() throws {
    let directory = try TemporaryDirectory()
    do {
      let (log, _) = try open(directory)
      for _ in 0..<100 { try log.append(Self.samples) }
      let before = log.byteCount
      try log.compact(to: [Self.samples[1], Self.samples[3]])
      #expect(log.byteCount < before / 100)
      try log.append([Self.samples[5]])
      #expect(throws: DecisionLogError.self) { try open(directory) }
    }
    #expect(
      try open(directory).recovery
        == DecisionLogRecovery(decisions: [Self.samples[1], Self.samples[3], Self.samples[5]]))
  }

  /// What has happened at each step of a compaction, as a crash then would leave it.
  private final class Crashes: Sendable {
    let held = Mutex<[(step: FileDecisionLog.CompactionStep, decisions: [Decision], log: [UInt8])]>([])
  }

  @Test("whenever the process dies while the log is compacted, what was appended before and meanwhile is there")
  func compactionCrashes() throws {
    let directory = try TemporaryDirectory()
    let (log, _) = try open(directory)
    for _ in 0..<100 { try log.append(Self.samples) }
    let kept = [Self.samples[1], Self.samples[3]]
    let (crashes, path) = (Crashes(), directory.file("log"))
    let finish = try log.beginCompaction(to: kept) { step in
      crashes.held.withLock { held in
        // One after each step, and one more while the next is under way.
        let number = held.count
        let new = Self.samples[4 + number]
        try? log.append([new])
        try? log.sync()
        held.append(
          (
            step, (held.last?.decisions ?? []) + [new],
            (try? Data(contentsOf: URL(filePath: path))).map(Array.init) ?? []
          ))
      }
    }
    #expect(throws: DecisionLogError.self) { try log.beginCompaction(to: kept) }
    try finish()
    let held = crashes.held.withLock { $0 }
    #expect(held.map(\.step) == FileDecisionLog.CompactionStep.allCases)
    for (step, decisions, bytes) in held {
      let crashed = try TemporaryDirectory()
      try crashed.write(bytes, to: "log")
      let recovery = try open(crashed).recovery
      #expect(recovery.damage == nil && recovery.decisions.suffix(decisions.count) == decisions[...], "\(step)")
      let before = recovery.decisions.dropLast(decisions.count)
      #expect(step == .replaced ? Array(before) == kept : before.count == 100 * Self.samples.count, "\(step)")
    }
    #expect(log.byteCount < 10_000 && !log.isCompactionDue)
    try log.append([Self.samples[0]])
    try log.compact(to: kept)
  }

  @Test("a compaction that fails leaves the log as it was, with what was appended meanwhile")
  func failedCompaction() throws {
    let directory = try TemporaryDirectory()
    do {
      let (log, _) = try open(directory)
      try log.append([Self.samples[0]])
      try directory.makeDirectory("log.new")
      let finish = try log.beginCompaction(to: [])
      try log.append([Self.samples[1]])
      #expect(throws: DecisionLogError.self) { try finish() }
      try log.append([Self.samples[2]])
    }
    #expect(try open(directory).recovery == DecisionLogRecovery(decisions: Array(Self.samples.prefix(3))))
  }

  @Test("what was written of a log that could not take the other's place is removed: its room is the log's")
  func remainsOfCompaction() throws {
    let directory = try TemporaryDirectory()
    let (log, _) = try open(directory)
    try log.append(Array(Self.samples.prefix(2)))
    let finish = try log.beginCompaction(to: Array(Self.samples.prefix(1))) { step in
      guard step == .joined else { return }
      #expect(FileManager.default.fileExists(atPath: log.path + ".new"))
      // No file takes the place of a directory.
      #expect(throws: Never.self) {
        try FileManager.default.removeItem(atPath: log.path)
        try FileManager.default.createDirectory(atPath: log.path, withIntermediateDirectories: false)
      }
    }
    #expect {
      try finish()
    } throws: { error in
      (error as? DecisionLogError)?.message.contains("rename") == true
    }
    #expect(!FileManager.default.fileExists(atPath: log.path + ".new"))
  }

  @Test("hostile text is cut to its limit, between characters")
  func longText() throws {
    let directory = try TemporaryDirectory()
    var decision = Self.samples[0]
    decision.reason = String(repeating: "€", count: 5_000)
    do { try open(directory).log.append([decision]) }
    let read = try #require(try open(directory).recovery.decisions.first)
    #expect(read.reason == String(repeating: "€", count: 1_365))
  }

  /// Makes a payload one that no log writes.
  struct Forgery: CustomTestStringConvertible {
    var testDescription: String
    /// The sample whose payload it is.
    var sample = 0
    var forge: @Sendable (inout [UInt8]) -> Void
  }

  @Test(
    "a record that no log writes is no decision, whatever its checksum says",
    arguments: [
      Forgery(
        testDescription: "a number after which there is none",
        forge: { $0.replaceSubrange(1..<9, with: Array(repeating: 0xFF, count: 8)) }),
      Forgery(testDescription: "an address behind a network's prefix", sample: 2, forge: { $0[28] = 1 }),
      Forgery(
        testDescription: "a text beyond the limit",
        forge: { $0.replaceSubrange(20..<24, with: [0x88, 0x13] + Array(repeating: 0x61, count: 5_000)) }),
    ])
  func forged(forgery: Forgery) throws {
    let directory = try TemporaryDirectory()
    do { try open(directory).log.append([Self.samples[forgery.sample]]) }
    let whole = try directory.bytes("log")
    let length = Int(whole[64]) | Int(whole[65]) << 8
    func write(_ forge: (inout [UInt8]) -> Void) throws {
      var payload = Array(whole[80..<80 + length])
      forge(&payload)
      func field(_ value: Int, _ count: Int) -> [UInt8] { (0..<count).map { UInt8(value >> (8 * $0) & 0xFF) } }
      let sum = CRC32C.checksum(field(payload.count, 4) + field(1, 8) + payload)
      try directory.write(
        whole[..<64] + field(payload.count, 4) + field(Int(sum), 4) + field(1, 8) + payload, to: "log")
    }
    try write { _ in }
    #expect(try open(directory).recovery == DecisionLogRecovery(decisions: [Self.samples[forgery.sample]]))
    try write(forgery.forge)
    let recovery = try open(directory).recovery
    #expect(recovery.decisions.isEmpty && recovery.damage?.message.contains("no decision of this version") == true)
  }

  @Test("CRC-32C gives the values of RFC 3720, appendix B.4")
  func crc() {
    #expect(CRC32C.checksum(Array("123456789".utf8)) == 0xE306_9283)
    #expect(CRC32C.checksum([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
    #expect(CRC32C.checksum([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
  }

  @Test("a log of which much is needed is made anew before it is full, and not all the time")
  func dueBeforeFull() throws {
    let directory = try TemporaryDirectory()
    let limit = 20_000
    let (log, _) = try FileDecisionLog.open(path: directory.file("log"), byteLimit: limit)
    let needed = (0..<150).map { _ in Self.samples[0] }
    try log.compact(to: needed)
    let compacted = log.byteCount
    #expect(compacted > limit / 2 && !log.isCompactionDue)
    var appended = 0
    while !log.isCompactionDue, appended < 1_000 {
      try log.append([Self.samples[1]])
      appended += 1
    }
    #expect(log.isCompactionDue && appended > 10)
    try log.compact(to: needed)
    #expect(log.byteCount == compacted && !log.isCompactionDue)
  }

  @Test("a log is not made so large that it could not be opened again")
  func tooMuchNeeded() throws {
    let directory = try TemporaryDirectory()
    let limit = 2_000
    do {
      let (log, _) = try FileDecisionLog.open(path: directory.file("log"), byteLimit: limit)
      try log.append([Self.samples[1]])
      // More than what may be allocated ahead.
      let error = #expect(throws: DecisionLogError.self) {
        try log.compact(to: Array(repeating: Self.samples[0], count: 1_000))
      }
      #expect(error?.code == .full)
      try log.append([Self.samples[2]])
    }
    let (_, recovery) = try FileDecisionLog.open(path: directory.file("log"), byteLimit: limit)
    #expect(recovery == DecisionLogRecovery(decisions: [Self.samples[1], Self.samples[2]]))
  }
}
