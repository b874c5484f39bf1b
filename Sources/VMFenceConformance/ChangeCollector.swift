import VMFenceCore
internal import Synchronization

/// Waiting for what somebody else is to bring about.
enum Looks {
  /// Looks again and again, with a pause between, whether something is so; says whether it is. The pauses count towards `patience`, and not the clock: where many tests share few threads
  /// this task, and those that it waits for, may have none for minutes.
  static func until(
    _ patience: Duration, every pause: Duration = .milliseconds(1), _ isSo: () async throws -> Bool
  ) async rethrows -> Bool {
    var left = patience
    while try await !isSo() {
      guard left > .zero else { return false }
      left -= pause
      try? await Task.sleep(for: pause)
    }
    return true
  }
}

/// Reads a stream of changes in a task of its own, and keeps what follows from them.
final class ChangeCollector: Sendable {
  fileprivate struct Contents {
    var domains: [Incarnation: DomainDescription] = [:]
    var sawGap = false
    var owedSnapshots = 0
    var sawShutdown = false
    var hasEnded = false
  }

  private let contents: Contained
  private let task: Task<Void, Never>

  private final class Contained: Sendable {
    let value = Mutex(Contents())
  }

  init(_ stream: AsyncStream<InventoryChange>) {
    let contents = Contained()
    self.contents = contents
    task = Task {
      for await change in stream { contents.value.withLock { $0.take(change) } }
      contents.value.withLock { $0.hasEnded = true }
    }
  }

  deinit { task.cancel() }

  func cancel() { task.cancel() }

  /// Takes what was so before the first change.
  func assume(_ snapshot: InventorySnapshot) {
    contents.value.withLock { contents in
      for domain in snapshot.domains where contents.domains[domain.incarnation] == nil {
        contents.domains[domain.incarnation] = domain
      }
    }
  }

  /// Waits until `condition` holds, at most for `patience`; says whether it does.
  func waits(_ patience: Duration, until condition: (ChangeCollector) -> Bool) async -> Bool {
    await Looks.until(patience) { condition(self) }
  }

  var levels: [Incarnation: DomainDescription] {
    contents.value.withLock { HypervisorProbeConformance.levels(Array($0.domains.values)) }
  }
  var sawGap: Bool { contents.value.withLock { $0.sawGap } }
  /// Gaps after which no snapshot came yet.
  var owedSnapshots: Int { contents.value.withLock { $0.owedSnapshots } }
  var sawShutdown: Bool { contents.value.withLock { $0.sawShutdown } }
  var hasEnded: Bool { contents.value.withLock { $0.hasEnded } }
}

extension ChangeCollector.Contents {
  fileprivate mutating func take(_ change: InventoryChange) {
    switch change {
    case .changed(let domain): domains[domain.incarnation] = domain
    case .removed(let incarnation): domains[incarnation] = nil
    case .gap:
      sawGap = true
      owedSnapshots = 1
    case .snapshot(let snapshot):
      owedSnapshots = 0
      domains = [:]
      for domain in snapshot.domains { domains[domain.incarnation] = domain }
      if snapshot.isPlatformShuttingDown { sawShutdown = true }
    case .platformShutdown: sawShutdown = true
    }
  }
}
