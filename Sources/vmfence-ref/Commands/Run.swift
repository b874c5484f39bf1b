#if Daemon
import ArgumentParser
import Foundation
import Logging
import VMFenceCapture
import VMFenceConfiguration
import VMFenceCore
import VMFenceDetection
import VMFenceProcess

/// `vmfence-ref run`
struct Run: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Run as a daemon: capture live, inspect, decide, enforce.",
    discussion: """
      The domains come from Xen (`hypervisor: xen` in the configuration), or from an inventory that it names, a file that is watched. Needs
      CAP_NET_RAW, and for the packet filter CAP_NET_ADMIN, which it leaves to processes of their own (vmfence-capture, vmfence-firewall); for Xen, root
      in Dom0.

      SIGTERM and SIGINT stop it. SIGHUP reads everything again (configuration, rules, policy, inventory), puts it in force whole or not at
      all. The event file is rotated by renaming it, without a signal.

      EXAMPLES
        vmfence-ref check --live host.yaml
        vmfence-ref run --config host.yaml --eve /var/log/vmfence/eve.json
      """)

  @Option(help: "The configuration, a YAML file.")
  var config: String

  @Option(help: "Where to append events as EVE JSON.")
  var eve: String?

  @Option(
    help: ArgumentHelp(
      "How large that file may become. What finds no room is counted until it is rotated: a guest has no more of it than its share.",
      valueName: "MiB"))
  var eveLimit = UInt32(EVEFileSink.standardLimit >> 20)

  @Option(help: "The decision log; in the state directory when not given, and in memory only without one.")
  var decisions: String?

  @Option(help: "process or thread; goes before what the configuration says.")
  var detectors: Replay.Detectors?

  @Option(help: "The detector's program; vmfence-detector beside this program when not given.")
  var detector: String?

  @Option(help: "trace, debug, info, notice, warning, error or critical.")
  var logLevel: Logger.Level = .info

  @Option(help: "text or json.")
  var logFormat: LogFormat = .text

  func validate() throws {
    guard eveLimit > 0 else { throw ValidationError("--eve-limit: at least 1 MiB") }
    guard eve != "-" else {
      throw ValidationError("--eve: a daemon's events go to a file, and are not for standard output")
    }
  }

  func run() async throws {
    let logger = Logger(level: logLevel, format: logFormat)
    // Whoever has changed something while rules are compiled is heard when that is done.
    Signals.installReload()
    let parts = try await prepare(logger)
    Signals.install()
    let configuration = parts.host.configuration
    let usesProcesses = detectors.map { $0 == .process } ?? configuration.usesProcesses
    do throws(ReplayFailure) {
      if usesProcesses {
        let backend: ProcessDetectorBackend<SnortRules>
        do throws(DetectorError) { backend = try ProcessDetectorBackend(executable: detector) } catch {
          throw ReplayFailure(error.diagnostic, Exit.unavailable)
        }
        try await LiveRun(parts, backend: backend, answerTimeout: configuration.answerTimeout).run()
      } else {
        // A thread cannot be killed while it inspects.
        try await LiveRun(parts, backend: ThreadDetectorBackend<SnortInspector>(), answerTimeout: nil).run()
      }
    } catch {
      logger.log([error.diagnostic])
      throw error.exit
    }
  }

  private func prepare(_ logger: Logger) async throws -> LiveParts {
    // The state directory is known only once the configuration was read.
    let first = PreparedHost.load(path: config)
    guard let directory = first.host?.configuration.stateDirectory else {
      logger.log(first.diagnostics)
      guard let host = first.host else {
        throw WholeFile.problem(config) == nil ? Exit.badData : Exit.noInput
      }
      return try await assemble(host, RuleAssignments(), logger)
    }
    try Self.checkStateDirectory(directory, logger)
    let assigned = Self.kept(
      RuleAssignments.fileName, in: directory, otherwise: RuleAssignments(),
      "guests have the rules of the configuration",
      logger
    ) { () throws(DamagedFile) in try RuleAssignments.read(stateDirectory: directory) }
    let prepared = assigned == RuleAssignments() ? first : PreparedHost.load(path: config, assigned: assigned)
    logger.log(prepared.diagnostics)
    guard let host = prepared.host else { throw Exit.badData }
    return try await assemble(host, assigned, logger)
  }

  /// A file of the state directory. One that is damaged is moved away, for whoever looks into it: no guest of this host would be guarded as long as it stood in the way.
  ///
  /// - `loss`: what that costs.
  private static func kept<Value>(
    _ name: String, in directory: String?, otherwise: Value, _ loss: String, _ logger: Logger,
    _ read: () throws(DamagedFile) -> Value
  ) -> Value {
    do throws(DamagedFile) { return try read() } catch {
      let path = (directory ?? ".") + "/" + name
      // SAFETY: both paths are handed over as strings that end in zero and live during the call.
      let isMoved = unsafe rename(path, path + ".damaged") == 0
      let rest = isMoved ? "the file is \(name).damaged now" : "look into it, or remove it"
      logger.error("\(path) cannot be read: \(error.reason): \(loss) (\(rest))")
      return otherwise
    }
  }

  private static func checkStateDirectory(_ path: String, _ logger: Logger) throws {
    try? FileManager.default.createDirectory(
      atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    var isFolder: ObjCBool = false
    // SAFETY: the call writes one value, which lives during it.
    let exists = unsafe FileManager.default.fileExists(atPath: path, isDirectory: &isFolder)
    guard exists, isFolder.boolValue, FileManager.default.isWritableFile(atPath: path) else {
      logger.error(
        "the state directory \(path) cannot be written (make it, give it to the user that runs this, or name another)")
      throw Exit.cannotCreate
    }
  }

  private func assemble(_ host: PreparedHost, _ assigned: RuleAssignments, _ logger: Logger) async throws -> LiveParts {
    let configuration = host.configuration
    let clock = SteadyClock()
    let domains: LiveDomains
    let directory: DomainDirectory
    let control: (any HypervisorControl)?
    do throws(ProbeError) {
      domains = try LiveDomains(configuration, clock: clock)
      directory = DomainDirectory(try await domains.snapshot().domains)
      control = domains.control(configuration, directory)
    } catch {
      logger.log([error.diagnostic])
      switch error.code {
      case .unavailable: throw Exit.unavailable
      case .permissionDenied: throw Exit.noPermission
      default: throw Exit.badData
      }
    }
    let opener: PacketSocketOpener
    do throws(PacketSourceError) {
      // This process reads frames, so the right to open packet sockets is another's.
      opener = try PacketSocketOpener { () throws(DetectorError) in try HelperProcess("vmfence-capture") }
    } catch {
      logger.log([error.diagnostic])
      throw Exit.unavailable
    }
    let mailbox = try Mailbox<LiveMessage>()
    let declarations = Self.kept(
      Declarations.fileName, in: configuration.stateDirectory, otherwise: Declarations(),
      "what guests declared is forgotten until they declare it again", logger
    ) { () throws(DamagedFile) in try Declarations.read(stateDirectory: configuration.stateDirectory) }
    let channels = try openChannels(domains, declarations, clock, mailbox, logger)
    let queue = EventQueue()
    let (log, restored) = try openLog(configuration, logger)
    let firewall: HostFirewall
    do throws(FirewallError) { firewall = try HostFirewall.open(configuration.firewall) } catch {
      logger.log([error.diagnostic])
      throw error.exit
    }
    let coordinator: EnforcementCoordinator
    do throws(PolicyError) {
      var updater = try PolicyUpdater(policy: configuration.policy, directory: directory)
      let lifted = updater.restore(restored, at: clock.now)
      let surplus = Int(clamping: updater.statistics.surplus)
      let ended = lifted.dropLast(surplus).count { $0.status == .expired }
      if ended > 0 { logger.notice("\(ended) measures ran out while this did not run") }
      if surplus > 0 { logger.warning("\(surplus) of what stood or waited is ended: there is no room for it any more") }
      coordinator = EnforcementCoordinator(
        updater: updater, log: SystemTimeDecisionLog(log, clock: clock), firewall: firewall.sink,
        control: control, events: queue, lifted: lifted)
    } catch {
      logger.log(error.diagnostics)
      throw Exit.badData
    }
    let encoder = EVEEncoder(node: configuration.node, directory: directory)
    let file: EVEFileSink?
    do throws(NotificationError) {
      file = try eve.map { path throws(NotificationError) in
        try EVEFileSink(path: path, limit: UInt64(eveLimit) << 20, encoder: encoder)
      }
    } catch {
      logger.log([error.diagnostic])
      throw Exit.cannotCreate
    }
    logger.notice("measures are carried out by \(firewall.name)")
    let history = try HistoryRecorder.open(
      stateDirectory: configuration.stateDirectory, encoder: encoder, logger: logger)
    history.project(restored)
    let guestPolicies = GuestPolicies(
      coordinator: coordinator, clock: clock, exceptions: configuration.firewall.exceptionsFromQuarantine)
    let desk = ControlDesk(
      coordinator: coordinator, directory: directory, clock: clock, encoder: encoder, mailbox: mailbox,
      history: history, guestPolicies: guestPolicies)
    let disks = LiveDisks(
      control: control, stateDirectory: configuration.stateDirectory, events: queue, mailbox: mailbox, logger: logger)
    if control == nil, !configuration.disks.isEmpty {
      logger.warning(
        "nothing here can pause a domain, so one whose disk holds a request goes on: give `control` programs")
    }
    return LiveParts(
      host: host, assigned: assigned, domains: domains, clock: clock, directory: directory, coordinator: coordinator,
      decisions: queue,
      outputs: EventOutputs(
        file: file, encoder: encoder, others: [history, LogEventSink(logger: logger, directory: directory), desk],
        stateDirectory: configuration.stateDirectory, logger: logger),
      mailbox: mailbox, desk: desk, history: history, guestPolicies: guestPolicies, firewall: firewall,
      channels: channels, declarations: declarations, disks: disks, opener: opener, logger: logger)
  }

  /// A host whose guests cannot be sent policies guards them all the same.
  private func openChannels(
    _ domains: LiveDomains, _ declarations: Declarations, _ clock: SteadyClock, _ mailbox: Mailbox<LiveMessage>,
    _ logger: Logger
  ) throws -> GuestChannels? {
    let pages: XenGuestPages?
    do throws(ProbeError) { pages = try domains.pages() } catch {
      logger.log([error.diagnostic])
      logger.warning("guests are sent no policies")
      return nil
    }
    return try pages.map { pages in
      try GuestChannels(pages, declarations, clock: clock) { mailbox.post(.channels) }
    }
  }

  private func openLog(_ configuration: HostConfiguration, _ logger: Logger) throws -> (any DecisionLog, [Decision]) {
    guard let path = decisions ?? configuration.stateDirectory.map({ $0 + "/decisions.log" }) else {
      return (MemoryDecisionLog(), [])
    }
    do throws(DecisionLogError) {
      let (log, recovery) = try FileDecisionLog.open(path: path)
      if let damage = recovery.damage { logger.log([damage]) }
      return (log, recovery.decisions)
    } catch {
      logger.log([error.diagnostic])
      throw error.code == .permissionDenied ? Exit.noPermission : Exit.cannotCreate
    }
  }
}
#endif
