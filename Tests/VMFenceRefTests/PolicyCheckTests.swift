#if Daemon
import Foundation
import Testing

@Suite("What `check` says of policies")
struct PolicyCheckTests {
  private static let inventory = """
    version: 1
    domains:
      - {name: web, uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001, domid: 1, service: shop, ports: [{interface: vif1.0, mac: "00:16:3e:00:00:01"}]}

    """

  /// What is said of a host with this policy, whose guests serve `shop`, and which has rules for `http` besides.
  private func check(_ policy: String, domains: String = "inventory: inventory.yaml") throws -> String {
    let folder = try TemporaryFolder()
    _ = try folder.write(
      "a.rules", "alert tcp any any -> any any (msg:\"m\"; content:\"x\"; classtype:misc-attack; sid:1000001;)\n")
    _ = try folder.write("inventory.yaml", Self.inventory)
    let host = "version: 1\n\(domains)\nrules: {dialect: snort2, services: {http: a.rules}}\n"
    let result = try Program.run("check", "--live", try folder.write("host.yaml", host + policy))
    #expect(result.status == 0, "\(result.output)")
    return result.output
  }

  private func policy(_ changes: [String: String] = [:]) -> String {
    var rule = [
      "name": "r", "when": "{classes: [misc-attack]}", "count": "{per: domain, at-least: 3}",
      "ladder": "[{notify: true}]",
    ]
    rule.merge(changes) { $1 }
    let text = rule.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)" }.joined(separator: ", ")
    return "policy:\n  rules:\n    - {\(text)}\n"
  }

  @Test("nothing is said of what comes with the packages, of the examples, and of the guide's policy")
  func ours() throws {
    let folder = try TemporaryFolder()
    for path in [Program.root.appending(path: "packaging/etc/host.yaml").path, try folder.copyExamples()] {
      let result = try Program.run("check", "--live", path)
      #expect(result.output.contains("nothing is wrong (0 warnings)"), "\(path): \(result.output)")
    }
    let quickstart = try Program.run("check", Program.quickstart.appending(path: "scenario.yaml").path)
    #expect(quickstart.output.contains("nothing is wrong (0 warnings)"), "\(quickstart.output)")
    let guide = try String(contentsOf: Program.root.appending(path: "Docs/Operating.md"), encoding: .utf8)
    let policies = guide.components(separatedBy: "```yaml\npolicy:\n").dropFirst()
    #expect(!policies.isEmpty)
    for text in policies {
      let end = try #require(text.range(of: "```"))
      let said = try check("policy:\n" + text[..<end.lowerBound])
      #expect(said.contains("nothing is wrong (0 warnings)"), "\(said)")
    }
  }

  @Test("a rule that is warned of is named with its place and what to do")
  func place() throws {
    let said = try check(
      policy([
        "when": "{all-alerts: true}", "count": "{per: source-network, v4-prefix: 8, at-least: 1}",
        "ladder": "[{block: 1h}]",
      ]))
    #expect(said.contains("host.yaml:6:7: warning: rule 'r': one alert of any kind is enough to block all of an IPv4"))
    #expect(said.contains("(2 warnings)"), "\(said)")
  }

  @Test("a service that nobody has is warned of, with the one that was meant")
  func services() throws {
    let said = try check(policy(["services": "[http, shop, htpp, \"ma\\eil\"]"]))
    #expect(said.contains("host.yaml:6:7: warning: rule 'r': nobody has the service 'htpp' (did you mean `http`?)"))
    #expect(said.contains("nobody has the service 'ma\\u{1b}il' (give a guest this service"))
    #expect(said.contains("(2 warnings)"), "\(said)")
  }

  @Test("on Xen the services are those of guests that the configuration names, and of rules")
  func xenServices() throws {
    let xen =
      "hypervisor: xen\nguests: [{name: a, service: mail}, {uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0002, service: dns}]"
    let said = try check(policy(["services": "[http, mail, dns, shop]"]), domains: xen)
    #expect(said.contains("nobody has the service 'shop'") && said.contains("(1 warnings)"), "\(said)")
  }

  @Test("in a scenario the services are those of its domains and rules")
  func scenarioServices() throws {
    let folder = try TemporaryFolder()
    _ = try folder.write("small.rules", "alert tcp any any -> any any (msg:\"x\"; content:\"x\"; sid:1000001;)\n")
    let text = BadInputTests.base.replacingOccurrences(of: "    domid: 2", with: "    domid: 2\n    service: http")
      .replacingOccurrences(of: "name: all\n", with: "name: all\n      services: [http, ftp]\n")
    let result = try Program.run("check", try folder.write("scenario.yaml", text))
    #expect(result.status == 0 && result.output.contains("rule 'all': nobody has the service 'ftp'"))
    #expect(result.output.contains("(1 warnings)"), "\(result.output)")
  }

  @Test("steps that nothing on the host carries out are warned of, each by what is missing")
  func control() throws {
    let both = policy(["ladder": "[{notify: true}, {pause: true}, {shut-down: true}]"])
    var said = try check(both)
    #expect(said.contains("rule 'r': nothing here pauses a domain, so such a measure stays `desired` (give `control`"))
    #expect(said.contains("nothing here shuts a domain down") && said.contains("(2 warnings)"), "\(said)")
    said = try check("control: {pause: [/bin/true]}\n" + both)
    #expect(said.contains("nothing here shuts a domain down") && said.contains("(1 warnings)"), "\(said)")
    #expect(try check(both, domains: "hypervisor: xen").contains("(0 warnings)"))
    // Programs take Xen's place in everything.
    said = try check("control: {pause: [/bin/true]}\n" + both, domains: "hypervisor: xen")
    #expect(said.contains("nothing here shuts a domain down") && said.contains("(1 warnings)"), "\(said)")
  }
}
#endif
