import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceChannel
import VMFenceCore
import VMFenceGuest

/// `vmfence-guest run`, over a page in a file, with Dom0's side in this process.
@Suite("vmfence-guest run", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
final class AgentTests {
  private let network: GuestNetwork
  private let pageFile: String
  private let configuration: String
  private let page: SharedPage
  private var epoch: UInt64 = 0
  private var agent: Process?

  init() throws {
    network = try GuestNetwork()
    pageFile = try network.file("page", [UInt8](repeating: 0, count: SharedPage.byteCount))
    configuration = try network.file("wishes.yaml", Array("service-type: web\nprotected-paths:\n  - /etc/**\n".utf8))
    // SAFETY: open(2) reads the path up to its zero.
    let descriptor = unsafe open(pageFile, O_RDWR)
    defer { close(descriptor) }
    page = try SharedPage.mapping(descriptor: descriptor)
  }

  deinit { agent?.terminate() }

  private func start() throws {
    agent = try network.guest.start(
      "\(try programPath()) run --page \(pageFile) --config \(configuration) --uuid \(guestUUID)")
  }

  /// Begins a session as soon as the frontend is there.
  private func attach() throws -> HostChannel {
    epoch += 1
    var channel: HostChannel?
    #expect(
      comesTrue {
        channel = try? HostChannel(page, epoch: epoch, at: SystemClock().now)
        return channel != nil
      })
    return try #require(channel)
  }

  /// Steps until `body` finds what it wants among the events.
  private func waitFor<Result>(
    _ host: inout HostChannel, sourceLocation: SourceLocation = #_sourceLocation,
    _ body: (HostChannelEvent) -> Result?
  ) throws -> Result {
    var found: Result?
    var seen: [HostChannelEvent] = []
    try eventually("an event", saying: { "there were \(seen)" }, sourceLocation: sourceLocation) {
      for event in host.step(at: SystemClock().now) where found == nil {
        seen.append(event)
        found = body(event)
      }
      return found != nil
    }
    return try #require(found)
  }

  private func acknowledgement(_ event: HostChannelEvent) -> PolicyAcknowledgement? {
    if case .acknowledged(let answer) = event { answer } else { nil }
  }

  private func declaration(_ event: HostChannelEvent) -> TenantDeclaration? {
    if case .declared(let declaration) = event { declaration } else { nil }
  }

  @Test("takes policies, puts them in force, answers, reports, declares; what is in force outlives it")
  func work() throws {
    try start()
    var host = try attach()
    let answer1 = try waitFor(&host, declaration)
    #expect(answer1 == TenantDeclaration(serviceType: "web", protectedPaths: ["/etc/**"]))
    #expect(network.comesThrough(from: GuestNetwork.attacker))
    let first = try policy(1, [(block(GuestNetwork.attacker), 600), (block("203.0.113.9"), nil)])
    host.offer(first)
    let answer = try waitFor(&host, acknowledgement)
    #expect(answer == PolicyAcknowledgement(version: 1, digest: first.digest, status: .applied, standing: 2))
    #expect(!network.reaches(from: GuestNetwork.attacker) && network.comesThrough(from: GuestNetwork.honest))
    host.query()
    let report = try waitFor(&host) { event in
      if case .inForce(let report) = event, report.dropped[0] > 0 { report } else { nil }
    }
    #expect(report.policy == .init(version: 1, digest: first.digest) && report.standing == 2 && report.measures == 2)

    // Another guest's, and an older one: refused, and said so.
    let strange = try GuestPolicy(domain: DomainUUID(high: 1, low: 2), version: 9, issued: first.issued, measures: [])
    host.offer(strange)
    let answer2 = try waitFor(&host, acknowledgement)
    #expect(answer2.status == .refused)
    host.offer(try policy(2, [(block(GuestNetwork.honest), 600)]))
    let answer3 = try waitFor(&host, acknowledgement)
    #expect(answer3.status == .applied)
    host.offer(first)
    let stale = try waitFor(&host, acknowledgement)
    #expect(stale.status == .stale && stale.reason.contains("version 2 is in force"))

    // What the tenant wants is read again.
    _ = try network.file("wishes.yaml", Array("protected-paths: # more\n- '/srv/www/**'\n- /etc/**\n".utf8))
    kill(try #require(agent).processIdentifier, SIGHUP)
    let answer4 = try waitFor(&host, declaration)
    #expect(answer4 == TenantDeclaration(protectedPaths: ["/srv/www/**", "/etc/**"]))

    let ended = try #require(agent)
    ended.terminate()
    ended.waitUntilExit()
    #expect(ended.terminationStatus == 0)
    #expect(!network.reaches(from: GuestNetwork.honest), "the policy stays in force")
  }

  @Test("a policy that comes while it says something else is not lost")
  func policyInBetween() throws {
    try start()
    for version in 1...20 as ClosedRange<UInt64> {
      var host = try attach()
      host.offer(try policy(version, []))
      // Without a pause: the policy is in the page at once when the session is taken up, and the frontend reports what is in force then.
      let end = ContinuousClock.now + waitLimit
      var answer: PolicyAcknowledgement?
      while answer == nil, ContinuousClock.now < end {
        answer = host.step(at: SystemClock().now).lazy.compactMap(acknowledgement).first
      }
      #expect(answer?.version == version && answer?.status == .applied)
    }
  }

  @Test("goes on after Dom0's daemon was restarted, and after it was restarted itself")
  func restarts() throws {
    try start()
    var host = try attach()
    host.offer(try policy(1, []))
    let answer5 = try waitFor(&host, acknowledgement)
    #expect(answer5.status == .applied)
    host = try attach()
    host.offer(try policy(2, []))
    let answer6 = try waitFor(&host, acknowledgement)
    #expect(answer6.version == 2)
    agent?.terminate()
    agent?.waitUntilExit()
    try start()
    _ = try waitFor(&host) { $0 == .restarted ? true : nil }
    host = try attach()
    host.offer(try policy(3, []))
    let answer7 = try waitFor(&host, acknowledgement)
    #expect(answer7.version == 3)
  }

  @Test(
    "a wrong configuration is refused with its place and what to do",
    arguments: [
      ("service-type: Web Server\n", ":1:1: error:"), ("a: b\n", ":1:1: error: there is no key 'a'"),
      ("# x\n\nprotected-paths:\n  - etc\n", ":4:3: error:"), ("- /etc\n", ":1:1: error: an item of no list"),
      ("protected-paths: /etc\n", ":1:1: error:"), ("protected-paths:\n  - /a\n  - /a\n", ":3:3: error:"),
      ("protected-paths:\n  - \"/a\n", ":2:3: error:"), ("service-type: web\nservice-type: web\n", ":2:1: error:"),
      ("  service-type: web\n", ":1:3: error:"), ("protected-paths:\n  - /a/../b\n", ":2:3: error:"),
      ("what\n", ":1:1: error:"),
      ("protected-paths:\n  - /a\n  - /etc/\n", ":3:3: error: '/etc/' has an empty component"),
      ("protected-paths:\n" + String(repeating: "  - /a\n", count: 20_000), "error: more than"),
      ("service-type: Web\n", "is no service type: lower-case letters, digits, '-' (a name of at most 32"),
      ("protected-paths:\n  - \"/a\n", ":2:3: error: a quote that does not end"),
      ("protected-paths:\n\t- /a\n", ":2:1: error: a tab before the text"),
      ("protected-paths:\r\n  - etc\r\n", ":2:3: error: 'etc' is no absolute path"),
    ])
  func badConfiguration(text: String, expected: String) throws {
    let file = try network.file("bad.yaml", Array(text.utf8))
    let check = try network.vmfenceGuest("check --config \(file)")
    #expect(
      check.status == 65 && check.output.contains("\(file)") && check.output.contains(expected), "\(check.output)")
    #expect(check.output.contains("("), "a remedy")
  }

  @Test("what is declared is said, however an editor ended its lines; a file that is not there has a code of its own")
  func check() throws {
    let text = "service-type: web # what it serves\nprotected-paths:\n  - /etc/**\n  - \"/srv/www/**\"\n"
    for (index, text) in [text, text.replacing("\n", with: "\r\n"), "\u{FEFF}" + text].enumerated() {
      let file = try network.file("good-\(index).yaml", Array(text.utf8))
      let check = try network.vmfenceGuest("check --config=\(file)")
      #expect(check.status == 0 && check.output == "serves web\nprotects /etc/**\nprotects /srv/www/**\n", "\(check)")
    }
    #expect(try network.vmfenceGuest("check --config /dev/null").output == "nothing is declared\n")
    #expect(try network.vmfenceGuest("check --config /nowhere").status == 66)
  }

  @Test("a mistake of the tenant's does not keep the host's policy out of force, and declares nothing")
  func mistake() throws {
    _ = try network.file("wishes.yaml", Array("service-type: web\nprotected-path:\n".utf8))
    try start()
    var host = try attach()
    host.offer(try policy(1, [(block(GuestNetwork.attacker), 600)]))
    let answer = try waitFor(&host, acknowledgement)
    #expect(answer.status == .applied)
    // Mended, it is declared.
    _ = try network.file("wishes.yaml", Array("service-type: web\n".utf8))
    kill(try #require(agent).processIdentifier, SIGHUP)
    let declared = try waitFor(&host, declaration)
    #expect(declared == TenantDeclaration(serviceType: "web"))
  }

  @Test("a page that is none is refused")
  func badPage() throws {
    let small = try network.file("small", [1, 2, 3])
    #expect(try network.vmfenceGuest("run --page \(small)").status == 66)
    #expect(try network.vmfenceGuest("run --page /nowhere").status == 66)
    #expect(try network.vmfenceGuest("run --page \(small) --event-channel").status == 64)
    // No guest of Xen.
    #expect(try network.vmfenceGuest("run").status == 69)
  }
}
