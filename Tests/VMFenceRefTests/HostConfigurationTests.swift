#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing

@Suite("The configuration of a host")
struct HostConfigurationTests {
  private static let host = """
    version: 1
    inventory: inventory.yaml
    rules: {dialect: snort2, common: a.rules}
    firewall: {kind: nftables, table: vmfence}
    notifications:
      - {syslog: "udp://192.0.2.1:514", facility: local3, tenant: acme}
    metrics: {port: 9477}
    policy: policy.yaml
    """
  private static let policy = """
    rules:
      - name: all
        when: {classes: [misc-attack]}
        count: {per: source, at-least: 2, within: 10s}
        ladder: [{block: 1m}]
    """
  private static let inventory = """
    version: 1
    domains:
      - {name: web, uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001, domid: 1, ports: [{interface: vif1.0, mac: "00:16:3e:00:00:01"}]}
    """

  private func check(_ replace: String, _ with: String) throws -> Program.Result {
    let folder = try TemporaryFolder()
    func write(_ name: String, _ text: String) throws -> String {
      try folder.write(name, text.replacingOccurrences(of: replace, with: with))
    }
    _ = try folder.write(
      "a.rules", "alert tcp any any -> any any (msg:\"m\"; content:\"x\"; classtype:misc-attack; sid:1;)\n")
    _ = try write("inventory.yaml", Self.inventory)
    _ = try write("policy.yaml", Self.policy)
    return try Program.run("check", "--live", try write("host.yaml", Self.host))
  }

  @Test("one that is right, and the example, are found right")
  func right() throws {
    let result = try check("nothing", "")
    #expect(result.status == 0, "\(result.output)\(result.errors)")
    let numbered = try check("facility: local3", "facility: local3, enterprise-number: 4294967295")
    #expect(numbered.status == 0, "\(numbered.output)\(numbered.errors)")
    let folder = try TemporaryFolder()
    let example = try Program.run("check", "--live", folder.copyExamples())
    #expect(example.status == 0, "\(example.output)\(example.errors)")
  }

  @Test("a bridge that is captured beside ports is a warning")
  func twice() throws {
    let result = try check("metrics:", "captures: [{interface: vif1.0}, {bridge: xenbr0}]\nmetrics:")
    #expect(
      result.status == 0 && result.output.contains("host.yaml:7:33: warning: a bridge and ports"), "\(result.output)")
  }

  @Test("a signature that no rule has is a warning: what selects it counts nothing")
  func unknownSignature() throws {
    let result = try check("classes: [misc-attack]", "sids: [1, 7, 8-9, 1-9, \"116:5\"]")
    #expect(result.status == 0 && result.output.contains("(2 warnings)"), "\(result.output)")
    #expect(result.output.contains("policy.yaml:2:5: warning: rule 'all': no rule in use has the SID 7"))
    #expect(result.output.contains("rule 'all': no rule in use has a SID from 8 to 9"))
  }

  @Test("one for Xen can be checked where there is none, and says at the start that there is none")
  func xen() throws {
    let folder = try TemporaryFolder()
    let guests = """
      version: 1
      hypervisor: xen
      guests: [{uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f0001, tenant: acme, service: http}, {name: web, service: ssh}]
      firewall: {kind: none}
      """
    let file = try folder.write("host.yaml", guests)
    let checked = try Program.run("check", "--live", file)
    #expect(checked.status == 0, "\(checked.output)\(checked.errors)")
    let run = try Program.run("run", "--config", file)
    #expect(run.status == 69)
    #expect(run.errors.contains("there is no Xen here"))
  }

  @Test(
    "what is wrong is said with its file, place and remedy",
    arguments: [
      (
        "inventory: inventory.yaml", "domains: []",
        ["host.yaml:2:", "domains stand in a file of their own", "either inventory or hypervisor"]
      ),
      ("inventory: inventory.yaml", "hypervisor: kvm", ["host.yaml:2:", "`kvm` is not xen"]),
      ("version: 1\n", "version: 1\nhypervisor: xen\n", ["either inventory or hypervisor"]),
      ("metrics:", "guests: [{name: web}]\nmetrics:", ["host.yaml:7:", "an inventory says itself"]),
      (
        "inventory: inventory.yaml", "hypervisor: xen\nguests: [{tenant: acme}, {name: a}, {name: a}]",
        ["host.yaml:3:", "either uuid or name", "named before"]
      ),
      ("kind: nftables", "kind: iptables", ["host.yaml:4:", "`iptables` is not one of nftables, none"]),
      ("table: vmfence", "table: \"a b\"", ["host.yaml:4:", "is not a name"]),
      (
        "table: vmfence", "routers: [fe80::1, 10.0.0.1]",
        ["host.yaml:4:", "`10.0.0.1` is not an IPv6 link-local address"]
      ),
      ("udp://192.0.2.1:514", "icmp://192.0.2.1", ["host.yaml:6:", "is not `local`"]),
      ("facility: local3", "facility: local9", ["host.yaml:6:", "`local9` is not one of kern"]),
      ("syslog:", "sylog:", ["host.yaml:6:", "did you mean `syslog`?"]),
      (
        "facility: local3", "enterprise-number: 0",
        ["host.yaml:6:", "`0` is not a whole number from 1 to 4294967295"]
      ),
      (
        "facility: local3", "enterprise-number: 4294967296",
        ["host.yaml:6:", "`4294967296` is not a whole number from 1 to 4294967295"]
      ),
      (
        "syslog: \"udp://192.0.2.1:514\", facility: local3", "eve-file: a.json, enterprise-number: 9",
        [
          "host.yaml:6:24: ", "notifications[0].enterprise-number: `eve-file` has no such option",
          "it is one of `syslog`",
        ]
      ),
      (
        "tenant: acme}", "events: [decision]}\n  - {fast-file: f.log, events: [alert, decision]}",
        ["host.yaml:7:32: ", "notifications[1].events: a fast-file holds alerts only, and no `decision`"]
      ),
      (
        "metrics:", "inspection: {anomalies: yes, packet-events-per-second: 0}\nmetrics:",
        ["host.yaml:7:", "is not a whole number from 1 to 100000"]
      ),
      (
        "tenant: acme}", "tenant: acme, events: [anomalies]}",
        ["host.yaml:6:", "one of alert, file, decision, lifecycle, platform, anomaly, packet"]
      ),
      ("inventory: inventory.yaml", "inventory:", ["host.yaml:2:", "inventory is empty"]),
      ("policy: policy.yaml", "policy:", ["host.yaml:8:", "policy is empty"]),
      ("metrics:", "? {a: b}\n: x\nmetrics:", ["host.yaml:7:", "a key must be a text"]),
      (
        "metrics:", "statistics-every: 0\nanswer-timeout: 1us\nmetrics:",
        ["host.yaml:7:", "`0` is not a duration", "host.yaml:8:", "`1us` is not a duration", "100ms at the least"]
      ),
      (
        "metrics:", "captures: [{interface: a/b}, {interface: vif1.0}, {interface: vif1.0}]\nmetrics:",
        ["host.yaml:7:", "`a/b` is not an interface's name", "vif1.0 is captured twice"]
      ),
      ("port: 9477", "port: 99999", ["host.yaml:7:", "is not a whole number from 1 to 65535"]),
      (
        "[misc-attack]", "[misc-atack]",
        ["policy.yaml:2:", "there is no class 'misc-atack'", "use a class of the rules in use"]
      ),
      (
        "classes: [misc-attack]", "platform: [spoofed-sorce]",
        ["policy.yaml:3:", "`spoofed-sorce` is not one of detector-died", "spoofed-source"]
      ),
      ("{block: 1m}", "{block: 1m}, {notify: true}", ["policy.yaml:2:", "rule 'all'"]),
      ("version: 1\ndomains", "version: 3\ndomains", ["inventory.yaml:1:", "`3` is not 1"]),
      (
        "per: source,", "per: source-network, v4-prefix: 0,",
        ["policy.yaml:4:", "`0` is not a whole number from 8 to 32"]
      ),
      ("rules:\n  - name", "never-block: [0.0.0.0/0]\nrules:\n  - name", ["policy.yaml:", "contradict each other"]),
      (
        "rules:\n  - name", "never-block: [10.0.0]\nrules:\n  - name",
        ["policy.yaml:1:", "`10.0.0` is not an address or network"]
      ),
    ])
  func wrong(replace: String, with: String, says: [String]) throws {
    let result = try check(replace, with)
    #expect(result.status == 65)
    for text in says { #expect(result.output.contains(text), "\(result.output)") }
  }

  @Test(
    "an option that a place of another kind has is not taken without a word",
    arguments: [
      ("facility: local3", ["syslog"]), ("enterprise-number: 9", ["syslog"]), ("socket: stream", ["eve-socket"]),
      ("headers: {a: b}", ["webhook"]), ("limit: 5", ["eve-file", "fast-file"]), ("queue: 5", []), ("tenant: acme", []),
      ("events: [alert]", []),
    ] as [(String, [String])])
  func options(option: String, kinds: [String]) throws {
    let places = [
      "eve-file": "a.json", "fast-file": "fast.log", "eve-socket": "a.sock", "syslog": "local",
      "webhook": "http://192.0.2.1/",
    ]
    let key = try #require(option.split(separator: ":").first)
    for (kind, place) in places {
      let result = try check(
        "syslog: \"udp://192.0.2.1:514\", facility: local3, tenant: acme", "\(kind): \"\(place)\", \(option)")
      let column = 8 + kind.count + 4 + place.count
      if kinds.isEmpty || kinds.contains(kind) {
        #expect(result.status == 0, "\(result.output)")
      } else {
        #expect(result.status == 65)
        let message =
          "host.yaml:6:\(column): error: notifications[0].\(key): `\(kind)` has no such option (it is one of "
        #expect(
          result.output.contains(message + kinds.map { "`\($0)`" }.joined(separator: " and ")), "\(result.output)")
      }
    }
  }

  @Test("what a wrong key of a rule leads to is not told as well")
  func once() throws {
    let result = try check("classes: [misc-attack]", "clases: [misc-attack]")
    #expect(result.output.contains("policy.yaml:3:") && result.output.contains("did you mean `classes`?"))
    #expect(result.output.contains("1 errors, 0 warnings"), "\(result.output)")
  }

  @Test("a state directory that cannot be written is an error before anything is done")
  func unwritable() throws {
    let folder = try TemporaryFolder()
    _ = try folder.write("a.rules", "alert tcp any any -> any any (msg:\"m\"; content:\"x\"; sid:1;)\n")
    _ = try folder.write("inventory.yaml", Self.inventory)
    _ = try folder.write("state", "a file")
    let host = try folder.write(
      "host.yaml", "version: 1\ninventory: inventory.yaml\nstate-directory: state\nfirewall: {kind: none}\n")
    let result = try Program.run("run", "--config", host)
    #expect(result.status == 73 && result.errors.contains("the state directory"), "\(result.errors)")
  }

  @Test("without the program that opens packet sockets nothing is run, and the message names it")
  func noOpener() throws {
    let folder = try TemporaryFolder()
    _ = try folder.write("inventory.yaml", Self.inventory)
    let host = try folder.write("host.yaml", "version: 1\ninventory: inventory.yaml\nfirewall: {kind: none}\n")
    // Another process copies it: a file that is open for writing cannot be run, and what other tests start from this one has its open files for a moment.
    try NetworkNamespace.shell("cp '\(Program.path("vmfence-ref"))' '\(folder.path("vmfence-ref"))'")
    let failure = #expect(throws: NetworkNamespace.CommandFailed.self) {
      try NetworkNamespace.shell("timeout 100 '\(folder.path("vmfence-ref"))' run --config '\(host)' 2>&1")
    }
    #expect(
      failure?.status == 69 && failure?.output.contains("vmfence-capture") == true, "\(String(describing: failure))")
  }

  @Test(
    "a missing capability is named", .enabled(if: NetworkNamespace.isPossible, "needs root, to make a namespace"),
    arguments: [("net_admin", "CAP_NET_ADMIN"), ("net_raw", "CAP_NET_RAW")])
  func capability(drop: String, name: String) throws {
    let folder = try TemporaryFolder()
    let namespace = try NetworkNamespace("caps")
    try namespace.run("ip link add vif1.0 type veth peer name eth0; ip link set vif1.0 up")
    _ = try folder.write("inventory.yaml", Self.inventory)
    let host = try folder.write("host.yaml", "version: 1\ninventory: inventory.yaml\n")
    let command =
      "setpriv --bounding-set -\(drop) --inh-caps -\(drop) \(try Program.path("vmfence-ref")) run --config \(host) 2>&1"
    let failure = #expect(throws: NetworkNamespace.CommandFailed.self) { try namespace.run("timeout 100 \(command)") }
    #expect(failure?.status == 77 && failure?.output.contains(name) == true, "\(String(describing: failure))")
  }

  @Test(
    "a table that another process owns is something that is not there for us, and no lack of a permission",
    .enabled(if: NetworkNamespace.isPossible, "needs root, to make a namespace"), arguments: ["bridge", "netdev"])
  func ownedTable(family: String) throws {
    let folder = try TemporaryFolder()
    let namespace = try NetworkNamespace("owned")
    try namespace.run("ip link add vif1.0 type veth peer name eth0; ip link set vif1.0 up")
    _ = try folder.write("inventory.yaml", Self.inventory)
    let host = try folder.write("host.yaml", "version: 1\ninventory: inventory.yaml\n")
    try namespace.ownTable(family)
    let failure = #expect(throws: NetworkNamespace.CommandFailed.self) {
      try namespace.run("timeout 100 \(try Program.path("vmfence-ref")) run --config \(host) 2>&1")
    }
    #expect(failure?.status == 69, "\(String(describing: failure))")
    let holder = failure?.output.firstMatch(
      of: /another process owns table ([a-z]+) vmfence: (?:probably )?nft \(process \d+\)/)
    #expect(holder?.1 == Substring(family), "\(String(describing: failure))")
  }

  @Test(
    "who is not root and has the capabilities as ambient ones leaves the packet filter to its process all the same",
    .enabled(if: NetworkNamespace.isPossible, "needs root, to make a namespace"))
  func ambientCapabilities() throws {
    let folder = try TemporaryFolder()
    let namespace = try NetworkNamespace("ambient")
    try namespace.run("ip link add vif1.0 type veth peer name eth0; ip link set vif1.0 up")
    let inventory = try folder.write("inventory.yaml", Self.inventory)
    let host = try folder.write("host.yaml", "version: 1\ninventory: inventory.yaml\n")
    let powers = "+net_admin,+net_raw"
    try NetworkNamespace.shell("chmod 755 \"$(dirname '\(host)')\"; chmod 644 '\(inventory)' '\(host)'")
    let daemon = try namespace.start(
      "sh -c \"exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps \(powers) --ambient-caps \(powers) "
        + "'\(Program.path("vmfence-ref"))' run --config '\(host)' 2>'\(folder.path("said"))'\"")
    defer { if daemon.isRunning { daemon.terminate() } }
    func said() -> String { (try? String(contentsOfFile: folder.path("said"), encoding: .utf8)) ?? "" }
    try eventually("it runs", saying: said) { said().contains("notice: running") || !daemon.isRunning }
    daemon.terminate()
    daemon.waitUntilExit()
    #expect(
      daemon.terminationStatus == 0 && said().contains("measures are carried out by nftables table vmfence"),
      "\(said())")
    #expect(namespace.succeeds("nft list table bridge vmfence") && !said().contains("for resets"), "\(said())")
  }
}
#endif
