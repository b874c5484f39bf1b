import Foundation
import TestSupport
import Testing
import VMFenceCore

@testable import VMFenceNotification

@Suite("What waits outlives the process")
struct SpoolTests {
  private final class Folder {
    let path = NSTemporaryDirectory() + "vmfence-spool-\(UUID().uuidString)"
    init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
    deinit { remove(path) }
    var file: String { path + "/spool" }
  }

  /// Takes nothing until it is told to.
  private final class Gate: Delivery, @unchecked Sendable {
    let refused: UInt64 = 0
    private let lock = NSLock()
    private var isOpen: Bool
    private var taken: [String] = []
    init(isOpen: Bool = false) { self.isOpen = isOpen }
    func open() { lock.withLock { isOpen = true } }
    var lines: [String] { lock.withLock { taken } }
    func deliver(_ lines: [[UInt8]]) throws(DeliveryFailure) -> Int {
      let isOpen = lock.withLock { self.isOpen }
      guard isOpen else { throw DeliveryFailure("closed") }
      lock.withLock { taken += lines.map { String(decoding: $0, as: UTF8.self) } }
      return lines.count
    }
    func reset() {}
  }

  private func sink(_ gate: Gate, _ file: String, lines: Int = 1_000) throws -> DeliverySink {
    let (spool, left, _) = try SpoolFile.open(path: file)
    return DeliverySink(
      name: "test", filter: EventFilter(), directory: directory(),
      limits: .init(lines: lines, batch: 8, retryFirst: .milliseconds(5), retryMaximum: .milliseconds(20)),
      spool: (spool, left), delivery: gate
    ) { event in
      if case .alert(let alert) = event { [Array("line \(alert.rule.sid)".utf8)] } else { [] }
    }
  }

  @Test(
    "what was not delivered is delivered by the next process, in order, before what comes new; nothing counts as lost")
  func restart() async throws {
    let folder = try Folder()
    let first = try sink(Gate(), folder.file)
    for number in 1...50 { first.receive(alert(UInt32(number))) }
    try eventually("all are in the spool") { first.counters.spooled == 50 }
    first.close(patience: .milliseconds(10))
    #expect(first.counters.lost == 0)

    let gate = Gate()
    let second = try sink(gate, folder.file)
    #expect(second.counters.waiting == 50)
    for number in 51...60 { second.receive(alert(UInt32(number))) }
    gate.open()
    try eventually("all are delivered") { gate.lines.count == 60 }
    #expect(gate.lines == (1...60).map { "line \($0)" })
    try eventually("the spool is empty") { second.counters.waiting == 0 }
    second.close(patience: waitLimit)
    #expect(try SpoolFile.open(path: folder.file).lines.isEmpty)
    let size = try FileManager.default.attributesOfItem(atPath: folder.file)[.size] as? Int
    #expect(size == SpoolFile.headerSize)
  }

  @Test("a process that is killed loses nothing that was in the spool")
  func killed() async throws {
    let folder = try Folder()
    let first = try sink(Gate(), folder.file)
    for number in 1...20 { first.receive(alert(UInt32(number))) }
    try eventually("all are in the spool") { first.counters.spooled == 20 }
    // As the file is now, without any word from the first.
    try FileManager.default.copyItem(atPath: folder.file, toPath: folder.file + "2")
    #expect(try SpoolFile.open(path: folder.file + "2").lines.count == 20)
    first.close(patience: .zero)
  }

  @Test("it is bounded: what does not fit is counted, and the file does not grow")
  func bounded() async throws {
    let folder = try Folder()
    let sink = try sink(Gate(), folder.file, lines: 10)
    for number in 1...25 { sink.receive(alert(UInt32(number))) }
    try eventually("ten are in the spool") { sink.counters.spooled == 10 }
    #expect(sink.counters.overflowed == 15)
    sink.close(patience: .zero)
    #expect(sink.counters.lost == 15)
    #expect(try SpoolFile.open(path: folder.file).lines.map { String(decoding: $0, as: UTF8.self) }.last == "line 10")
  }

  @Test("what is over with is cut off the file while others wait")
  func compacts() throws {
    let folder = try Folder()
    let (spool, _, _) = try SpoolFile.open(path: folder.file)
    let line = [UInt8](repeating: 0x61, count: 10_000)
    var waiting: [[UInt8]] = []
    for round in 0..<400 {
      let new = line + Array("\(round)".utf8)
      try spool.append([new])
      waiting.append(new)
      if waiting.count > 3 { try spool.drop([waiting.removeFirst()]) }
      let size = try FileManager.default.attributesOfItem(atPath: folder.file)[.size] as? Int ?? 0
      #expect(size < 2 * SpoolFile.slack)
    }
    #expect(try SpoolFile.open(path: folder.file).lines == waiting)
  }

  @Test("damaged anywhere, it gives lines that were written, from the first on, says so, and goes on")
  func damaged() throws {
    let folder = try Folder()
    let (spool, _, _) = try SpoolFile.open(path: folder.file)
    let lines = (0..<5).map { Array("line \($0)".utf8) }
    try spool.append(lines[...])
    try spool.drop(lines[..<1])
    let whole = try Array(Data(contentsOf: URL(filePath: folder.file)))
    for index in whole.indices {
      var bytes = whole
      bytes[index] ^= 0xFF
      try Data(bytes).write(to: URL(filePath: folder.file))
      guard let (again, found, damage) = try? SpoolFile.open(path: folder.file) else {
        #expect(index < 8, "only what has no sign of a spool is refused")
        continue
      }
      #expect(found.count <= 5 && found.allSatisfy(lines.contains))
      if index >= SpoolFile.headerSize + 14 { #expect(damage != nil) }
      try again.append([Array("new".utf8)])
      #expect(try SpoolFile.open(path: folder.file).lines.last == Array("new".utf8))
    }
    for count in 0..<whole.count {
      try Data(whole[..<count]).write(to: URL(filePath: folder.file))
      guard let (_, found, _) = try? SpoolFile.open(path: folder.file) else { continue }
      #expect(found.count <= 4)
    }
  }
}
