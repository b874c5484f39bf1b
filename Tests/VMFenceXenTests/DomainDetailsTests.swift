import Testing
import VMFenceCore

@testable import VMFenceXen

/// What is read of one domain, and what is said of it.
@Suite struct DomainDetailsTests {
  private let xen = FakeXen()

  private func read(_ domain: Incarnation) throws -> DomainDetails {
    xen.set("/local/domain/\(domain.domainID)/name", "web")
    xen.addInterface(domain.domainID, device: 0, mac: "00:16:3e:00:00:01")
    return try DomainDetails.read(XenDomain(domain), from: xen) { _ in false }
  }

  @Test func aDomainWithoutUUIDIsAProblemOfItsOwn() throws {
    for number: UInt32 in [5, 6] {
      let details = try read(Incarnation(uuid: DomainUUID(high: 0, low: 0), domainID: DomainID(number)))
      #expect(details.name == "web" && details.ports.count == 1, "it is guarded all the same")
      let problem = try #require(details.problems.first)
      #expect(details.problems.count == 1 && problem.severity == .warning)
      #expect(problem.message.hasPrefix("domain \(number): it has no UUID"), "\(problem.message)")
      #expect(problem.remedy.contains("`uuid=`"))
    }
    for uuid in [DomainUUID(high: 0, low: 1), DomainUUID(high: 1, low: 0)] {
      #expect(try read(Incarnation(uuid: uuid, domainID: DomainID(7))).problems.isEmpty)
    }
  }
}
