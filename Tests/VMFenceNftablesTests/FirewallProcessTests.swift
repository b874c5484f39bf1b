import Foundation
import NetworkTestSupport
import Synchronization
import TestSupport
import Testing
import VMFenceConformance
import VMFenceCore
import VMFenceTestKit

@testable import VMFenceNftables
@testable import VMFenceProcess

/// `vmfence-firewall` itself, in a network namespace: it is started through a script that enters it.
private final class FirewallHost {
  let network: NetworkNamespace
  private let folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)")
  private let running = Running()

  private final class Running: Sendable {
    let processes = Mutex<[Int32]>([])
  }

  init(_ network: NetworkNamespace, prefix: String = "") throws {
    self.network = network
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    try NetworkNamespace.shell(
      "cat >'\(script)'; chmod 755 '\(script)'",
      input: "#!/bin/sh\nexec ip netns exec \(network.name) \(prefix) '\(besideThisProgram("vmfence-firewall"))'\n")
  }

  deinit { try? FileManager.default.removeItem(at: folder) }

  private var script: String { folder.appending(path: "start").path }

  /// Of those that were started, in order.
  var processIDs: [Int32] { running.processes.withLock { $0 } }
  var last: Int32 { processIDs.last! }

  func start() throws(DetectorError) -> HelperProcess { try HelperProcess(executable: script) }

  /// On a busy machine a sound one may be late.
  static let patience: ProcessFirewallSink.Patience = {
    var patience = ProcessFirewallSink.Patience()
    (patience.open, patience.call) = (.seconds(60), .seconds(60))
    return patience
  }()

  func open(
    _ configuration: NftablesSink.Configuration = .init(),
    _ patience: ProcessFirewallSink.Patience = FirewallHost.patience
  ) throws(FirewallError) -> ProcessFirewallSink {
    let (script, running) = (script, running)
    return try ProcessFirewallSink.open(configuration, patience: patience) { () throws(DetectorError) in
      let process = try HelperProcess(executable: script)
      running.processes.withLock { $0.append(process.processID) }
      return process
    }
  }

  /// What the process of the packet filter is allowed, by proc(5).
  func status(_ thread: String) throws -> String {
    try String(contentsOfFile: "/proc/\(last)/task/\(thread)/status", encoding: .utf8)
  }
}

extension ProcessFirewallSink {
  @discardableResult
  fileprivate func change(add: [FirewallMeasure] = [], remove: [FirewallMeasure.Key] = []) async throws -> UInt64 {
    let generation = try await readBack(at: start).generation
    return try await apply(FirewallChange(from: generation, time: start, add: add, remove: remove))
  }
}

@Suite("vmfence-firewall", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"), .serialized)
struct FirewallProcessTests {
  @Test("a sink through it conforms, with and without ports")
  func conforms() async throws {
    let host = try FirewallHost(try NetworkNamespace("fw-conformance"))
    var number = 0
    let low: UInt64 = 0x8000_0000_0000_0000
    let ports = [DomainUUID(high: 0x7F3C_0000_0000_4000, low: low + 1): [port("vif1.0", 1), port("vif1.0-emu", 1)]]
    try await FirewallSinkConformance(start: start) { time in
      try await ContinuousClock().sleep(for: time - start)
    }.check {
      number += 1
      let sink = try host.open(.init(table: "conformance\(number)"))
      if number % 2 == 0 { try await sink.update(ports: ports) }
      return sink
    }
    #expect(host.processIDs.count == number, "a process ended during it")
  }

  @Test("it is nobody, holds CAP_NET_ADMIN alone, no file, and cannot ask the system for anything else")
  func holdsLittle() async throws {
    let host = try FirewallHost(try NetworkNamespace("fw-powers"))
    let sink = try host.open()
    let threads = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(host.last)/task")
    #expect(threads.count == 2, "one works, and one hears of changes")
    for thread in threads {
      let status = try host.status(thread)
      for line in [
        "Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000001000", "CapEff:\t0000000000001000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1",
        "Seccomp:\t2",
      ] { #expect(status.contains(line), "\(status)") }
      #expect(status.firstMatch(of: /Groups:\s*\n/) != nil, "\(status)")
    }
    let files = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(host.last)/fd").compactMap {
      try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(host.last)/fd/\($0)")
    }
    #expect(
      files.allSatisfy { $0 == "/dev/null" || $0.hasPrefix("socket:") || $0.hasPrefix("anon_inode:") }, "\(files)")
    #expect(files.count { $0.hasPrefix("socket:") } <= 6, "\(files)")
    let limits = try String(contentsOfFile: "/proc/\(host.last)/limits", encoding: .utf8).split(separator: " ")
      .joined(separator: " ")
    #expect(limits.contains("core file size 0 0 ") && limits.contains("open files 16 16 "), "\(limits)")
    // Within that it does all that is asked of it: what is large, what makes rules anew, what is told of others.
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    let many = (0..<20_000).map { block("10.\($0 >> 8).\($0 & 255).0/\(16 + $0 % 17)", for: vm1) }
    _ = try await sink.replace(with: many, at: start)
    #expect(try await sink.readBack(at: start).measures.count == Set(many.map(\.key)).count)
    #expect(host.processIDs.count == 1)
  }

  @Test("its end leaves what stands in force; another takes it over, and is told the ports")
  func killed() async throws {
    let network = try BridgeNetwork("fw-killed")
    let host = try FirewallHost(network.host)
    let sink = try host.open()
    var news = sink.news().makeAsyncIterator()
    try await sink.update(ports: bridgePorts, antiSpoofing: AntiSpoofing())
    // What finds a neighbour, too, is blocked then.
    #expect(network.reaches(from: network.outside, "10.77.0.1", as: "10.77.0.99"), "the network of the test works")
    let measures = [block("10.77.0.99", for: vm1), block("fd77::/64", seconds: nil, decision: 2)]
    let before = try await sink.change(add: measures)
    #expect(!network.pings(from: network.outside, "10.77.0.1", as: "10.77.0.99"), "it is blocked")
    kill(host.last, SIGKILL)
    guard case .gone(let reason) = await news.next() else {
      Issue.record("its end is not told")
      return
    }
    #expect(reason.contains("signal 9"), "\(reason)")
    #expect(!network.pings(from: network.outside, "10.77.0.1", as: "10.77.0.99"), "the block ended with the process")
    #expect(await news.next() == .back && host.processIDs.count == 2)
    let state = try await sink.readBack(at: start)
    #expect(state.measures.map(\.key) == measures.map(\.key) && state.generation > before)
    #expect(state.measures.map(\.decision) == [1, 2])
    // It knows the ports again: a measure goes to them, and what a guest pretends there is stopped.
    _ = try await sink.apply(
      FirewallChange(from: state.generation, time: start, add: [block("10.77.0.98", for: vm1, decision: 3)]))
    #expect(!network.pings(from: network.outside, "10.77.0.1", as: "10.77.0.98"))
    #expect(network.reaches(from: network.outside, "10.77.0.2", as: "10.77.0.98"), "another guest is blocked")
    let counts = try await sink.trafficCounts()
    #expect(counts.blocked.packets > 0 && counts.elements == 3)
    try await sink.change(remove: measures.map(\.key))
    #expect(
      network.reaches(from: network.outside, "10.77.0.1", as: "10.77.0.99"),
      "it outlives its removal")
  }

  @Test("killed while it changes things, again and again: what was decided stands in the end")
  func killedDuringChanges() async throws {
    let host = try FirewallHost(try NetworkNamespace("fw-changes"))
    var patience = FirewallHost.patience
    (patience.restart, patience.look) = (.milliseconds(50), .milliseconds(20))
    let sink = try host.open(.init(), patience)
    let many = (0..<4_000).map { block("10.\($0 >> 8).\($0 & 255).0/24", for: vm1, decision: UInt64($0)) }
    var random = SplitMix(state: 7)
    for round in 0..<8 {
      let wanted = Array(many.prefix(500 * (round + 1)))
      let victim = host.last
      let delay = random.below(30_000)
      let killer = Task.detached {
        usleep(UInt32(delay))
        kill(victim, SIGKILL)
      }
      // As the coordinator does it: what failed is made good once there is one again.
      let stood = try? await sink.readBack(at: start)
      _ = try? await sink.replace(with: wanted, at: start)
      await killer.value
      let stands = await comesTrueSuspending {
        guard let state = try? await sink.readBack(at: start) else { return false }
        let count = state.measures.count
        // A change is whole or not at all.
        #expect(count == wanted.count || stood == nil || count == stood?.measures.count, "\(count) stand")
        if count == wanted.count { return true }
        _ = try? await sink.replace(with: wanted, at: start)
        return false
      }
      #expect(stands, "round \(round)")
    }
    #expect(host.processIDs.count > 4)
  }

  @Test("a stuck one is ended in time, and what it was asked stands once another took over and it is decided again")
  func stuck() async throws {
    let host = try FirewallHost(try NetworkNamespace("fw-stuck"))
    var patience = FirewallHost.patience
    patience.call = .seconds(5)
    let sink = try host.open(.init(), patience)
    var news = sink.news().makeAsyncIterator()
    try await sink.change(add: [block("10.0.0.1", for: vm1)])
    let first = host.last
    kill(first, SIGSTOP)
    let begun = ContinuousClock.now
    await #expect(throws: FirewallError.self) { try await sink.change(add: [block("10.0.0.2", for: vm1)]) }
    #expect(ContinuousClock.now - begun < .seconds(50))
    guard case .gone(let reason) = await news.next() else {
      Issue.record("it is not told")
      return
    }
    #expect(reason.contains("did not answer"), "\(reason)")
    #expect(await news.next() == .back && host.last != first)
    #expect(kill(first, 0) == -1, "the stuck one lives")
    #expect(try await sink.readBack(at: start).measures.count == 1, "what was not answered was done later")
    try await sink.change(add: [block("10.0.0.2", for: vm1)])
    #expect(try await sink.readBack(at: start).measures.count == 2)
  }

  @Test("changes by others are told through it")
  func others() async throws {
    let host = try FirewallHost(try NetworkNamespace("fw-others"))
    let sink = try host.open(.init(holdsTable: false))
    var news = sink.news().makeAsyncIterator()
    try await sink.change(add: [block("10.0.0.1", for: vm1)])
    try host.network.run("nft flush ruleset")
    guard case .changedByOthers(let change) = await news.next() else {
      Issue.record("it is not told")
      return
    }
    #expect(change.kind == .tableDeleted && change.process == "nft")
    #expect(try await sink.readBack(at: start).measures.isEmpty)
  }

  @Test("flows are cut and connections reset through it; no frame but a guest's own reset leaves it")
  func resets() async throws {
    let network = try BridgeNetwork("fw-resets")
    let host = try FirewallHost(network.host)
    let sink = try host.open()
    #expect(sink.resetProblem == nil)
    try await sink.update(ports: bridgePorts)
    let tap = try PacketEndpoint(network.outside)
    let segment =
      Frames.big(7_000, 2) + Frames.big(80, 2) + Frames.big(1_000, 4) + Frames.big(2_000, 4)
      + [0x50, 0x18, 1, 0, 0, 0, 0, 0]
    func act(_ source: String, _ mac: MACAddress) async throws -> FlowRefusals.Outcome {
      let frame = Frames.ethernet(0x0800, from: mac, Frames.ipv4(source, "10.77.0.99", 6, segment))
      let packet = RefusedPacket(
        incarnation: Incarnation(uuid: vm1, domainID: DomainID(1)), verdict: .reject,
        rule: RuleMetadata(sid: 1_000_001, action: .reject),
        frame: FrameMetadata(
          timestamp: start, port: PortID(0), direction: .fromGuest, checksums: .unknown, linkType: .ethernet,
          strippedVLAN: 0, originalLength: UInt32(frame.count)), head: frame)
      var refusals = FlowRefusals(sink)
      return try await refusals.act(on: [packet])
    }
    func isReset(_ frame: [UInt8]) -> Bool { frame.count >= 54 && frame[12...13] == [8, 0] && frame[23] == 6 }
    let forged = try await act("10.77.0.55", Frames.vm1MAC)
    #expect(forged.cut == 1 && forged.reset == 0 && forged.notReset == 1)
    #expect(!tap.receives(within: 200, isReset))
    let own = try await act("10.77.0.1", Frames.vm1MAC)
    #expect(own.cut == 1 && own.reset == 1 && own.notReset == 0)
    #expect(tap.receives(within: 60_000, isReset))
    #expect(try network.host.run("nft list table bridge vmfence").contains("10.77.0.99"))
  }

  @Test("a question that no sound daemon asks ends it")
  func garbage() throws {
    let host = try FirewallHost(try NetworkNamespace("fw-garbage"))
    for message in [
      [0], [UInt8](repeating: 0xFF, count: 50_000), FirewallQuestion(.look).part(from: 0, sequence: 1).bytes,
    ] {
      let process = try host.start()
      #expect(process.send(message))
      #expect(process.receive(within: .seconds(60)) == .ended)
      process.end(patience: .seconds(60))
      #expect(process.status == .exited(code: DetectorExitCode.damaged))
    }
    let process = try host.start()
    var open = FirewallQuestion(.open, time: 10)
    open.records = [.text("vmfence")]
    #expect(process.send(open.part(from: 0, sequence: 1).bytes))
    guard case .message(let bytes) = process.receive(within: .seconds(60)) else {
      Issue.record("it does not open")
      return
    }
    #expect(FirewallAnswer(bytes, to: .open, 1)?.failure == nil)
    #expect(process.send(open.part(from: 0, sequence: 2).bytes), "it is opened twice")
    #expect(process.receive(within: .seconds(60)) == .ended)
  }

  @Test("what keeps it from the packet filter is named: the capability, or who owns the table")
  func startErrors() async throws {
    let network = try NetworkNamespace("fw-errors")
    for (capability, name) in [("net_admin", "CAP_NET_ADMIN")] {
      let host = try FirewallHost(
        network, prefix: "setpriv --bounding-set -\(capability) --inh-caps -\(capability)")
      let error = #expect(throws: FirewallError.self) { try host.open() }
      #expect(error?.code == .permissionDenied && error?.message.contains("lacks the capability \(name)") == true)
    }
    let host = try FirewallHost(network, prefix: "setpriv --bounding-set -net_raw --inh-caps -net_raw")
    let sink = try host.open()
    #expect(sink.resetProblem?.contains("CAP_NET_RAW") == true)
    guard try network.inside({ try NftablesSink.open(.init(table: "features")) }).features.canOwnTables else { return }
    let other = try FirewallHost(network)
    let held = #expect(throws: FirewallError.self) { try other.open() }
    #expect(held?.code == .inUse, "\(held!)")
    #expect(held?.message.contains("another process owns table bridge vmfence") == true, "\(held!)")
    await #expect(throws: Never.self) { try await sink.readBack(at: start) }
    let missing = #expect(throws: FirewallError.self) {
      try ProcessFirewallSink.open { () throws(DetectorError) in try HelperProcess(executable: "/nonexistent/x") }
    }
    #expect(missing?.message.contains("cannot start") == true)
  }
}
