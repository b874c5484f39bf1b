package import VMFenceCore

/// Which of the disks that are to be watched nobody watches, though their guests are there: told once they have been so for a while, and when that is over.
/// Used by one thread at a time.
package struct DiskAbsences: Sendable {
  /// How long a disk's process may be away before that is told: less, and it is only started, or started anew.
  package static let patience = Duration.seconds(30)

  /// A disk of a guest that is there.
  package struct Disk: Sendable {
    /// The control socket of its process.
    package var control: String
    package var domain: Incarnation
    package var domainName: String
    /// Whether its process has said how it stands, and is there.
    package var isAnswered: Bool

    package init(control: String, domain: Incarnation, domainName: String, isAnswered: Bool) {
      self.control = control
      self.domain = domain
      self.domainName = domainName
      self.isAnswered = isAnswered
    }
  }

  private struct Absence {
    var domain: Incarnation
    var since: Timestamp
    var isTold = false
  }

  /// By the control socket.
  private var absences: [String: Absence] = [:]
  /// Those that are told, one sentence each.
  package private(set) var problems: [String] = []

  package init() {}

  /// - `disks`: of all guests that are there.
  /// - Returns: what is new since the last call.
  package mutating func look(_ disks: [Disk], at now: Timestamp) -> [PlatformAlert] {
    var news: [PlatformAlert] = []
    var still: [String: Absence] = [:]
    problems.removeAll()
    for disk in disks {
      let known = absences[disk.control].flatMap { $0.domain == disk.domain ? $0 : nil }
      if disk.isAnswered {
        if known?.isTold == true { news.append(Self.alert(disk, .diskWatched, severity: 3, at: now)) }
        continue
      }
      var absence = known ?? Absence(domain: disk.domain, since: now)
      if !absence.isTold, now - absence.since >= Self.patience {
        absence.isTold = true
        news.append(Self.alert(disk, .diskUnwatched, severity: 1, at: now))
      }
      if absence.isTold { problems.append(Self.sentence(disk)) }
      still[disk.control] = absence
    }
    absences = still
    return news
  }

  private static func sentence(_ disk: Disk) -> String {
    "a disk of \(disk.domainName.escapedForDisplay) is not watched, and nothing on it refused: no process answers at \(disk.control.escapedForDisplay)"
  }

  private static func alert(
    _ disk: Disk, _ kind: PlatformAlert.Kind, severity: Int, at now: Timestamp
  ) -> PlatformAlert {
    PlatformAlert(
      time: now, incarnation: disk.domain, kind: kind,
      message: kind == .diskUnwatched
        ? sentence(disk)
        : "the disk of \(disk.domainName.escapedForDisplay) behind \(disk.control.escapedForDisplay) is watched again",
      severity: severity)
  }
}
