#if Daemon
import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceControl

/// A host with a bridge, three guests with real servers (HTTP, FTP, SSH), an outside with two addresses, and the daemon.
final class ProtectedHost {
  let network: BridgeNetwork
  let vm3: NetworkNamespace
  let folder: TemporaryFolder
  private var servers: [Process] = []
  private(set) var daemon: Process?
  private let errorLog: String

  static let isPossible =
    NetworkNamespace.isPossible
    && [
      "/usr/bin/busybox", "/usr/sbin/sshd", "/usr/sbin/vsftpd", "/usr/bin/curl", "/usr/bin/hydra", "/usr/bin/nmap",
      "/usr/sbin/nft",
    ]
    .allSatisfy(FileManager.default.isExecutableFile)
  static let reason: Comment =
    "needs root, and busybox, openssh-server, vsftpd, curl, hydra, nmap, nftables (scripts/setup tests)"

  /// All guests are one owner's. What is blocked stays so for longer than a test takes, on the slowest machine.
  static let policy = policy(block: "5m")

  /// For tests that wait for a block's end. Whatever such a test does while the block stands has to fit in.
  static func policy(block: String) -> String {
    """
    rules:
      - name: attacks
        when: {classes: [web-application-attack, unsuccessful-user, suspicious-login]}
        count: {per: source, at-least: 3, within: 60s}
        ladder: [{block: \(block), times: 2}, {block-on-host: 5m}]
        escalation: {factor: 2}
      - name: sweeps
        when: {classes: [attempted-recon]}
        count: {per: source, at-least: 1}
        evidence: any
        ladder: [{block: 1m}]
      - name: drastic
        when: {sids: [1000009]}
        count: {per: domain, at-least: 1}
        ladder: [{pause: true}]
    block-on-host-tenants: 1

    """
  }

  static let rules = """
    alert tcp any any -> any 80 (msg:"password file"; flow:to_server,established; content:"/etc/passwd"; classtype:web-application-attack; sid:1000001;)
    alert tcp any any -> any 80 (msg:"drastic"; flow:to_server,established; content:"/drastic"; sid:1000009;)
    alert tcp any 21 -> any any (msg:"ftp login failed"; flow:to_client,established; content:"530 "; classtype:unsuccessful-user; sid:1000002;)
    alert tcp any any -> any 22 (msg:"ssh connection"; flow:to_server,established; content:"SSH-2.0-libssh"; classtype:suspicious-login; sid:1000003;)
    alert tcp any any -> any any (msg:"port sweep"; flags:S; detection_filter:track by_src, count 30, seconds 10; classtype:attempted-recon; sid:1000004;)

    """

  init(_ label: String, policy: String = policy, host: String = "") throws {
    network = try BridgeNetwork(label)
    vm3 = try NetworkNamespace("\(label)-vm3")
    try network.attach(vm3, port: "vif3.0", number: 3)
    folder = try TemporaryFolder()
    errorLog = folder.path("daemon.log")
    _ = try folder.write("guests.rules", Self.rules)
    _ = try folder.write("policy.yaml", policy)
    let guests = ["web", "files", "shell"].enumerated().map { index, name in
      """
        - name: \(name)
          uuid: 6e1b4d0a-93c5-4c54-8d0e-5a0c7a1f000\(index + 1)
          domid: \(index + 1)
          tenant: acme
          ports: [{interface: vif\(index + 1).0, bridge: xenbr0, mac: "02:77:00:00:00:0\(index + 1)", addresses: [10.77.0.\(index + 1), "fd77::\(index + 1)"]}]

      """
    }
    _ = try folder.write("inventory.yaml", "version: 1\ndomains:\n" + guests.joined())
    try configure(host)
    try startServers()
  }

  func configure(_ more: String) throws {
    _ = try folder.write(
      "host.yaml",
      """
      version: 1
      node: dom0
      inventory: inventory.yaml
      state-directory: state
      control-socket: control.sock
      rules: {dialect: snort2, common: guests.rules}
      policy: policy.yaml
      \(more)
      """)
  }

  /// Real servers, which end with their namespaces' other processes.
  private func startServers() throws {
    let www = folder.path("www")
    try FileManager.default.createDirectory(atPath: www, withIntermediateDirectories: true)
    _ = try folder.write("www/index.html", "hello\n")
    try NetworkNamespace.shell("truncate -s 500M \(www)/large")
    let ftp = try folder.write(
      "vsftpd.conf",
      // A session in a network namespace of its own would not be found, and outlive the guest's.
      "listen=YES\nbackground=NO\nisolate_network=NO\nlocal_enable=YES\nanonymous_enable=NO\nsecure_chroot_dir=\(www)\n"
        + "max_login_fails=2\n")
    for guest in [network.vm1, network.vm2] { servers.append(try guest.start("busybox httpd -f -p 80 -h \(www)")) }
    // Both close every descriptor that they inherit, and with it the one by which Foundation notices their end: a shell keeps it.
    servers.append(try network.vm2.start("sh -c 'vsftpd \(ftp); true'"))
    try NetworkNamespace.shell("mkdir -p /run/sshd; ssh-keygen -q -t ed25519 -N '' -f \(folder.path("key"))")
    let options = "-o HostKey=\(folder.path("key")) -o PidFile=none -o UsePAM=no -o MaxStartups=100"
    servers.append(try vm3.start("sh -c '/usr/sbin/sshd -D -p 22 -f /dev/null \(options); true'"))
    try eventually("the servers") {
      network.outside.succeeds(
        "curl -sf -m 10 http://10.77.0.1/ && curl -sf -m 10 http://10.77.0.2/ && nmap -n -Pn -sT -p 21 10.77.0.2 | grep -q open "
          + "&& nmap -n -Pn -sT -p 22 10.77.0.3 | grep -q open")
    }
  }

  /// Starts the daemon in the host's namespace and waits until it captures at every port.
  func start(environment: String = "", captures: Int = 3) throws {
    let program = try Program.path("vmfence-ref")
    _ = FileManager.default.createFile(atPath: errorLog, contents: nil)
    let process = Process()
    process.executableURL = URL(filePath: "/bin/sh")
    process.arguments = [
      "-c",
      "exec ip netns exec \(network.host.name) env \(environment) \(program) run --config \(folder.path("host.yaml")) "
        + "--eve \(folder.path("eve.json")) --log-level trace 2>>\(errorLog)",
    ]
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = FileHandle.nullDevice
    try process.run()
    daemon = process
    try eventually("the daemon", saying: { said }) {
      try #require(process.isRunning, "\(said)")
      let domains = try? ask(ControlRequest(.domains), [DomainStatus].self)
      return domains?.filter { $0.state == "inspecting" || $0.state == "suspended" }.count == 3
        && said.components(separatedBy: "capturing on").count == captures + 1
    }
  }

  /// What the daemon has said, in whole lines: of one that is being written a reader may see a part.
  var said: String {
    let bytes = (try? Data(contentsOf: URL(filePath: errorLog))) ?? Data()
    return String(decoding: bytes[..<(bytes.lastIndex(of: UInt8(ascii: "\n")) ?? 0)], as: UTF8.self)
  }

  func signal(_ number: Int32) { if let daemon { kill(daemon.processIdentifier, number) } }

  func stop(_ number: Int32 = SIGTERM) {
    signal(number)
    daemon?.waitUntilExit()
  }

  func ask<Result: Decodable>(_ request: ControlRequest, _ type: Result.Type) throws -> Result {
    try ControlClient(path: folder.path("control.sock")).ask(request, type)
  }

  /// Asks as a person does.
  func cli(_ arguments: String...) throws -> String {
    let words = arguments.map { "'\($0)'" }.joined(separator: " ")
    return try NetworkNamespace.shell(
      "\(try Program.path("vmfence-ref")) \(words) --socket \(folder.path("control.sock"))")
  }

  var bans: [DecisionStatus] { (try? ask(ControlRequest(.bans), [DecisionStatus].self)) ?? [] }

  /// Decisions as they were told, in order.
  func decisions() throws -> [EVEDecision] {
    try wholeLines(of: folder.path("eve.json")).compactMap {
      try JSONDecoder().decode(EVEDecision.Line.self, from: Data($0.utf8)).vmfence?.decision
    }
  }

  func platformKinds() throws -> [String] {
    try EVELine.read(folder.path("eve.json")).compactMap(\.vmfence?.platform?.kind)
  }

  // MARK: Who attacks, and who does not

  /// Whether a guest's page comes to `address`, however late.
  func fetches(_ guest: Int, from address: String = "10.77.0.99", path: String = "/", seconds: Int = 60) -> Bool {
    network.outside.succeeds("curl -sf -m \(seconds) --interface \(address) http://10.77.0.\(guest)\(path)")
  }

  /// Whether a guest's page does not come within a second.
  func isCutOff(_ guest: Int, from address: String = "10.77.0.99") -> Bool {
    !fetches(guest, from: address, seconds: 1)
  }

  /// So many requests with an attack in them. Each has its answer before the next, however late, unless its source is blocked for it.
  func attack(_ guest: Int = 1, from address: String = "10.77.0.99", times: Int = 3) {
    let before = Set(bans.map(\.id))
    for _ in 0..<times {
      let request = "curl -s -m 60 --path-as-is --interface \(address) http://10.77.0.\(guest)/../../etc/passwd"
      guard let curl = try? network.outside.start(request) else { return }
      while curl.isRunning, !bans.contains(where: { $0.network == address && !before.contains($0.id) }) {
        usleep(20_000)
      }
      if curl.isRunning { kill(curl.processIdentifier, SIGKILL) }
      curl.waitUntilExit()
    }
  }

  deinit {
    if let daemon, daemon.isRunning {
      kill(daemon.processIdentifier, SIGKILL)
      daemon.waitUntilExit()
    }
  }
}

/// The tests on a live bridge. One after the other: each has servers, detectors and attackers of its own, and times that must not be stretched.
@Suite("On a live bridge", .enabled(if: ProtectedHost.isPossible, ProtectedHost.reason), .serialized)
struct EndToEnd {}

/// A decision as an event tells it.
struct EVEDecision: Decodable {
  struct Line: Decodable {
    struct Ours: Decodable { var decision: EVEDecision? }
    var vmfence: Ours?
  }
  var id: Int
  var measure: String
  var network: String?
  var status: String
  var policy: String
  var reason: String
  var step: Int
  var logged: Bool
}
#endif
