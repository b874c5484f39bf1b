import Foundation
import NetworkTestSupport
import Testing
import VMFenceCore
import VMFenceGuest

/// The program itself.
@Suite("vmfence-guest", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct CommandTests {
  private let network: GuestNetwork
  init() throws { network = try GuestNetwork() }

  @Test("apply, show and remove do what they say")
  func commands() throws {
    #expect(try network.vmfenceGuest("show").output == "no policy is in force\n")
    #expect(try network.vmfenceGuest("show --json").output == "{\"in_force\":false}\n")
    let policy = try policy(5, [(block(GuestNetwork.attacker), 600), (.rateLimit(packetsPerSecond: 1_000), nil)])
    let file = try network.file(policy)
    let check = try network.vmfenceGuest("apply \(file) --check")
    let shown = try #require(
      check.output.firstMatch(of: /block 192\.0\.2\.66, (\d+) s left, decision 100 \(sid 1:1000001\)/), "\(check)")
    // The policy's time has begun.
    #expect(check.status == 0 && (1...600).contains(Int(shown.1) ?? 0), "\(check)")
    #expect(try network.ruleset() == "", "--check changes nothing")
    let apply = try network.vmfenceGuest("apply \(file)")
    #expect(apply.status == 0 && apply.output == "policy 5 is in force: 2 measures\n")
    #expect(!network.reaches(from: GuestNetwork.attacker) && network.comesThrough(from: GuestNetwork.honest))
    let show = try network.vmfenceGuest("show").output
    #expect(show.contains("policy 5 for guest \(guestUUID)") && show.contains("2 of 2 measures stand"))
    #expect(show.contains("limit of 1000 packets a second, until it is taken back"))
    let json = try network.vmfenceGuest("show --json").output
    let object = try #require(try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any])
    #expect(object["in_force"] as? Bool == true && object["version"] as? Int == 5)
    #expect((object["measures"] as? [[String: Any]])?.first?["network"] as? String == GuestNetwork.attacker)
    // From standard input, too.
    #expect(try network.vmfenceGuest("apply -", input: file).status == 0)
    #expect(try network.vmfenceGuest("remove").output == "no policy is in force any more\n")
    #expect(try network.ruleset() == "")
  }

  @Test("hostile files are refused, named, and change nothing")
  func hostileFiles() throws {
    let policy = try policy(5, [(block(GuestNetwork.attacker), 600), (.quarantine, 600)])
    #expect(try network.vmfenceGuest("apply \(try network.file(policy))").status == 0)
    let before = try network.ruleset()
    let newer = try VMFenceGuestTests.policy(6, [(block(GuestNetwork.honest), 600)]).encoded
    var counts = newer
    counts.replaceSubrange(48..<50, with: [0xFF, 0xFF])
    var files: [[UInt8]] = [
      [], Array("table inet x {}\n".utf8), newer + [0], counts, [UInt8](repeating: 0, count: 1 << 20),
    ]
    files += (0..<newer.count).filter { $0 % 7 == 1 }.map { Array(newer[..<$0]) }
    files += (0..<16).map { _ in (0..<Int.random(in: 1...4_000)).map { _ in UInt8.random(in: 0...255) } }
    for (index, bytes) in files.enumerated() {
      let file = try network.file("hostile-\(index)", bytes)
      let run = try network.vmfenceGuest("apply \(file)")
      #expect(run.status == 65 && run.output.hasPrefix("vmfence-guest: \(file): error: "), "\(run.output)")
      #expect(run.output.split(separator: "\n").count == 1)
    }
    #expect(try network.vmfenceGuest("apply /dev/zero").status == 65)
    #expect(try network.ruleset() == before)
    #expect(try network.vmfenceGuest("apply /dev/null").status == 65)
  }

  @Test("another guest's policy, an older one and a missing file are refused with what to do")
  func refusals() throws {
    let file = try network.file(try policy(5, []))
    let run = try network.vmfenceGuest("apply \(file) --uuid 11111111-1111-4111-8111-111111111111")
    #expect(run.status == 65 && run.output.contains("this is 11111111-1111-4111-8111-111111111111"))
    #expect(try network.vmfenceGuest("apply \(file) --uuid \(guestUUID)").status == 0)
    let older = try network.file(try policy(4, []))
    let refused = try network.vmfenceGuest("apply \(older)")
    #expect(refused.status == 65 && refused.output.contains("version 5 is in force, and this is 4"))
    #expect(try network.vmfenceGuest("apply \(older) --allow-older").status == 0)
    #expect(try network.vmfenceGuest("apply /nowhere/policy").status == 66)
    try network.guest.run("nft delete table inet vmfence_guest; nft add table inet vmfence_guest")
    let foreign = try network.vmfenceGuest("apply \(file)")
    #expect(foreign.status == 69 && foreign.output.contains("VMFence did not make it"))
  }

  @Test("without the capability, it says which one is missing")
  func permission() throws {
    let file = try network.file(try policy(5, []))
    let program = try programPath()
    let output = try network.guest.run(
      "chmod 644 \(file); setpriv --bounding-set=-net_admin --inh-caps=-net_admin \(program) apply \(file) 2>&1 || echo $?"
    )
    #expect(output.contains("CAP_NET_ADMIN") && output.hasSuffix("77\n"))
    #expect(try network.ruleset() == "")
  }

  @Test(
    "a wrong command line is explained",
    arguments: [
      "", "apply", "apply a b", "apply a --json", "show x", "show --check", "frobnicate", "apply a --uuid",
      "apply a --uuid x --check", "-x", "remove --json", "run --write-back 0", "run --write-back x",
      "show --write-back 1", "check x", "check --uuid x", "show --json=yes",
    ])
  func usage(arguments: String) throws {
    let file = try network.file(try policy(5, []))
    let run = try network.vmfenceGuest(arguments.replacingOccurrences(of: "apply a", with: "apply \(file)"))
    #expect(run.status == 64 && run.output.contains("vmfence-guest --help"), "\(run.output)")
    #expect(try network.ruleset() == "")
  }

  @Test(
    "what was mistyped is guessed, and nothing where nothing is near",
    arguments: [
      ("aply x", "'apply'"), ("shwo", "'show'"), ("show --jsn", "'--json'"), ("run --writeback 3", "'--write-back'"),
      ("check --confg=x", "'--config'"), ("--hepl", "'--help'"), ("frobnicate", nil), ("show --frobnicate", nil),
      ("-x", nil),
    ] as [(String, String?)])
  func guesses(arguments: String, meant: String?) throws {
    let run = try network.vmfenceGuest(arguments)
    let guess = meant.map { "did you mean \($0)? " } ?? ""
    #expect(run.status == 64 && run.output.contains("(\(guess)see vmfence-guest --help)"), "\(run.output)")
  }

  @Test("help and version are said")
  func help() throws {
    #expect(try network.vmfenceGuest("--help").output.hasPrefix("usage: vmfence-guest"))
    #expect(try network.vmfenceGuest("--version").output == "\(VMFenceVersion.text)\n")
  }
}
