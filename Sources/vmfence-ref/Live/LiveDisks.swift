#if Daemon
import Foundation
import Logging
import Synchronization
import VMFenceControl
import VMFenceCore

/// The disks' processes that the configuration names, and the domains that are paused because a request to one of them is held. Which those
/// are outlives the daemon, in the state directory. Used by the daemon's loop.
final class LiveDisks {
  static let fileName = "frozen.json"
  /// How long a process that has gone may hold a request for which its domain is paused: the next one shows it again, unless the disk was led
  /// past it.
  private static let patience = Duration.seconds(30)

  private struct Disk {
    var settings: HostConfiguration.Disk
    var state = FrozenDomains.State.unknown
    /// Since when nobody has been there.
    var isGoneSince: Timestamp?
  }

  /// A domain as it is written down.
  private struct Entry: Codable {
    var uuid: String
    var domid: UInt32
  }

  private let frozen: FrozenDomains
  private let mailbox: Mailbox<LiveMessage>
  private let logger: Logger
  private var disks: [Disk] = []
  private var follower: DiskFollower?
  /// Nil before anybody has looked.
  private var domains: [DomainDescription]?

  /// - `events`: is told which domains are paused and resumed.
  init(
    control: any HypervisorControl, stateDirectory: String?, events: any EventSink, mailbox: Mailbox<LiveMessage>,
    logger: Logger
  ) {
    let path = stateDirectory.map { $0 + "/" + Self.fileName }
    frozen = FrozenDomains(control: control, paused: Self.read(path, logger), events: events) { paused in
      if let path { Self.write(paused, path, logger) }
    }
    self.mailbox = mailbox
    self.logger = logger
  }

  /// The domains that are paused.
  var paused: Set<Incarnation> { get async { await frozen.paused } }

  /// Follows these disks from now on.
  func follow(_ settings: [HostConfiguration.Disk]) {
    guard settings != disks.map(\.settings) else { return }
    follower?.close()
    follower = nil
    disks = settings.map { wanted in disks.first { $0.settings == wanted } ?? Disk(settings: wanted) }
    guard !settings.isEmpty else { return }
    let (paths, mailbox) = (settings.map(\.control), mailbox)
    do throws(ControlFailure) {
      follower = try DiskFollower(paths) { mailbox.post(.disk(paths[$0], $1)) }
    } catch { logger.error("\(error.message)") }
  }

  /// Takes what a disk's process says.
  func note(_ status: DiskControlStatus?, of path: String, at now: Timestamp) {
    for index in disks.indices where disks[index].settings.control == path {
      disks[index].isGoneSince = status == nil ? now : nil
      guard let status else {
        if disks[index].state == .passing { disks[index].state = .unknown }
        continue
      }
      disks[index].state =
        status.held.map { .holding(request: $0.request, paths: $0.paths.prefix(16).map(\.escapedForDisplay)) }
        ?? .passing
    }
    if let domains { settle(domains, at: now) }
  }

  /// Has the domains paused and resumed as their disks stand; what takes its time is done besides.
  func settle(_ domains: [DomainDescription], at now: Timestamp) {
    self.domains = domains
    let states = disks.flatMap { disk in
      domains.filter { disk.settings.guest.matches($0) }.map {
        FrozenDomains.Disk(
          domain: $0.incarnation, name: disk.settings.control,
          state: disk.isGoneSince.map { now - $0 >= Self.patience } == true ? .passing : disk.state)
      }
    }
    let frozen = frozen
    Task { await frozen.settle(domains, states, at: now) }
  }

  func close() { follower?.close() }

  private static func read(_ path: String?, _ logger: Logger) -> Set<Incarnation> {
    guard let path, let data = FileManager.default.contents(atPath: path) else { return [] }
    guard let entries = try? JSONDecoder().decode([Entry].self, from: data) else {
      logger.error("\(path) cannot be read: domains that were paused because of their disks must be resumed by hand")
      return []
    }
    return Set(
      entries.compactMap { entry in
        DomainUUID(entry.uuid).map { Incarnation(uuid: $0, domainID: DomainID(entry.domid)) }
      })
  }

  /// Whole, or not at all.
  private static func write(_ paused: Set<Incarnation>, _ path: String, _ logger: Logger) {
    let entries = paused.sorted().map { Entry(uuid: $0.uuid.description, domid: $0.domainID.rawValue) }
    do { try JSONEncoder().encode(entries).write(to: URL(filePath: path), options: .atomic) } catch {
      logger.error(
        "\(path) cannot be written: after a restart, domains that are paused because of their disks must be resumed by hand"
      )
    }
  }
}

extension HostConfiguration.Disk.Guest {
  fileprivate func matches(_ domain: DomainDescription) -> Bool {
    switch self {
    case .uuid(let uuid): domain.incarnation.uuid == uuid
    case .name(let name): domain.name == name
    }
  }
}
#endif
