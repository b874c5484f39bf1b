import Foundation
import Testing
import VMFenceCore
import VMFenceStore

@Suite struct HistoryStoreTests {
  private let web = Incarnation(uuid: DomainUUID(high: 1, low: 1), domainID: DomainID(1))
  private let mail = Incarnation(uuid: DomainUUID(high: 1, low: 2), domainID: DomainID(2))

  private func alert(
    _ number: Int, on incarnation: Incarnation? = nil, from source: String = "203.0.113.7", size: Int = 10
  ) -> HistoryAlert {
    let alert = Alert(
      time: Timestamp(seconds: 1_700_000_000 + Int64(number)), incarnation: incarnation ?? web,
      packetID: UInt64(number),
      rule: RuleMetadata(sid: UInt32(number), message: "it's \"quoted\"; --", priority: 2), flowID: 1,
      source: IPAddress(source)!, destination: IPAddress("192.0.2.1")!, sourcePort: 4_000, destinationPort: 80,
      ipProtocol: 6, direction: .toServer, isEstablished: true)
    return HistoryAlert(alert, eve: Array("\(number) ".utf8) + [UInt8](repeating: 0x61, count: size))
  }

  private func decision(
    _ id: UInt64, _ status: Decision.Status = .enforced, network: String = "203.0.113.7", on incarnation: Incarnation?
  ) -> HistoryDecision {
    HistoryDecision(
      Decision(
        id: id, time: Timestamp(seconds: Int64(id)), incarnation: incarnation,
        measure: incarnation == nil ? .blockOnHost(IPNetwork(network)!) : .block(IPNetwork(network)!), status: status,
        policy: "p", reason: "because", step: 1, expires: Timestamp(seconds: 100), trigger: "1:1",
        source: IPNetwork(network)!), name: incarnation == nil ? nil : "web")
  }

  private func numbers(_ lines: [[UInt8]]) -> [Int] {
    lines.compactMap { Int(String(decoding: $0, as: UTF8.self).split(separator: " ")[0]) }
  }

  @Test(arguments: [true, false]) func whatIsAskedForIsFoundAndOrdered(inMemory: Bool) throws {
    let folder = try TemporaryFolder()
    let store = try HistoryStore.open(path: inMemory ? nil : folder.path + "/h.db").store
    try store.append((1...10).map { alert($0) }, [])
    try store.append(
      [alert(11, on: mail), alert(12, from: "2001:db8::7")], [decision(1, on: web), decision(2, on: nil)])
    #expect(try numbers(store.lastAlerts(3)) == [10, 11, 12])
    #expect(try numbers(store.lastAlerts(2, of: web.uuid)) == [10, 12])
    #expect(try numbers(store.lastAlerts(2, with: IPAddress("2001:db8::7"))) == [12])
    #expect(try numbers(store.lastAlerts(100, of: mail.uuid, with: IPAddress("192.0.2.1"))) == [11])
    #expect(try store.lastAlerts(0).isEmpty && store.lastDecisions(0).isEmpty)
    #expect(try store.lastDecisions(5, about: web.uuid) == [decision(1, on: web), decision(2, on: nil)])
    #expect(try store.lastDecisions(5, about: mail.uuid).map(\.id) == [2])
    #expect(try store.lastDecisions(5) { $0.network?.contains(IPAddress("203.0.113.7")!) == true }.count == 2)
    let figures = try store.figures()
    #expect(figures.alerts == 12 && figures.decisions == 2 && figures.forgotten == 0 && figures.bytes > 0)
  }

  @Test func aDecisionThatComesAgainReplacesItself() throws {
    let store = try HistoryStore.open(path: nil).store
    try store.append([], [decision(1, on: web)])
    try store.append([], [decision(1, .expired, on: web), decision(2, on: web)])
    #expect(try store.lastDecisions(5).map(\.status) == [.expired, .enforced])
  }

  @Test func rowsAreBounded() throws {
    let store = try HistoryStore.open(path: nil, limits: .init(alerts: 20, decisions: 5)).store
    for round in 0..<10 {
      try store.append(
        (0..<10).map { alert(round * 10 + $0) }, [decision(UInt64(round), on: web), decision(UInt64(round), on: nil)])
    }
    #expect(try numbers(store.lastAlerts(100)) == Array(80..<100))
    #expect(try store.lastDecisions(100).count == 5)
    #expect(try store.figures().forgotten == 80)
  }

  @Test func bytesAreBoundedAndTheFileDoesNotGrow() throws {
    let folder = try TemporaryFolder()
    let path = folder.path + "/h.db"
    let store = try HistoryStore.open(path: path, limits: .init(bytes: 1 << 20)).store
    for round in 0..<60 { try store.append((0..<20).map { alert(round * 20 + $0, size: 5_000) }, []) }
    let (figures, left) = (try store.figures(), try numbers(store.lastAlerts(10_000)))
    #expect(figures.bytes <= 1 << 20 && figures.alerts > 50 && figures.alerts + figures.forgotten == 1_200)
    #expect(left == Array(1_200 - left.count..<1_200), "the oldest went")
    let size = try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int ?? 0
    #expect(size < 3 << 20, "\(size)")
  }

  @Test func itIsThereAfterARestartAndBegunAnewWhenItIsNone() throws {
    let folder = try TemporaryFolder()
    let path = folder.path + "/h.db"
    try HistoryStore.open(path: path).store.append([alert(1)], [decision(1, on: web)])
    let (again, problem) = try HistoryStore.open(path: path)
    #expect(problem == nil)
    #expect(try numbers(again.lastAlerts(5)) == [1] && again.lastDecisions(5).count == 1)
    try Data(repeating: 0x41, count: 10_000).write(to: URL(filePath: folder.path + "/x.db"))
    let (fresh, reason) = try HistoryStore.open(path: folder.path + "/x.db")
    #expect(reason != nil)
    #expect(try fresh.lastAlerts(5).isEmpty)
    try fresh.append([alert(1)], [])
    #expect(throws: StateStoreError.self) { try HistoryStore.open(path: folder.path + "/nowhere/h.db") }
  }

  @Test(.enabled(if: geteuid() == 0, "needs root for a file system of its own"))
  func aFullDiskIsSaidAndKeepsWhatWasThere() throws {
    let folder = try TemporaryFolder()
    try #require(run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder.path) == 0)
    defer { _ = run("umount", "-l", folder.path) }
    let store = try HistoryStore.open(path: folder.path + "/h.db").store
    try store.append([alert(1)], [])
    let error = #expect(throws: StateStoreError.self) {
      for number in 2..<1_000 { try store.append([alert(number, size: 100_000)], []) }
    }
    #expect(error?.code == .full)
    #expect(try numbers(store.lastAlerts(1_000)).first == 1)
  }
}
