#if Daemon
internal import Foundation
internal import Glibc
internal import Synchronization
public import VMFenceCore

/// The domains of a host that has no hypervisor of ours, from a YAML file that is watched: what an integrator with another hypervisor
/// begins with, who only has to write that file (whole, under another name, and then renamed over the old one).
///
/// A file that is wrong or gone changes nothing: what was read last stays, and `problems` says why. Safe to use from any thread.
public final class StaticInventory: HypervisorProbe {
  fileprivate struct Contents {
    var text = Data()
    var domains: [Incarnation: DomainDescription] = [:]
    /// The order of the file.
    var order: [Incarnation] = []
    var problems: [Diagnostic] = []
    var isClosed = false
    var sequence: UInt64 = 0
    var lastTime = Timestamp(nanoseconds: .min)
    var subscribers = ChangeFeeds()
    var reloads: UInt64 = 0
  }

  public let path: String
  private let clock: any TimeSource
  private let subscriberCapacity: Int
  private let contents = Mutex(Contents())

  private init(path: String, clock: any TimeSource, subscriberCapacity: Int) {
    self.path = path
    self.clock = clock
    self.subscriberCapacity = subscriberCapacity
  }

  deinit { close() }

  /// Reads the file and begins to watch it, by inotify(7) and besides every `pollInterval` (for what inotify does not see: links, network file
  /// systems).
  ///
  /// - `clock`: gives the times of snapshots.
  /// - `subscriberCapacity`: changes that wait for one subscriber; when one more comes, they are lost, and it gets a gap.
  /// - Throws: `inconsistent` when something is wrong in the file; the error is the first of it.
  public static func open(
    path: String, clock: any TimeSource, subscriberCapacity: Int = 4096, pollInterval: Duration = .seconds(1)
  ) throws(ProbeError) -> StaticInventory {
    let inventory = StaticInventory(path: path, clock: clock, subscriberCapacity: subscriberCapacity)
    inventory.reload()
    if let first = inventory.problems.first(where: { $0.severity == .error }) {
      throw ProbeError(.inconsistent, first.message, at: first.place, remedy: first.remedy)
    }
    inventory.watch(every: pollInterval)
    return inventory
  }

  /// What is wrong with the file as it is now; empty when it is in force.
  public var problems: [Diagnostic] { contents.withLock { $0.problems } }

  /// How many times another content was taken over.
  public var reloads: UInt64 { contents.withLock { $0.reloads } }

  /// What the file at `path` says, or what is wrong with it; nothing is watched.
  public static func read(path: String) -> (domains: [DomainDescription]?, problems: [Diagnostic]) {
    do throws(UnreadableFile) {
      let text = try text(of: path)
      let parser = InventoryParser(file: path)
      return (parser.parse(text), parser.reader.diagnostics)
    } catch { return (nil, [unreadable(path, error)]) }
  }

  private static func text(of path: String) throws(UnreadableFile) -> Data {
    Data(try WholeFile.read(path, atMost: YAMLReader.byteCountMaximum))
  }

  private static func unreadable(_ path: String, _ error: UnreadableFile) -> Diagnostic {
    Diagnostic(
      at: SourcePlace(file: path), "the inventory cannot be read: \(error.reason)",
      remedy: "check the path and its permissions")
  }

  /// Looks at the file again.
  ///
  /// - Returns: what is wrong with it; then nothing has changed.
  @discardableResult
  public func reload() -> [Diagnostic] {
    contents.withLock { contents in
      let text: Data
      do throws(UnreadableFile) { text = try Self.text(of: path) } catch {
        contents.problems = [Self.unreadable(path, error)]
        return contents.problems
      }
      if text == contents.text, contents.reloads > 0 || !contents.problems.isEmpty { return contents.problems }
      let parser = InventoryParser(file: path)
      let domains = parser.parse(text)
      contents.text = text
      contents.problems = domains == nil ? parser.reader.diagnostics : []
      if let domains { contents.take(domains) }
      return contents.problems
    }
  }

  // MARK: HypervisorProbe

  public func snapshot() async throws(ProbeError) -> InventorySnapshot {
    reload()
    return takeSnapshot()
  }

  private func takeSnapshot() -> InventorySnapshot {
    contents.withLock { contents in
      contents.sequence += 1
      contents.lastTime = max(contents.lastTime, clock.now)
      return InventorySnapshot(
        time: contents.lastTime, sequence: contents.sequence,
        domains: contents.order.compactMap { contents.domains[$0] })
    }
  }

  public func changes() async -> AsyncStream<InventoryChange> {
    let feed = ChangeFeed(capacity: subscriberCapacity) { [weak self] in
      self?.takeSnapshot() ?? InventorySnapshot(time: .zero, sequence: .max, domains: [])
    }
    contents.withLock { contents in
      contents.subscribers.add(feed)
      if contents.isClosed { feed.close() }
    }
    return AsyncStream { await feed.next() }
  }

  /// Ends the watch and all streams of changes.
  public func close() {
    contents.withLock { contents in
      contents.isClosed = true
      contents.subscribers.close()
    }
  }

  // MARK: The watch

  /// Of the folder, since a file is replaced by renaming another over it.
  private func watch(every interval: Duration) {
    let notifier = inotify_init1(CInt(IN_NONBLOCK | IN_CLOEXEC))
    if notifier >= 0 {
      let folder = (path as NSString).deletingLastPathComponent
      let events = UInt32(IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_MOVED_FROM)
      // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
      _ = unsafe inotify_add_watch(notifier, folder.isEmpty ? "." : folder, events)
    }
    let milliseconds = CInt(clamping: max(1, interval.wholeNanoseconds / 1_000_000))
    let thread = Thread { [weak self] in
      while let inventory = self, !inventory.contents.withLock({ $0.isClosed }) {
        inventory.reload()
        Self.wait(for: notifier, milliseconds)
      }
      if notifier >= 0 { Glibc.close(notifier) }
    }
    thread.name = "vmfence-inventory"
    thread.start()
  }

  private static func wait(for notifier: CInt, _ milliseconds: CInt) {
    var waited = pollfd(fd: notifier, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure, as is said; a negative descriptor is passed over.
    _ = unsafe poll(&waited, 1, milliseconds)
    guard notifier >= 0 else { return }
    var buffer = [UInt8](repeating: 0, count: 4096)
    // SAFETY: the buffer is valid for its count during the call; what is read is of no interest.
    while unsafe buffer.withUnsafeMutableBytes({ unsafe Glibc.read(notifier, $0.baseAddress, $0.count) }) > 0 {}
  }
}

extension StaticInventory.Contents {
  /// Takes a content over, and tells the subscribers what is different.
  mutating func take(_ list: [DomainDescription]) {
    reloads += 1
    let before = domains
    domains = Dictionary(list.map { ($0.incarnation, $0) }, uniquingKeysWith: { first, _ in first })
    order = list.map(\.incarnation)
    for gone in before.keys.sorted() where domains[gone] == nil { subscribers.send(.removed(gone)) }
    for domain in list where before[domain.incarnation] != domain { subscribers.send(.changed(domain)) }
  }
}
#endif
