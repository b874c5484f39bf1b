import Testing
import VMFenceCore

@Suite("The table from Xen's flags, reasons and names")
struct XenStateTableTests {
  @Test(
    "reads the State column of xl list",
    arguments: [
      ("r-----", RunState.running), ("-b----", .blocked), ("--p---", .paused), ("---s--", .shutDown),
      ("---sc-", .crashed), ("-----d", .dying), ("------", .running), ("rb----", .running), ("-bp---", .paused),
      ("--ps--", .shutDown), ("--psc-", .crashed), ("---s-d", .dying), ("rbpscd", .dying),
    ])
  func stateColumn(text: String, state: RunState) throws {
    let flags = try #require(XenStateTable.Flags(text))
    #expect(XenStateTable.runState(flags) == state)
  }

  @Test(
    "reads nothing else", arguments: ["", "-", "-----", "-------", "b-----", "R-----", "r----- ", "-----x", "é-----"])
  func notAStateColumn(text: String) { #expect(XenStateTable.Flags(text) == nil) }

  @Test(
    "tells the end of a domain from a halt by the shutdown reason",
    arguments: [
      (XenStateTable.ShutdownReason.poweroff, RunState.shutDown), (.reboot, .shutDown), (.none, .shutDown),
      (.suspend, .suspendedForMigration), (.softReset, .suspendedForMigration), (.crash, .crashed),
      (.watchdog, .crashed),
    ])
  func shutdownReason(reason: XenStateTable.ShutdownReason, state: RunState) {
    for others in [[], .paused, .blocked, [.running, .paused]] as [XenStateTable.Flags] {
      #expect(XenStateTable.runState(others.union(.shutdown), reason) == state)
      #expect(XenStateTable.runState(others.union([.shutdown, .dying]), reason) == .dying)
      #expect(XenStateTable.runState(others.union([.shutdown, .crashed]), reason) == .crashed)
    }
  }

  @Test("gives a reason no meaning without the shutdown flag", arguments: XenStateTable.ShutdownReason.allCases)
  func reasonWithoutFlag(reason: XenStateTable.ShutdownReason) {
    #expect(XenStateTable.runState([], reason) == .running)
    #expect(XenStateTable.runState(.running, reason) == .running)
    #expect(XenStateTable.runState(.blocked, reason) == .blocked)
    #expect(XenStateTable.runState(.paused, reason) == .paused)
  }

  @Test("has a state for every set of flags and every reason")
  func total() {
    for bits in 0..<64 as Range<UInt8> {
      for reason in XenStateTable.ShutdownReason.allCases {
        let flags = XenStateTable.Flags(rawValue: bits)
        let state = XenStateTable.runState(flags, reason)
        #expect(state.isFinal || flags.isDisjoint(with: [.dying, .crashed]))
      }
    }
  }

  @Test("numbers the reasons as Xen does")
  func reasonNumbers() {
    let reasons: [XenStateTable.ShutdownReason] = [.poweroff, .reboot, .suspend, .crash, .watchdog, .softReset]
    #expect(reasons.map(\.rawValue) == [0, 1, 2, 3, 4, 5])
  }

  @Test(
    "knows the two ends of a migration by the toolstack's name",
    arguments: [
      ("web", "web", MigrationRole.none), ("web--incoming", "web", .incoming),
      ("web--migratedaway", "web", .migratedAway), ("--incoming", "--incoming", .none), ("", "", .none),
      ("web--incoming2", "web--incoming2", .none), ("a--incoming--migratedaway", "a--incoming", .migratedAway),
      ("web-incoming", "web-incoming", .none),
    ])
  func names(toolstackName: String, name: String, role: MigrationRole) {
    let result = XenStateTable.migrationRole(toolstackName: toolstackName)
    #expect(result.name == name && result.role == role)
  }
}
