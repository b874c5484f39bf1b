import Testing
import VMFenceBlock
import VMFenceConformance
import VMFenceCore
import VMFenceIntegrity

/// The quickstart's disk: what a real kernel's file system wrote while a guest was attacked.
@Suite struct QuickstartDiskTests {
  private static let folder: String = {
    let parts = #filePath.split(separator: "/").dropLast(3)
    return "/" + parts.joined(separator: "/") + "/Examples/quickstart/disk"
  }()

  @Test func theRecordingIsABlockSource() throws {
    try BlockSourceConformance().check { try RecordedBlockSource.open(path: Self.folder + "/web.jsonl") }
  }

  private func replay(_ rules: [ProtectionPolicy.Rule]) throws -> (events: [FileEvent], outcome: BlockOutcome) {
    let overlay = ImageOverlay(try FileDiskReader(path: Self.folder + "/web.img"))
    let monitor = IntegrityMonitor(
      overlay,
      configuration: .init(
        incarnation: Incarnation(uuid: DomainUUID(high: 1, low: 2), domainID: DomainID(3)), disk: "xvda",
        policy: try ProtectionPolicy(rules)), at: .zero)
    var disk = OverlaidDisk(monitor, overlay: overlay)
    var source = try RecordedBlockSource.open(path: Self.folder + "/web.jsonl")
    let outcome = try source.deliver(limit: .max, until: nil, to: &disk)
    disk.observer.finish(at: .zero)
    #expect(disk.failure == nil && disk.observer.blindness == nil && disk.observer.statistics.damages == 0)
    return (disk.observer.drainEvents(), outcome)
  }

  @Test func theMonitorIsABlockObserver() throws {
    for rules in [[ProtectionPolicy.Rule("/**", action: .denyData)], [.init("/etc/passwd")]] {
      let policy = try ProtectionPolicy(rules)
      let incarnation = Incarnation(uuid: DomainUUID(high: 1, low: 2), domainID: DomainID(3))
      try BlockObserverConformance(diskSize: 2 << 20).check {
        let overlay = ImageOverlay(try FileDiskReader(path: Self.folder + "/web.img"))
        let monitor = IntegrityMonitor(
          overlay, configuration: .init(incarnation: incarnation, disk: "xvda", policy: policy), at: .zero)
        return OverlaidDisk(monitor, overlay: overlay)
      }
      BlockObserverConformance(diskSize: 100).check {
        IntegrityMonitor(
          MemoryDisk([UInt8](repeating: 0, count: 100)),
          configuration: .init(incarnation: incarnation, disk: "xvda", policy: policy), at: .zero)
      }
    }
  }

  @Test func theAttackAndNothingElseIsTold() throws {
    let (events, _) = try replay([.init("/etc/**"), .init("/var/www/**")])
    #expect(events.map(\.operation) == [.append, .write, .replace])
    #expect(
      events.map { String(decoding: $0.path, as: UTF8.self) } == [
        "/etc/passwd", "/var/www/index.html", "/etc/ssh/sshd_config",
      ])
    #expect(events[0].length == UInt64("toor::0:0::/root:/bin/sh\n".utf8.count))
    // <h1>Welcome to the web shop</h1> begins at byte 77; the tags stay.
    #expect(events[1].offset == 81 && events[1].length == 23)
    #expect(events.allSatisfy { $0.verdict == .allow && $0.disk == "xvda" })
  }

  @Test func theDefacementInPlaceIsRefusedWhereThePolicySaysSo() throws {
    let (events, outcome) = try replay([.init("/var/www/**", action: .denyData)])
    #expect(outcome.denied == 1)
    #expect(events.first { $0.operation == .write }?.verdict == .deny)
  }
}
