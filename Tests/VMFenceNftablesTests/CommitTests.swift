import Foundation
import NetworkTestSupport
import Synchronization
import TestSupport
import Testing
import VMFenceCore

@testable import VMFenceNftables

/// Runs what a task does on threads of its own: while it blocks, others go on, however few processors there are.
private final class OwnThreads: TaskExecutor {
  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    // SAFETY: the thread holds the executor until the job has run.
    Thread.detachNewThread { [self] in unsafe job.runSynchronously(on: asUnownedTaskExecutor()) }
  }
}

/// Raised by one thread, seen by others.
private final class Flag: Sendable {
  let value = Atomic(false)
}

@Suite("Changes at the same time share a transaction")
struct CommitQueueTests {
  @Test("who comes while one is under way goes into the next; each gets the outcome of what it asked for")
  func gathers() async {
    let queue = CommitQueue<Int, Int>()
    let batches = Mutex<[[Int]]>([])
    let commit: @Sendable (() -> [Int]) -> [Int] = { gather in
      let batch = gather()
      let isFirst = batches.withLock { batches in
        batches.append(batch)
        return batches.count == 1
      }
      // The first takes as long as it takes for all the others to come.
      if isFirst { _ = comesTrue { queue.waitingCount >= 100 } }
      return batch.map { $0 * 10 }
    }
    let outcomes = await withTaskGroup(of: (Int, Int).self) { group in
      group.addTask(executorPreference: OwnThreads()) { (0, await queue.perform(0, commit)) }
      _ = await comesTrueSuspending { batches.withLock { !$0.isEmpty } }
      for number in 1...100 { group.addTask { (number, await queue.perform(number, commit)) } }
      return await group.reduce(into: [Int: Int]()) { $0[$1.0] = $1.1 }
    }
    #expect(outcomes == Dictionary(uniqueKeysWithValues: (0...100).map { ($0, $0 * 10) }))
    let seen = batches.withLock { $0 }
    #expect(seen.map(\.count) == [1, 100])
    #expect(Set(seen[1]) == Set(1...100))
    #expect(queue.waitingCount == 0)
  }

  @Test("a caller who is alone does its work at once, again and again")
  func alone() async {
    let queue = CommitQueue<Int, Int>()
    for number in 0..<100 {
      let outcome = await queue.perform(number) { gather in
        let batch = gather()
        #expect(batch == [number])
        return batch
      }
      #expect(outcome == number)
    }
  }

  @Test("a batch is bounded; what does not fit goes into the one after it")
  func bounded() async {
    let queue = CommitQueue<Int, Int>()
    let sizes = Mutex<[Int]>([])
    let callers = CommitQueue<Int, Int>.batchLimit + 500
    let commit: @Sendable (() -> [Int]) -> [Int] = { gather in
      let batch = gather()
      let isFirst = sizes.withLock { sizes in
        sizes.append(batch.count)
        return sizes.count == 1
      }
      if isFirst { _ = comesTrue { queue.waitingCount >= callers } }
      return batch
    }
    await withTaskGroup(of: Void.self) { group in
      group.addTask(executorPreference: OwnThreads()) { _ = await queue.perform(0, commit) }
      _ = await comesTrueSuspending { sizes.withLock { !$0.isEmpty } }
      for number in 0..<callers { group.addTask { _ = await queue.perform(number, commit) } }
    }
    #expect(sizes.withLock { $0 } == [1, CommitQueue<Int, Int>.batchLimit, 500])
  }
}

@Suite("Transactions", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct TransactionTests {
  private let network: NetworkNamespace
  init() throws { network = try NetworkNamespace("commits") }

  private func open(_ configuration: NftablesSink.Configuration = .init(holdsTable: false)) throws -> NftablesSink {
    try network.inside { try NftablesSink.open(configuration) }
  }

  @Test("many single blocks at the same time need far fewer transactions, and all of them stand")
  func concurrentAdds() async throws {
    let sink = try open()
    let large = (0..<30_000).map { block("10.1.\($0 >> 8).\($0 & 255)", decision: UInt64($0)) }
    let before = sink.transactions
    let isBusy = Flag()
    let add: @Sendable (Int) async -> Void = { number in
      let measure = block("10.2.\(number >> 8).\(number & 255)", decision: UInt64(number))
      do { try await sink.add([measure], at: start) } catch { Issue.record("\(error)") }
    }
    await withTaskGroup(of: Void.self) { group in
      let own = OwnThreads()
      // The packet filter is busy until all have come, as it is for a while during a restore.
      group.addTask(executorPreference: own) {
        sink.contents.withLock { _ in
          isBusy.value.store(true, ordering: .releasing)
          _ = comesTrue { sink.additions.waitingCount >= 2_000 }
        }
      }
      _ = await comesTrueSuspending { isBusy.value.load(ordering: .acquiring) }
      // One of the two leads, and the others wait for it.
      group.addTask(executorPreference: own) { _ = try? await sink.add(large, at: start) }
      group.addTask(executorPreference: own) { await add(0) }
      _ = await comesTrueSuspending { sink.additions.waitingCount >= 1 }
      for number in 1..<2_000 { group.addTask { await add(number) } }
    }
    #expect(sink.transactions - before < 500)
    #expect(try await sink.readBack(at: start).measures.count == 32_000)
    #expect(try network.run("nft list set bridge vmfence hostblock4").contains("10.2.7.207 counter"))
  }

  @Test("a request that is refused takes nobody else's with it")
  func refusedAmongOthers() async throws {
    let sink = try open()
    let impossible = FirewallMeasure(scope: .host, kind: .quarantine, expires: nil, decision: 2)
    let later = start + .seconds(100)
    var shifted = block("10.3.0.2", seconds: nil)
    shifted.expires = later + .seconds(50)
    let outcomes = sink.contents.withLock { contents in
      contents.add([
        AdditionRequest(measures: [block("10.3.0.1", seconds: 50)], time: start),
        AdditionRequest(measures: [impossible], time: start), AdditionRequest(measures: [shifted], time: later),
      ])
    }
    #expect(throws: Never.self) { try outcomes[0].get() }
    #expect {
      try outcomes[1].get()
    } throws: { ($0 as? FirewallError)?.code == .unsupported }
    #expect(throws: Never.self) { try outcomes[2].get() }
    let measures = try await sink.readBack(at: start).measures
    #expect(measures.map(\.key) == [block("10.3.0.1").key, shifted.key])
    for measure in measures { #expect(try #require(measure.expires) <= start + .seconds(50), "each on its own clock") }
  }

  @Test("what others do during a large change is not missed, although the listener is away for its time")
  func changesDuringLarge() async throws {
    let sink = try open()
    var seen = sink.changesByOthers().makeAsyncIterator()
    // Large enough to be quiet.
    let large = (0..<5_000).map { block("10.1.\($0 >> 8).\($0 & 255)", decision: UInt64($0)) }
    try await sink.add(large, at: start)
    #expect(try await sink.readBack(at: start).measures.count == 5_000)
    try network.run("nft delete element bridge vmfence hostblock4 '{ 10.1.0.7 }'")
    let change = try #require(await seen.next())
    #expect(change.kind == .changed && change.process == "nft", "it hears again, and nothing was told before")
    #expect(try await sink.readBack(at: start).measures.count == 4_999)
    // As if somebody had come in between.
    let generation = try sink.contents.withLock { try $0.socket.rulesetGeneration() }
    try network.run("nft add table bridge other")
    #expect(try sink.contents.withLock { try $0.socket.rulesetGeneration() } == generation + 1)
    #expect(try sink.contents.withLock { try !$0.isModelCurrent() }, "others' changes show")
  }

  @Test("what nobody else has changed is not read again; what anybody has changed is")
  func readsOnce() async throws {
    let sink = try open()
    try await sink.update(ports: bridgePorts)
    try await sink.change(add: [block("10.77.0.9", for: vm1), block("fd77::/64", seconds: nil, decision: 2)])
    #expect(try sink.contents.withLock { try $0.isModelCurrent() })
    let first = try await sink.readBack(at: start)
    #expect(first.measures.map(\.decision) == [1, 2] && first.measures[1].expires == nil)
    let left = try #require(first.measures[0].expires) - start
    #expect(left > .seconds(500) && left <= .seconds(600))
    // Another end than ours: what is told is what the kernel has.
    try network.run(
      """
      nft delete element bridge vmfence block4 '{ "vif1.0" . 10.77.0.9 }'
      """)
    #expect(try sink.contents.withLock { try !$0.isModelCurrent() })
    #expect(try await sink.readBack(at: start).measures.map(\.decision) == [2])
    #expect(try sink.contents.withLock { try $0.isModelCurrent() }, "read, and known again")
  }

  @Test("what an earlier run left is read once")
  func takeOver() async throws {
    var sink: NftablesSink? = try open()
    try await sink?.update(ports: bridgePorts)
    try await sink?.change(add: [
      block("10.77.0.9", for: vm1), block("10.0.0.0/8", for: vm2), block("fd77::9", for: vm1, decision: 2),
    ])
    sink = nil
    let again = try open()
    #expect(again.adoptedMeasures == 3)
    #expect(try again.contents.withLock { try $0.isModelCurrent() })
    try await again.update(ports: bridgePorts)
    #expect(try again.contents.withLock { try $0.isModelCurrent() })
    #expect(try await again.readBack(at: start).measures.count == 3)
    // A part of a measure is missing at the next take-over: it has to be looked at.
    try await again.update(ports: [vm1: [port("vif1.0", 1), port("vif1.1", 3)], vm2: [port("vif2.0", 2)]])
    try network.run(
      """
      nft delete element bridge vmfence block4 '{ "vif1.1" . 10.77.0.9 }'
      """)
    let third = try open()
    #expect(try third.contents.withLock { try !$0.isModelCurrent() })
    #expect(try await third.readBack(at: start).measures.count == 2)
  }
}
