import NetworkTestSupport
import Testing
import VMFenceConformance
import VMFenceCore
import VMFenceNftables

@Suite("The nftables sink conforms", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct SinkConformanceTests {
  private static let start = Timestamp(seconds: 1_800_000_000)
  /// The kernel counts by a clock of its own: waiting from now on is long enough.
  private let conformance = FirewallSinkConformance(start: start) { time in
    try await ContinuousClock().sleep(for: time - start)
  }

  @Test("for domains whose ports are not known, each time in a table of its own")
  func withoutPorts() async throws {
    let network = try NetworkNamespace("conformance")
    var number = 0
    try await conformance.check {
      number += 1
      return try network.inside { try NftablesSink.open(.init(table: "conformance\(number)")) }
    }
  }

  @Test("for domains with ports, each time in a table that an earlier run left")
  func withPorts() async throws {
    let network = try NetworkNamespace("conformance-ports")
    let low: UInt64 = 0x8000_0000_0000_0000
    var ports: [DomainUUID: [NetworkPort]] = [:]
    for number in UInt64(1)...2 {
      let uuid = DomainUUID(high: 0x7F3C_0000_0000_4000, low: low + number)
      ports[uuid] = ["vif\(number).0", "vif\(number).0-emu"].map {
        NetworkPort(interface: $0, mac: MACAddress(rawValue: 0x0200_0000_0000 + number))
      }
    }
    try await conformance.check {
      let sink = try network.inside { try NftablesSink.open(.init(holdsTable: false)) }
      _ = try await sink.replace(with: [], at: Self.start)
      try await sink.update(ports: ports)
      return sink
    }
  }
}
