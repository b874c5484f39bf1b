public import VMFenceCore

/// Watches a whole disk: an `IntegrityMonitor` for each partition with a file system that can be followed, or one for a
/// disk that is not divided. Shows each the requests that concern it, in its own terms; events name the partition in
/// `disk`, as the guest's kernel does (`xvda2`, `nvme0n1p2`).
///
/// When the guest writes a partition table that puts partitions elsewhere, that is told as damage, and the partitions are
/// looked for anew. A file system that is followed and that the table leaves out is followed on: a table is quickly put back.
/// Used by one thread at a time.
public struct DiskMonitor: BlockObserver, ~Copyable {
  private final class Part {
    var monitor: IntegrityMonitor
    let start: UInt64
    let byteCount: UInt64
    let partition: DiskPartition?

    init(_ monitor: consuming IntegrityMonitor, _ partition: DiskPartition?, byteCount: UInt64) {
      self.monitor = monitor
      self.partition = partition
      start = partition?.start ?? 0
      self.byteCount = byteCount
    }

    func isTouched(by request: BlockRequest) -> Bool {
      let (end, overflow) = request.offset.addingReportingOverflow(request.length)
      return request.operation != .flush && request.offset < start + byteCount && (overflow ? .max : end) > start
        && request.length > 0
    }

    /// A request elsewhere: its number counts, or it would look lost.
    func pass(_ request: BlockRequest) {
      var own = request
      own.operation = .read
      (own.offset, own.length) = (0, 0)
      _ = [].withRawSpan { monitor.observe(own, data: $0) }
    }
  }

  /// More partitions than this are not watched.
  public static let partitionLimit = 32

  private let reader: any DiskReader
  private let configuration: IntegrityMonitor.Configuration
  private var parts: [Part] = []
  private var partitions: [DiskPartition] = []
  private var own: [FileEvent] = []
  private var tableIsWritten = false
  private var lastTableLook: Timestamp?
  private var requests: UInt64 = 0
  private var lastSequence: UInt64 = 0
  /// The request that is held, and by which part.
  private var held: (sequence: UInt64, part: Int)?
  private var windows: [IntegrityMonitor.Window] = []

  /// - `reader`: must show, at each request, what the requests allowed before have written.
  /// - `time`: for the events about what is damaged at the start.
  public init(_ reader: any DiskReader, configuration: IntegrityMonitor.Configuration, at time: Timestamp) {
    self.reader = reader
    self.configuration = configuration
    look(at: time, sequence: 0)
  }

  private mutating func look(at time: Timestamp, sequence: UInt64) {
    let layout: DiskLayout
    do throws(IntegrityError) { layout = try DiskLayout(reader) } catch {
      return report(error.message, at: time, sequence)
    }
    for damage in layout.damage.kept.prefix(8) { report(damage.message, at: time, sequence) }
    partitions = layout.partitions
    let old = parts
    let starts = Set(layout.parts.map { $0.partition?.start ?? 0 })
    parts = old.filter { $0.monitor.isFollowing && !starts.contains($0.start) }
    for part in parts {
      let name = part.partition.map { "partition \($0.number)" } ?? "the file system on the whole disk"
      report("\(name) is left out; what lies at its place is followed on", at: time, sequence)
    }
    for part in layout.parts {
      let former = old.first { $0.start == part.partition?.start ?? 0 }
      if let former, parts.contains(where: { $0 === former }) { continue }
      if let former, former.byteCount == part.reader.byteCount {
        parts.append(former)
        continue
      }
      guard parts.count < Self.partitionLimit else { break }
      let monitor = makeMonitor(part, at: time)
      if monitor.blindness != nil, let former, former.monitor.isFollowing {
        // It is the table that cannot be.
        parts.append(former)
        continue
      }
      if let former {
        former.monitor.finish(at: time)
        own += former.monitor.drainEvents()
      }
      // A swap partition is no damage.
      if part.partition != nil, monitor.blindness?.code == .notAFileSystem { continue }
      parts.append(Part(monitor, part.partition, byteCount: part.reader.byteCount))
    }
  }

  private func makeMonitor(_ part: DiskLayout.Part, at time: Timestamp) -> IntegrityMonitor {
    var configuration = configuration
    if let partition = part.partition {
      let needsLetter = configuration.disk.last?.isNumber == true
      configuration.disk += (needsLetter ? "p" : "") + String(partition.number)
    }
    var monitor = IntegrityMonitor(part.reader, configuration: configuration, at: time)
    monitor.windows = windows
    return monitor
  }

  public mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict {
    let isShownAgain = held?.sequence == request.sequence
    let first = isShownAgain ? held?.part ?? 0 : 0
    held = nil
    if !isShownAgain {
      requests += 1
      lastSequence = request.sequence
      if tableIsWritten { lookAtTable(at: request.timestamp, sequence: request.sequence) }
    }
    let (end, overflow) = request.offset.addingReportingOverflow(request.length)
    var verdict = BlockVerdict.allow
    for index in parts.indices.dropFirst(first) {
      verdict = max(verdict, show(request, data, end: overflow ? .max : end, to: parts[index]))
      if verdict == .hold {
        held = (request.sequence, index)
        return .hold
      }
      guard verdict == .deny else { continue }
      // Those before it believe that the request is on the disk; those behind it must know that its number was used.
      for before in parts[..<index] where before.isTouched(by: request) {
        before.monitor.observeGap(at: request.timestamp, reason: "a request was refused in another partition")
      }
      for after in parts[(index + 1)...] { after.pass(request) }
      break
    }
    let touchesTable =
      request.offset < 34 * 512 || end > reader.byteCount &- 34 * 512 || !partitions.isEmpty && request.length > 1 << 30
    if verdict == .allow, touchesTable, request.operation != .read, request.operation != .flush {
      tableIsWritten = true
    }
    return verdict
  }

  /// Shows a part what of a request concerns it.
  private func show(_ request: BlockRequest, _ data: RawSpan, end: UInt64, to part: Part) -> BlockVerdict {
    guard request.operation != .flush, part.partition != nil else { return part.monitor.observe(request, data: data) }
    guard part.isTouched(by: request) else {
      part.pass(request)
      return .allow
    }
    let from = max(request.offset, part.start)
    let to = min(end, part.start + part.byteCount)
    var own = request
    own.offset = from - part.start
    own.length = to - from
    let first = Int(clamping: from - request.offset)
    let isWhole = request.operation == .write && UInt64(data.byteCount) == request.length
    let bytes = isWhole ? data.extracting(first..<first + Int(to - from)) : data.extracting(0..<0)
    return part.monitor.observe(own, data: bytes)
  }

  /// When the table may be looked at again: each look can cost a crawl of every partition.
  private var nextTableLook: Timestamp? {
    guard tableIsWritten else { return nil }
    return lastTableLook.map { $0 + configuration.resyncInterval } ?? .zero
  }

  private mutating func lookAtTable(at time: Timestamp, sequence: UInt64) {
    guard let due = nextTableLook, time >= due else { return }
    tableIsWritten = false
    lastTableLook = time
    guard let layout = try? DiskLayout(reader), layout.partitions != partitions else { return }
    report("the partition table puts partitions elsewhere", at: time, sequence)
    look(at: time, sequence: sequence)
  }

  public mutating func observeGap(at time: Timestamp, reason: String) {
    for part in parts { part.monitor.observeGap(at: time, reason: reason) }
  }

  private mutating func report(_ message: String, at time: Timestamp, _ sequence: UInt64) {
    guard own.count < 64 else { return }
    own.append(
      FileEvent(
        time: time, incarnation: configuration.incarnation, disk: configuration.disk, sequence: sequence,
        operation: .damage, path: [], inode: 0, changes: [IntegrityMonitor.damageChange(message)]))
  }

  // MARK: The owner's side, as of `IntegrityMonitor`

  /// What was told since the last call, in the order of the requests.
  public mutating func drainEvents() -> [FileEvent] {
    var events = own
    own.removeAll()
    for part in parts { events += part.monitor.drainEvents() }
    guard parts.count > 1 else { return events }
    return events.enumerated().sorted { ($0.element.sequence, $0.offset) < ($1.element.sequence, $1.offset) }
      .map(\.element)
  }

  public var hasEvents: Bool { !own.isEmpty || parts.contains { $0.monitor.hasEvents } }

  public var nextSettling: Timestamp? {
    let next = parts.lazy.compactMap { $0.monitor.nextSettling }.min()
    // The first look waits for the next request, before which the table is on the disk.
    guard lastTableLook != nil, let look = nextTableLook else { return next }
    return min(next ?? look, look)
  }

  public mutating func advance(to time: Timestamp) {
    // While a request is held its part stays the same one.
    if held == nil, lastTableLook != nil { lookAtTable(at: time, sequence: lastSequence) }
    for part in parts { part.monitor.advance(to: time) }
  }

  public mutating func finish(at time: Timestamp) {
    for part in parts { part.monitor.finish(at: time) }
  }

  /// Announces changes on all partitions, also on those that are made meanwhile.
  ///
  /// - Throws: as `IntegrityMonitor.expect` does.
  public mutating func expect(_ patterns: [String], from: Timestamp, until: Timestamp) throws(IntegrityError) {
    windows = try IntegrityMonitor.windows(windows, adding: patterns, from: from, until: until)
    for part in parts { part.monitor.windows = windows }
  }

  /// The announced windows that have not ended at `time`.
  public func expected(at time: Timestamp) -> [(patterns: [String], until: Timestamp)] {
    windows.filter { $0.until > time }.map { ($0.policy.rules.map(\.pattern), $0.until) }
  }

  public var heldRequest: IntegrityMonitor.HeldRequest? {
    held.flatMap { parts.indices.contains($0.part) ? parts[$0.part].monitor.heldRequest : nil }
  }

  /// Whether fast commits are refused on one of the partitions; see `IntegrityMonitor.refusesFastCommits`.
  public var refusesFastCommits: Bool { parts.contains { $0.monitor.refusesFastCommits } }

  @discardableResult
  public mutating func decide(_ verdict: BlockVerdict) -> Bool {
    guard let held, parts.indices.contains(held.part) else { return false }
    return parts[held.part].monitor.decide(verdict)
  }

  public mutating func nextContents() -> FileContents? {
    for part in parts {
      if let contents = part.monitor.nextContents() { return contents }
    }
    return nil
  }

  public mutating func drainKeptContents() -> [KeptContents] { parts.flatMap { $0.monitor.drainKeptContents() } }

  /// What each watched partition is and holds; the partition is nil for a disk that is not divided.
  public var watched: [(partition: DiskPartition?, files: [FileSystemView.ProtectedFile], blindness: IntegrityError?)] {
    parts.map { ($0.partition, $0.monitor.protectedFiles, $0.monitor.blindness) }
  }

  /// Why nothing of the disk is followed; nil when some of it is.
  public var blindness: IntegrityError? {
    guard !parts.contains(where: { $0.monitor.blindness == nil }) else { return nil }
    return parts.first?.monitor.blindness
      ?? IntegrityError(
        .notAFileSystem, "no partition has a file system that can be followed", remedy: "ext2, ext3 and ext4 can be")
  }

  public var statistics: IntegrityMonitor.Statistics {
    var sum = IntegrityMonitor.Statistics()
    for part in parts { sum.add(part.monitor.statistics) }
    sum.requests = requests
    return sum
  }
}

extension IntegrityMonitor.Statistics {
  /// All but the requests: each part sees those of all.
  fileprivate mutating func add(_ other: Self) {
    hits += other.hits
    denied += other.denied
    unchangedWrites += other.unchangedWrites
    malformed += other.malformed
    gaps += other.gaps
    resyncs += other.resyncs
    damages += other.damages
    lostEvents += other.lostEvents
    held += other.held
    fastCommits += other.fastCommits
    refusedFastCommits += other.refusedFastCommits
    lostContents += other.lostContents
  }
}
