#if Daemon
import Foundation
import Logging
import Synchronization
import VMFenceControl
import VMFenceCore

/// The disks' processes that the configuration names: what they tell of protected files, and the domains that are paused because a request
/// to one of them is held. Which those are outlives the daemon, in the state directory. Used by the daemon's loop.
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

  /// Nil when nothing here can pause a domain.
  private let frozen: FrozenDomains?
  private let mailbox: Mailbox<LiveMessage>
  private let logger: Logger
  private var disks: [Disk] = []
  private var follower: DiskFollower?
  /// Nil before anybody has looked.
  private var domains: [DomainDescription]?
  private let inbox = DiskInbox()
  /// Events of guests that the inventory does not know yet.
  private var early: [(path: String, event: DiskFileEvent, arrival: Timestamp)] = []
  private var absences = DiskAbsences()
  private var nextLook = Timestamp.zero
  /// What processes said of how they stand that was never looked at, because something newer had come.
  private(set) var statusesOutdated: UInt64 = 0
  /// How many changes to files were taken, of each domain that is there.
  private var taken: [Incarnation: UInt64] = [:]

  /// - `events`: is told which domains are paused and resumed.
  init(
    control: (any HypervisorControl)?, stateDirectory: String?, events: any EventSink, mailbox: Mailbox<LiveMessage>,
    logger: Logger
  ) {
    let path = stateDirectory.map { $0 + "/" + Self.fileName }
    frozen = control.map { control in
      FrozenDomains(control: control, paused: Self.read(path, logger), events: events) { paused in
        if let path { Self.write(paused, path, logger) }
      }
    }
    self.mailbox = mailbox
    self.logger = logger
  }

  /// The disks that nobody watches though their guests are there, one sentence each.
  var problems: [String] { absences.problems }

  /// How many changes to files of a domain were taken since it came, or the daemon did.
  func eventsTaken(of domain: Incarnation) -> UInt64 { taken[domain] ?? 0 }

  /// The domains that are paused.
  var paused: Set<Incarnation> { get async { await frozen?.paused ?? [] } }

  /// Follows these disks from now on.
  func follow(_ settings: [HostConfiguration.Disk]) {
    guard settings != disks.map(\.settings) else { return }
    follower?.close()
    follower = nil
    disks = settings.map { wanted in disks.first { $0.settings == wanted } ?? Disk(settings: wanted) }
    guard !settings.isEmpty else { return }
    let (paths, mailbox, inbox) = (settings.map(\.control), mailbox, inbox)
    do throws(ControlFailure) {
      follower = try DiskFollower(paths) { index, news in
        let (isTaken, isFirst) = inbox.add(news, of: paths[index])
        if isFirst { mailbox.post(.disks) }
        return isTaken
      }
    } catch { logger.error("\(error.message)") }
  }

  /// Takes what the disks' processes said since the last call: how each stands now, and what they told of protected files, as events of the guests that the
  /// configuration names. Those of a guest that the inventory does not know yet wait, for half a minute.
  ///
  /// - `offset`: how far the system's clock is ahead of `now`.
  func takeEvents(at now: Timestamp, offset: Duration) -> [Event] {
    let arrived = inbox.take()
    if arrived.contains(where: \.news.isWaiting) { follower?.resume() }
    var result = lookForAbsences(at: now)
    guard !arrived.isEmpty || !early.isEmpty else { return result }
    var lost: [String: UInt64] = [:]
    var waiting = early
    for (path, news) in arrived {
      if let status = news.status { note(status, of: path, at: now) }
      statusesOutdated &+= news.outdated
      if news.lost > 0 { lost[path] = news.lost }
      waiting += news.events.map { (path, $0, now) }
    }
    if let domains, arrived.contains(where: { $0.news.status != nil }) { settle(domains, at: now) }
    early.removeAll()
    var room = FairRoom(capacity: DiskInbox.capacity)
    var held: [String: Int] = [:]
    for (path, told, arrival) in waiting {
      guard let guest = disks.first(where: { $0.settings.control == path })?.settings.guest else { continue }
      guard let domain = domains?.filter(guest.matches).max(by: { $0.incarnation < $1.incarnation }) else {
        if now - arrival < Self.patience, room.enter(&held[path, default: 0], DiskInbox.cost(of: told)) {
          early.append((path, told, arrival))
        } else {
          lost[path, default: 0].addUpToMaximum(1)
        }
        continue
      }
      let time = min(now, Timestamp(nanoseconds: told.time) + (.zero - offset))
      if let event = told.event(of: domain.incarnation, at: time) {
        result.append(.file(event))
        taken[domain.incarnation, default: 0] &+= 1
      } else {
        lost[path, default: 0].addUpToMaximum(1)
      }
    }
    return result + lost.sorted { $0.key < $1.key }.map { .platform(loss($0.value, of: $0.key, at: now)) }
  }

  /// What is new of disks that nobody watches though their guests are there.
  private func lookForAbsences(at now: Timestamp) -> [Event] {
    guard let domains, now >= nextLook else { return [] }
    nextLook = now + .seconds(1)
    let present = domains.filter { !$0.runState.isFinal && $0.migration != .migratedAway }
    let watched = disks.compactMap { disk in
      present.filter(disk.settings.guest.matches).max { $0.incarnation < $1.incarnation }.map {
        DiskAbsences.Disk(
          control: disk.settings.control, domain: $0.incarnation, domainName: $0.name,
          isAnswered: disk.isGoneSince == nil && disk.state != .unknown)
      }
    }
    return absences.look(watched, at: now).map { .platform($0) }
  }

  private func loss(_ count: UInt64, of path: String, at now: Timestamp) -> PlatformAlert {
    let guest = disks.first { $0.settings.control == path }?.settings.guest
    return PlatformAlert(
      time: now, incarnation: guest.flatMap { domains?.first(where: $0.matches)?.incarnation }, kind: .integrityGap,
      message: "\(count) file events of the disk behind \(path.escapedForDisplay) were lost on their way to the policy",
      severity: 1, count: count)
  }

  /// Notes how a disk stands.
  private func note(_ status: DiskControlStatus?, of path: String, at now: Timestamp) {
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
  }

  /// Has the domains paused and resumed as their disks stand; what takes its time is done besides.
  func settle(_ domains: [DomainDescription], at now: Timestamp) {
    self.domains = domains
    if !taken.isEmpty {
      let present = Set(domains.map(\.incarnation))
      taken = taken.filter { present.contains($0.key) }
    }
    guard let frozen else { return }
    let states = disks.flatMap { disk in
      domains.filter { disk.settings.guest.matches($0) }.map {
        FrozenDomains.Disk(
          domain: $0.incarnation, name: disk.settings.control,
          state: disk.isGoneSince.map { now - $0 >= Self.patience } == true ? .passing : disk.state)
      }
    }
    Task { await frozen.settle(domains, states, at: now) }
  }

  func close() { follower?.close() }

  private static func read(_ path: String?, _ logger: Logger) -> Set<Incarnation> {
    guard let path else { return [] }
    let entries: [Entry]
    do throws(DamagedFile) { entries = try KeptJSON.read([Entry].self, from: path) ?? [] } catch {
      logger.error(
        "\(path) cannot be read: \(error.reason): domains that were paused because of their disks must be resumed by hand"
      )
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
