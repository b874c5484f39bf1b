#if Daemon
import ArgumentParser
import Foundation
import VMFenceBlock
import VMFenceCore
import VMFenceDetection
import VMFenceIntegrity
import VMFenceProcess

@main
struct VMFenceDisk: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmfence-disk",
    abstract: "Serve one guest's disk over NBD, and watch what is written to its protected files.",
    discussion: """
      One process for each disk. It opens what it was told, gives up every privilege, and then serves: the daemon may be
      restarted or upgraded meanwhile. SIGTERM ends it when the requests under way are done and flushed.

      EXAMPLES
        vmfence-disk --disk /dev/vg0/web --socket /run/vmfence/web.sock --domain 6f9619ff-8b86-4d01-b42d-00cf4fc964ff \\
            --protect '/etc/**' --protect '/usr/**' --deny '/boot/**' --eve /var/log/vmfence/web-disk.json
        nbd-client -unix /run/vmfence/web.sock /dev/nbd0 -persist     # the disk for xl: 'phy:/dev/nbd0,xvda,w'
        qemu-system-x86_64 -drive 'file=nbd+unix:///?socket=/run/vmfence/web.sock,if=virtio,format=raw' …
        vmfence-disk --disk web.img --read-only --socket /tmp/web.sock --eve -

      EXIT CODES
        0 ended by a signal · 64 the command line, the policy or a rule file is wrong · 66 the disk, the policy or a rule file
        cannot be read · 69 the sandbox cannot be made · 71 a socket failed · 73 events, kept contents or the state cannot be
        written · 77 a permission is missing
      """, version: VMFenceVersion.text)

  @Option(help: "The raw image or block device to serve.")
  var disk: String

  @Option(help: "The unix socket to listen on; one that nobody listens on is replaced.")
  var socket: String

  @Option(help: "Permissions of the socket, octal.")
  var socketMode = "0600"

  @Option(help: "The name of the export. The empty name is served, too.")
  var export = ""

  @Flag(help: "Refuse every change.")
  var readOnly = false

  @Option(help: "The UUID of the guest.")
  var domain = "00000000-0000-0000-0000-000000000000"

  @Option(help: "The number of the guest on this host.")
  var domid: UInt32 = 0

  @Option(help: "The guest's name for the disk, told in events.")
  var device = "xvda"

  @Option(help: ArgumentHelp("A path or pattern to watch; may be given again.", valueName: "glob"))
  var protect: [String] = []

  @Option(
    help: ArgumentHelp(
      """
      A file with paths or patterns to watch besides, one a line, at most 64: what the guest's owner declared. One that cannot be watched is left out \
      and told, and stands in nothing's way.
      """, valueName: "file"))
  var declared: String?

  @Option(
    help: ArgumentHelp("A path or pattern whose contents may not be changed; may be given again.", valueName: "glob"))
  var deny: [String] = []

  @Option(
    help: ArgumentHelp(
      """
      As --deny, and its name, inode and attributes may not be changed either; may be given again. A refusal stops the \
      guest's journal: read the operator's guide first.
      """, valueName: "glob"))
  var denyMetadata: [String] = []

  @Option(
    help: ArgumentHelp(
      "A path or pattern whose changes wait for a decision, and the whole disk with them; may be given again.",
      valueName: "glob"))
  var freeze: [String] = []

  @Option(
    help: ArgumentHelp(
      "A path or pattern of which the contents before a change are kept; may be given again.", valueName: "glob"))
  var rollback: [String] = []

  @Option(
    help: ArgumentHelp(
      "A file with rules, one a line: PATTERN [VERB] [attributes=…] [severity=1-4] [object].", valueName: "file"))
  var policy: String?

  @Option(help: "Where contents are kept (rollback, freeze): a file that is appended to.")
  var keep: String?

  @Option(help: ArgumentHelp("How large that file may become.", valueName: "MiB"))
  var keepLimit: UInt32 = 1024

  @Option(help: ArgumentHelp("How long a change may wait for a decision.", valueName: "seconds"))
  var freezeLimit: UInt32 = 600

  @Option(help: "What is done when nobody has decided: deny or allow.")
  var freezeVerdict = "deny"

  @Option(help: "A unix socket for `vmfence-ref integrity expect`, `held` and `decide`, mode 0600.")
  var control: String?

  @Option(help: "A file in which announced windows outlive this process (made when it is not there).")
  var state: String?

  @Option(
    parsing: .upToNextOption,
    help: ArgumentHelp(
      """
      Rule files that what is written to protected files is compared with, as the body of an HTTP transfer: those named here by pattern, \
      and in a policy those with the attribute content.
      """, valueName: "file"))
  var rules: [String] = []

  @Option(help: "Where events go: a file that is appended to, unix:PATH of a listening stream socket, or - (EVE JSON).")
  var eve = "-"

  @Option(
    help: ArgumentHelp(
      "How large a file of events may become: then file events are counted, and written again when it was cut.",
      valueName: "MiB"))
  var eveLimit: UInt32 = 256

  @Option(help: "The name of this host in events.")
  var node = ProcessInfo.processInfo.hostName

  @Option(help: "Whom to become when started as root.")
  var user: UInt32 = 65534

  @Option(help: "The group to become when started as root.")
  var group: UInt32 = 65534

  static func main() {
    let words = Array(CommandLine.arguments.dropFirst())
    if let text = mistyped(words) {
      FileHandle.standardError.write(Data(text.utf8))
      exit(withError: ExitCode.validationFailure)
    }
    main(words)
  }

  /// What is said of an option that is none, where the argument parser would say what is missing.
  private static func mistyped(_ words: [String]) -> String? {
    do { _ = try parseAsRoot(words) } catch {
      guard exitCode(for: error) == .validationFailure else { return nil }
      return KnownOptions(help: helpMessage(includeHidden: true)).mistake(in: words).map {
        "Error: \($0)\nUsage: \(usageString())\n  See 'vmfence-disk --help' for more information.\n"
      }
    }
    return nil
  }

  func validate() throws {
    guard DomainUUID(domain) != nil else { throw ValidationError("--domain: '\(domain)' is no UUID") }
    guard let mode = UInt32(socketMode, radix: 8), mode <= 0o777 else {
      throw ValidationError("--socket-mode: '\(socketMode)' is no octal number up to 0777")
    }
    guard eveLimit > 0 else { throw ValidationError("--eve-limit: at least 1 MiB") }
    guard keepLimit > 0 else { throw ValidationError("--keep-limit: at least 1 MiB") }
    let paths = [
      ("disk", disk), ("socket", socket), ("eve", eve), ("control", control), ("keep", keep), ("state", state),
      ("policy", policy), ("declared", declared),
    ]
    for (option, path) in paths where path?.isEmpty == true {
      throw ValidationError("--\(option): a path is needed, and this is empty")
    }
    for (option, path) in [("socket", socket), ("control", control ?? "")]
    where path.utf8.count > LocalSocket.pathLimit {
      throw ValidationError(
        "--\(option): a socket's path has \(LocalSocket.pathLimit) bytes at the most, and this has \(path.utf8.count)")
    }
    guard ["deny", "allow"].contains(freezeVerdict) else {
      throw ValidationError("--freeze-verdict: '\(freezeVerdict)' is neither deny nor allow")
    }
  }

  func run() throws {
    let clock = SteadyClock()
    let incarnation = Incarnation(uuid: DomainUUID(domain) ?? DomainUUID(high: 0, low: 0), domainID: DomainID(domid))
    try checkFiles()
    let (protection, declared) = try protection()
    if control == nil, protection.rules.contains(where: { $0.action == .freeze }) {
      Self.log(
        "warning: without --control nobody can decide: what freeze holds waits \(freezeLimit) s, and then it is "
          + (freezeVerdict == "allow" ? "allowed" : "denied"))
    }
    if !rules.isEmpty, !protection.rules.contains(where: { $0.attributes.contains(.content) }) {
      Self.log("warning: nothing is compared with --rules: no file is protected with the attribute content")
    }
    let file: DiskFile
    do throws(BlockSourceError) { file = try DiskFile(path: disk, isReadOnly: readOnly) } catch {
      throw Self.end(error.code == .permissionDenied ? 77 : 66, error.description)
    }
    let output: EventOutput
    do throws(EventOutput.OutputFailure) {
      output = try EventOutput(
        .init(eve), limit: UInt64(eveLimit) << 20, encoder: EVEEncoder(node: node, directory: DomainDirectory()),
        incarnation: incarnation)
    } catch { throw Self.end(73, error.text) }
    for problem in declared?.problems ?? [] { Self.log("not watched, though declared: \(problem)") }
    if let alert = declared?.alert(of: incarnation, at: clock.now) { output.write(alert) }
    var service = DiskService(clock: clock, output: output, incarnation: incarnation)
    service.keeper = try keeper(protection)
    service.desk = try desk()
    service.windows = try windows()
    let contentRules = try contentRules()
    Signals.install()
    // The order matters: listening needs the file system; threads inherit what was given up before they started; the
    // filter forbids to start any.
    var server = try sandboxed(file, contentRules, &service)
    Signals.listen(server.stopper)
    if protection.rules.isEmpty {
      var observer = PassingObserver()
      try service.run(&server, &observer)
    } else {
      var seed = SystemRandomNumberGenerator()
      var monitor = DiskMonitor(
        server.reader,
        configuration: .init(
          incarnation: incarnation, disk: device, policy: protection, freezeLimit: .seconds(freezeLimit),
          freezeVerdict: freezeVerdict == "allow" ? .allow : .deny, hashKey: (seed.next(), seed.next())), at: clock.now)
      for part in monitor.watched {
        guard let blindness = part.blindness else { continue }
        Self.log("\(part.partition.map { "partition \($0.number)" } ?? "the disk") is not watched: \(blindness)")
      }
      try service.run(&server, &monitor)
    }
  }

  /// One file for two uses: what is written for the one would destroy the other, and the guest's disk first of all.
  private func checkFiles() throws {
    var uses: [(option: String, path: String)] = [("--disk", disk)]
    if case .file(let path) = EventOutput.Place(eve) { uses.append(("--eve", path)) }
    uses += [("--keep", keep), ("--state", state)].compactMap { option, path in path.map { (option, $0) } }
    for (index, use) in uses.enumerated() {
      guard let other = uses[..<index].first(where: { FileIdentity.isSame($0.path, use.path) }) else { continue }
      throw Self.end(
        64,
        "error: \(use.option) and \(other.option) name one file, \(use.path.escapedForDisplay): what is written there "
          + "would destroy it (name another)")
    }
    guard socket != control else { throw Self.end(64, "error: --socket and --control name one socket (name another)") }
  }

  /// What the operator wants, which is refused as a whole when something of it is wrong, and what the guest's owner wants besides.
  private func protection() throws -> (ProtectionPolicy, DeclaredPaths?) {
    let verbs: [(patterns: [String], action: ProtectionPolicy.Action)] = [
      (protect, .alert), (rollback, .rollback), (deny, .denyData), (freeze, .freeze), (denyMetadata, .denyMetadata),
    ]
    let attributes: FileAttributes = self.rules.isEmpty ? .standard : [.standard, .content]
    var rules = verbs.flatMap { verb in
      verb.patterns.map { ProtectionPolicy.Rule($0, action: verb.action, attributes: attributes) }
    }
    if let policy {
      let text: [UInt8]
      do throws(UnreadableFile) { text = try WholeFile.readText(policy, atMost: ProtectionPolicy.textLimit) } catch {
        throw Self.end(
          66,
          "\(policy.escapedForDisplay): error: the policy cannot be read: \(error.reason) (check the path and its permissions)"
        )
      }
      do throws(IntegrityError) {
        let read = try ProtectionPolicy.rules(text: text, file: policy)
        if read.isEmpty { Self.log("\(policy.escapedForDisplay): warning: the policy has no rules") }
        rules += read
      } catch { throw Self.end(64, error.description) }
    }
    for rule in rules where rule.pattern.contains("[") && rule.pattern.contains("]") || rule.pattern.contains("{") {
      Self.log(
        "warning: in the pattern \(rule.pattern.escapedForDisplay) brackets stand for themselves (only *, ? and ** stand for others)"
      )
    }
    let declared = declared.map {
      DeclaredPaths(file: $0, attributes: attributes, room: max(0, ProtectionPolicy.patternLimit - rules.count))
    }
    do throws(IntegrityError) {
      return (try ProtectionPolicy(rules + (declared?.rules ?? [])), declared)
    } catch { throw Self.end(64, error.description) }
  }

  private func keeper(_ protection: ProtectionPolicy) throws -> ContentsKeeper? {
    guard let keep else {
      guard !protection.rules.contains(where: { $0.action == .rollback }) else {
        throw Self.end(64, "error: rollback needs a file in which contents are kept (name one: --keep FILE)")
      }
      return nil
    }
    do throws(BlockSourceError) {
      return ContentsKeeper(try KeptFile(path: keep, limit: UInt64(keepLimit) << 20))
    } catch { throw Self.end(error.code == .permissionDenied ? 77 : 73, error.description) }
  }

  private func windows() throws -> WindowFile? {
    guard let state else { return nil }
    do throws(SystemFailure) { return try WindowFile(path: state) } catch {
      throw Self.end(
        error.isPermission ? 77 : 73,
        "error: the state cannot be kept: \(error.description) (name a file in a folder that may be written)")
    }
  }

  private func contentRules() throws -> SnortRules? {
    guard !rules.isEmpty else { return nil }
    do throws(RuleCompilationError) { return try ContentDesk.compile(rules) { Self.log($0.description) } } catch {
      for diagnostic in error.diagnostics { Self.log(diagnostic.description) }
      throw Self.end(error.code == .inputOutput ? 66 : 64, error.description)
    }
  }

  private func desk() throws -> ControlDesk? {
    guard let control else { return nil }
    do throws(SystemFailure) { return try ControlDesk(path: control) } catch {
      throw Self.end(
        error.isPermission ? 77 : 71,
        "error: the control socket cannot be made: \(error.description) (name one in a folder that may be written, where nothing else is)"
      )
    }
  }

  private func sandboxed(
    _ file: DiskFile, _ contentRules: SnortRules?, _ service: inout DiskService
  ) throws -> NBDServer {
    let listener: NBDListener
    do throws(BlockSourceError) {
      listener = try NBDListener(path: socket, mode: UInt32(socketMode, radix: 8) ?? 0o600)
    } catch { throw Self.end(error.code == .permissionDenied ? 77 : 71, error.description) }
    do throws(DetectorError) {
      if let reason = try DiskSandbox.giveUp(user: user, group: group) {
        Self.log("Landlock is not available (\(reason)): files are forbidden by the system call filter alone")
      }
    } catch { throw Self.end(69, error.description) }
    let server: NBDServer
    do throws(BlockSourceError) {
      server = try NBDServer(
        disk: file, listener: listener, configuration: .init(exportName: export), clock: service.clock)
    } catch { throw Self.end(71, error.description) }
    do throws(RuleCompilationError) { service.contents = try contentRules.map(ContentDesk.init) } catch {
      throw Self.end(64, error.description)
    }
    do throws(DetectorError) { try DiskSandbox.filterSystemCalls() } catch { throw Self.end(69, error.description) }
    return server
  }

  static func log(_ text: String) {
    let line = Array("vmfence-disk: \(text)\n".utf8)
    // SAFETY: the array's bytes are read.
    unsafe line.withUnsafeBytes { bytes in unsafe _ = Glibc.write(2, bytes.baseAddress, bytes.count) }
  }

  static func end(_ code: Int32, _ text: String) -> ExitCode {
    log(text)
    return ExitCode(code)
  }
}
#endif
