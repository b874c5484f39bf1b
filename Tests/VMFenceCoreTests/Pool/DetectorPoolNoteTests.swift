import Testing
import ToyEngine
import VMFenceCore
import VMFenceTestKit

@Suite("The detector pool tells of packets without alerts")
struct DetectorPoolNoteTests {
  let web = DomainDescription.numbered(1)
  let ftp = DomainDescription.numbered(2)

  private func rig(_ notes: PacketNoteConfiguration) throws -> PoolRig {
    let rules = ToyRules([(.note, 7), (.alert, 8), (.flood, 9)])
    let rig = PoolRig([1: rules, 2: rules], .init(waitsWhenFull: true, packetNotes: notes))
    try rig.happen(.create(web), at: 0)
    try rig.happen(.create(ftp), at: 0)
    return rig
  }

  @Test("what was asked for, with the packet that the supervisor put in", arguments: [0, 1, 2, 3] as [UInt8])
  func wanted(bits: UInt8) throws {
    let notes = PacketNotes(rawValue: bits)
    let rig = try rig(.init(notes: notes))
    rig.send([0], to: web, at: 1)
    rig.send([7, 1, 2], to: web, at: 2)
    rig.send([8], to: web, at: 3)
    rig.send([7, 9], to: web, at: 4)
    rig.drain()
    let noted = rig.pool.takeNotedPackets()
    #expect(rig.counters(web).alerts == 65 && rig.counters(web).notesLost == 0)
    guard !notes.isEmpty else {
      #expect(noted.isEmpty)
      return
    }
    #expect(noted.map(\.packetID) == [1, 3] && noted.map(\.head) == [[7, 1, 2], [7, 9]])
    #expect(noted.map(\.frame.timestamp) == [.at(2), .at(4)])
    #expect(noted.allSatisfy { $0.incarnation == web.incarnation && $0.isTagged == notes.contains(.tagged) })
    let anomalies = noted.map(\.anomalies)
    if notes.contains(.anomalies) {
      #expect(
        anomalies == [
          [PacketAnomaly(kind: .stream, number: 3, flowID: 2, layer: 2)],
          [PacketAnomaly(kind: .stream, number: 2, flowID: 4, layer: 2)],
        ])
    } else {
      #expect(anomalies == [[], []])
    }
    #expect(rig.pool.takeNotedPackets().isEmpty)
  }

  @Test("only so many of a domain in a second, only so much of each, and the rest is counted")
  func pace() throws {
    let rig = try rig(.init(notes: .tagged, perSecond: 3))
    let long = [UInt8](repeating: 7, count: 5000)
    rig.send(long, to: web, at: 1, count: 10)
    rig.send([7], to: ftp, at: 1)
    rig.drain()
    var noted = rig.pool.takeNotedPackets()
    #expect(noted.count { $0.incarnation == web.incarnation } == 3)
    #expect(noted.count { $0.incarnation == ftp.incarnation } == 1, "each domain has its own share")
    #expect(noted[0].head.count == NotedPacket.headBytes && noted[0].capturedLength == 5000)
    #expect(rig.counters(web).notesLost == 7 && rig.counters(ftp).notesLost == 0)
    rig.send([7], to: web, at: 1.4, count: 10)
    rig.send([7], to: web, at: 60, count: 10)
    // A time that goes back saves up nothing.
    rig.send([7], to: web, at: 60, count: 10)
    rig.drain()
    noted = rig.pool.takeNotedPackets()
    #expect(noted.map(\.frame.timestamp) == [.at(1.4)] + Array(repeating: .at(60), count: 3))
  }

  @Test("all domains together have ten times the share of one")
  func host() throws {
    let rules = ToyRules([(.note, 7)])
    let domains = (1...12).map { DomainDescription.numbered(UInt64($0)) }
    let rig = PoolRig(
      Dictionary(uniqueKeysWithValues: (1...12).map { (UInt64($0), rules) }),
      .init(packetNotes: .init(notes: .tagged, perSecond: 5)))
    for domain in domains {
      try rig.happen(.create(domain), at: 0)
      rig.send([7], to: domain, at: 1, count: 5)
    }
    rig.drain()
    #expect(rig.pool.takeNotedPackets().count == 50)
    #expect(domains.reduce(0) { $0 + rig.counters($1).notesLost } == 10)
  }
}
