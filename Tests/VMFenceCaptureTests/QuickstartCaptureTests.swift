import Testing
import VMFenceCapture
import VMFenceConformance
import VMFenceCore

@Suite("The quickstart's captures")
struct QuickstartCaptureTests {
  static let folder =
    #filePath.split(separator: "/").dropLast(3).map { "/\($0)" }.joined()
    + "/Examples/quickstart/captures"
  /// 2026-01-01T10:00:00Z
  static let start: Int64 = 1_767_261_600

  @Test(
    "are read whole, name their vif, and say the direction that the guest's address says",
    arguments: [
      ("vif1.0", "00:16:3e:77:00:11"), ("vif2.0", "00:16:3e:77:00:12"), ("vif3.0", "00:16:3e:77:00:13"),
      ("vif7.0", "00:16:3e:77:00:13"),
    ])
  func directions(interface: String, address: String) throws {
    let mac = try #require(MACAddress(address))
    let path = "\(Self.folder)/\(interface).pcapng"
    #expect(try CaptureFile.open(path: path).interfaces.map(\.name) == [interface])
    let run = try PacketSourceConformance().check { try CaptureFile.open(path: path) }
    #expect(run.frames.count > 100)
    var underOtherAddresses = 0
    for frame in run.frames {
      let source = frame.bytes.withRawSpan { $0.macAddress(6) }
      switch frame.metadata.direction {
      case .fromGuest where source != mac: underOtherAddresses += 1
      case .fromGuest: break
      case .toGuest: #expect(source != mac)
      case .unknown: Issue.record("a frame without direction")
      }
      #expect((Self.start..<Self.start + 72).contains(frame.metadata.timestamp.nanoseconds / 1_000_000_000))
    }
    // The FTP guest sends an ARP request and a ping under an address that is not its own.
    #expect(underOtherAddresses == (interface == "vif2.0" ? 2 : 0))
  }
}
