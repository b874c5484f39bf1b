internal import Glibc
internal import Synchronization

/// Appends events to a file as EVE JSON, each line with one write(2) in append mode, so that a line is never torn by a
/// rotation or by another writer. When the file was renamed away, removed or cut, the next line begins it anew: no signal is needed. Safe to use from any thread.
///
/// A guest can make as many events as it likes, so the file has a limit. Half of it is for statistics, a quarter for alerts, anomalies and tagged packets, an
/// eighth for file events, an eighth for decisions and all else; of each, one guest has as much as there is room left. What finds no room is lost until the file is begun anew, and counted.
public final class EVEFileSink: EventSink {
  public struct Counters: Sendable, Hashable {
    public var linesWritten: UInt64 = 0
    /// Lines that did not get into the file, whole or in part.
    public var linesLost: UInt64 = 0
  }

  /// What a file may become when nothing else is said, in bytes.
  public static let standardLimit: UInt64 = 2 << 30

  /// Apart from the file, so that whoever asks waits for no disk.
  private struct Tally {
    var linesWritten: UInt64 = 0
    /// In bytes. What lines have taken is given back when the file is begun anew.
    var room: EventRoom
    /// Lines that there was room for and that the file did not take, by domain.
    var unwritten: [Incarnation?: UInt64] = [:]
    /// Why the last line was not written, or not where it should be.
    var problem: NotificationError?
    /// Stands until the file is begun anew.
    var isFull = false
  }

  public let path: String
  public let limit: UInt64
  public let encoder: EVEEncoder
  private let file: Mutex<LineFile>
  private let tally: Mutex<Tally>

  /// Opens `path` for appending; makes it if it is not there (mode 0640).
  ///
  /// - `limit`: how large the file may become, in bytes.
  public init(
    path: String, limit: UInt64 = EVEFileSink.standardLimit, encoder: EVEEncoder
  ) throws(NotificationError) {
    self.path = path
    self.limit = limit
    self.encoder = encoder
    let eighth = Int(clamping: limit / 8)
    tally = Mutex(
      Tally(
        room: EventRoom(statistics: 4 * eighth, traffic: 2 * eighth, files: eighth, others: eighth, assured: 0)))
    file = Mutex(LineFile(path: path, limit: limit))
    if let error = file.withLock({ look(at: &$0) }) { throw error }
  }

  public func receive(_ event: Event) {
    let (kind, domain) = (EventRoom.Kind(event), event.incarnation)
    write(encoder.encode(event), kind, domain)
    if case .alert(let alert) = event, let drop = encoder.encodeDrop(alert) { write(drop, kind, domain) }
  }

  /// Writes a `stats` event.
  public func receive(_ statistics: EVEStatistics) {
    write(encoder.encode(statistics), .statistics, statistics.incarnation)
  }

  public var counters: Counters {
    tally.withLock { Counters(linesWritten: $0.linesWritten, linesLost: $0.room.lostInAll) }
  }

  /// Those of the lines lost, by domain, nil for the host; without domains that were forgotten.
  package var lostByDomain: [Incarnation?: UInt64] { tally.withLock { $0.room.lost } }

  /// Of these, those that were not written, on a disk that is full for one, and not for want of room that domains share.
  package var unwrittenByDomain: [Incarnation?: UInt64] { tally.withLock { $0.unwritten } }

  /// Keeps no figures of a domain that is gone.
  package func forget(_ domain: Incarnation) {
    tally.withLock { tally in
      tally.room.forget(domain)
      tally.unwritten[domain] = nil
    }
  }

  /// Why lines were lost: as long as the last write failed, or the file has no room.
  public var problem: NotificationError? {
    tally.withLock { tally in
      tally.problem
        ?? (tally.isFull
          ? NotificationError(
            .full,
            "\(path.escapedForDisplay) may become \(limit >> 20) MiB large, and has no room for some events until it is rotated",
            remedy: "rotate it (rename it, or cut it); see what fills it: it may be an attack") : nil)
    }
  }

  /// - Returns: why it is not open where it should be; then what was open is written on.
  private func look(at file: inout LineFile) -> NotificationError? {
    do throws(SystemFailure) {
      guard try file.look() else { return nil }
      let size = Int(clamping: file.size)
      tally.withLock { tally in
        for kind in EventRoom.Kind.allCases { tally.room.leaveAll(kind) }
        tally.room.occupy(size)
        tally.isFull = false
      }
      return nil
    } catch {
      return NotificationError(
        error.isPermission ? .permissionDenied : .inputOutput,
        "cannot open \(path.escapedForDisplay) for appending: \(describeError(error.number))",
        remedy: "make the directory, or choose another file")
    }
  }

  private func write(_ line: [UInt8], _ kind: EventRoom.Kind, _ domain: Incarnation?) {
    file.withLock { file in
      let misplaced = look(at: &file)
      let cost = line.count + 1
      let hasRoom = tally.withLock { tally in
        let hasRoom = tally.room.enter(kind, of: domain, cost)
        if !hasRoom { tally.isFull = true }
        return hasRoom
      }
      guard hasRoom else { return }
      let error = file.append(line)
      tally.withLock { tally in
        guard error != 0 else {
          tally.linesWritten += 1
          tally.problem = misplaced
          return
        }
        tally.room.leave(kind, of: domain, cost)
        tally.room.lose(of: domain)
        if error == EFBIG {
          tally.isFull = true
        } else {
          tally.unwritten[domain, default: 0] &+= 1
          tally.problem = NotificationError(
            error == ENOSPC || error == EDQUOT ? .full : .inputOutput,
            "cannot write to \(path.escapedForDisplay): \(describeError(error))",
            remedy: "free space or choose another file; events since then are missing from it")
        }
      }
    }
  }
}

/// Something is wrong with a place that notifications go to.
public struct NotificationError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    public static let permissionDenied = Code("permission-denied")
    public static let full = Code("full")
    public static let inputOutput = Code("input-output")
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace?
  public var remedy: String

  public init(_ code: Code, _ message: String, at place: SourcePlace? = nil, remedy: String = "") {
    self.code = code
    self.message = message
    self.place = place
    self.remedy = remedy
  }
}
