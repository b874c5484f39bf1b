import Foundation
import Testing
import VMFenceCore
import VMFenceStore
import VMFenceTestKit

@Suite struct BaselineTests {
  let folder: TemporaryFolder
  let key: IntegrityKey
  let store = MemoryStateStore()

  init() throws {
    folder = try TemporaryFolder()
    key = try IntegrityKey.make(path: folder.path + "/key")
  }

  static func entry(_ path: String, size: UInt64 = 1, partition: UInt32 = 0) -> BaselineEntry {
    BaselineEntry(
      partition: partition, path: Array(path.utf8), inode: 12, mode: 0o100644, userID: 1, groupID: 2, size: size,
      links: 1,
      modificationTime: -5, attributes: [], sha256: [UInt8](repeating: UInt8(size), count: 32))
  }

  private func write(_ entries: [BaselineEntry], disk: String = "web") throws -> Baseline {
    try Baseline.write(
      disk: disk, patterns: ["/etc/**", "/boot"], entries: entries, at: Timestamp(seconds: 100), to: store, key: key)
  }

  private func code(of disk: String = "web", key: IntegrityKey? = nil) -> BaselineError.Code? {
    do throws(BaselineError) {
      _ = try Baseline.read(disk: disk, from: store, key: key ?? self.key)
      return nil
    } catch {
      #expect(!error.remedy.isEmpty)
      return error.code
    }
  }

  @Test func whatIsWrittenIsReadInTheOrderOfItsKeys() throws {
    let entries = [Self.entry("/etc/b"), Self.entry("/etc/a", partition: 2), Self.entry("/etc/a\u{1}")]
    let written = try write(entries)
    let read = try Baseline.read(disk: "web", from: store, key: key)
    #expect(read.entries == [entries[2], entries[0], entries[1]] && read.entries == written.entries)
    #expect(read.generation == 1 && read.patterns == ["/etc/**", "/boot"] && read.time == Timestamp(seconds: 100))
    #expect(try write(entries).generation == 2)
    #expect(code(of: "other") == .noBaseline)
  }

  @Test func anyEditIsSeen() throws {
    _ = try write([Self.entry("/etc/a"), Self.entry("/etc/b", size: 2)])
    for table in ["baseline", "baseline:web"] {
      for record in try store.records(in: table, from: [], to: nil, limit: 10) {
        for index in stride(from: 0, to: record.value.count, by: table == "baseline" ? 1 : 5) {
          var value = record.value
          value[index] ^= 1
          try store.commit([.put(table: table, key: record.key, value: value)])
          #expect(code() == .edited, "byte \(index) of \(table)")
        }
        try store.commit([.put(table: table, key: record.key, value: Array(record.value.dropLast()))])
        #expect(code() == .edited)
        try store.commit([.put(table: table, key: record.key, value: record.value)])
      }
    }
    #expect(code() == nil)
    let first = try #require(try store.records(in: "baseline:web", from: [], to: nil, limit: 1).first)
    try store.commit([.remove(table: "baseline:web", key: first.key)])
    #expect(code() == .edited, "a file left out")
    try store.commit([.put(table: "baseline:web", key: first.key + [0x78], value: first.value)])
    #expect(code() == .edited, "a file renamed")
  }

  @Test func anOldOneAndARemovedOneAreSeen() throws {
    _ = try write([Self.entry("/etc/a")])
    var old: [StateChange] = []
    for table in ["baseline", "baseline:web"] {
      for record in try store.records(in: table, from: [], to: nil, limit: 10) {
        old.append(.put(table: table, key: record.key, value: record.value))
      }
    }
    _ = try write([Self.entry("/etc/a", size: 3)])
    #expect(code() == nil)
    try store.commit([.removeRange(table: "baseline:web", from: [], to: nil)] + old)
    #expect(code() == .old)
    try store.commit([.removeRange(table: "baseline", from: [], to: nil)])
    #expect(code() == .old, "removed")
  }

  @Test func aBaselineOfAnotherDiskOrKeyDoesNotPass() throws {
    _ = try write([Self.entry("/etc/a")])
    for (from, to) in [("baseline", "baseline"), ("baseline:web", "baseline:db")] {
      for record in try store.records(in: from, from: [], to: nil, limit: 10) {
        let key = from == "baseline" ? Array("db".utf8) : record.key
        try store.commit([.put(table: to, key: key, value: record.value)])
      }
    }
    #expect(code(of: "db") == .edited)
    #expect(code(key: try IntegrityKey.make(path: folder.path + "/other")) == .edited)
  }

  @Test func theCountBesideTheKeyIsSigned() throws {
    _ = try write([Self.entry("/etc/a")])
    _ = try write([Self.entry("/etc/a")])
    let path = key.path + ".generations"
    let text = try String(contentsOfFile: path, encoding: .utf8)
    try text.replacing("2 ", with: "1 ", maxReplacements: 1).write(toFile: path, atomically: true, encoding: .utf8)
    #expect(code() == .edited)
    try "garbage".write(toFile: path, atomically: true, encoding: .utf8)
    #expect(code() == .edited)
  }

  @Test func theDecisionLogKnowsHowManyWereSigned() throws {
    let log = MemoryDecisionLog()
    func write(_ disk: String = "web") throws {
      _ = try Baseline.write(
        disk: disk, patterns: ["/etc/**"], entries: [Self.entry("/etc/a")], at: Timestamp(seconds: 1), to: store,
        key: key, log: BaselineLog(log, holding: log.decisions))
    }
    func code(_ decisions: [Decision]) -> BaselineError.Code? {
      do throws(BaselineError) {
        _ = try Baseline.read(disk: "web", from: store, key: key, log: BaselineLog(log, holding: decisions))
        return nil
      } catch { return error.code }
    }
    try write()
    let old = try store.records(in: "baseline", from: [], to: nil, limit: 10)
    try write("other")
    try write()
    try write()
    #expect(log.decisions.map(\.id) == [1, 2, 3, 4] && code(log.decisions) == nil)
    // An old one, with the key's count of then.
    try store.commit(old.map { .put(table: "baseline", key: $0.key, value: $0.value) })
    try FileManager.default.removeItem(atPath: key.path + ".generations")
    #expect(code([]) == nil, "without the log nobody knows")
    #expect(code(log.decisions) == .old)
    var edited = log.decisions
    edited[3].step = 1
    #expect(code(edited) == .edited)
    try write()
    #expect(code(log.decisions) == nil && log.decisions.last?.step == 4, "the next one counts on")
    #expect(code(Array(log.decisions[..<2])) == .edited, "the log was cut")
  }

  @Test func aFailureLeavesTheOneBefore() throws {
    _ = try write([Self.entry("/etc/a")])
    store.fail(with: StateStoreError(.full, "no room"))
    #expect(throws: BaselineError.self) { try write([Self.entry("/etc/a", size: 9)]) }
    store.fail(with: nil)
    #expect(try Baseline.read(disk: "web", from: store, key: key).entries == [Self.entry("/etc/a")])
  }

  @Test func aKeyThatOthersMayReadIsRefused() throws {
    let path = folder.path + "/key"
    func code() -> BaselineError.Code? {
      do throws(BaselineError) {
        _ = try IntegrityKey(path: path)
        return nil
      } catch { return error.code }
    }
    #expect(code() == nil)
    try FileManager.default.setAttributes([.posixPermissions: 0o640], ofItemAtPath: path)
    #expect(code() == .weakKey)
    try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path)
    try Data([1, 2, 3]).write(to: URL(filePath: path))
    #expect(code() == .noKey)
    #expect(throws: BaselineError.self) { try IntegrityKey.make(path: path) }
    #expect(throws: BaselineError.self) { try IntegrityKey(path: folder.path + "/none") }
  }

  @Test func differencesAreNamed() {
    let old = [Self.entry("/a"), Self.entry("/b"), Self.entry("/d")]
    var changed = Self.entry("/b", size: 2)
    changed.mode = 0o100666
    let found = BaselineDifference.between(old, [Self.entry("/a"), changed, Self.entry("/c")])
    #expect(found.map(\.kind) == [.changed, .added, .removed])
    #expect(found[0].changes.map(\.attribute) == ["sha256", "size", "mode"])
    #expect(found[0].changes[2].old == "0100644" && found[0].changes[2].new == "0100666")
    #expect(BaselineDifference.between(old, old).isEmpty)
  }

  @Test func theCodeIsThatOfTheStandard() throws {
    // Another implementation of RFC 2104 says so of the one thing that is signed with a known key: the count.
    try Data(repeating: 0x0B, count: 32).write(to: URL(filePath: folder.path + "/fixed"))
    try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: folder.path + "/fixed")
    let fixed = try IntegrityKey(path: folder.path + "/fixed")
    _ = try Baseline.write(disk: "d", patterns: [], entries: [], at: .zero, to: store, key: fixed)
    let line = try String(contentsOfFile: folder.path + "/fixed.generations", encoding: .utf8)
    let code = line.split(separator: " ")[1]
    // Over the three fields, each with its length before it, as 8 bytes.
    let script = """
      import hmac,hashlib
      f=lambda b: len(b).to_bytes(8,'big')+b
      print(hmac.new(b'\\x0b'*32, f(b'vmfence generation 1')+f((1).to_bytes(8,'big'))+f(b'd'), hashlib.sha256).hexdigest())
      """
    let process = Process()
    process.executableURL = URL(filePath: "/usr/bin/env")
    process.arguments = ["python3", "-c", script]
    let pipe = Pipe()
    process.standardOutput = pipe
    try process.run()
    let expected = String(decoding: try pipe.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
    #expect(code == expected.trimmingCharacters(in: .whitespacesAndNewlines)[...])
  }
}
