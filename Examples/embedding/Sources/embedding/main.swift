import Adapters
import VMFenceCore
import VMFenceTestKit

// A program that embeds VMFence: one guest under a mock hypervisor, an own packet source, an own rule engine, detectors as
// threads, and a policy. Docs/Embedding.md walks through it.

// 1. The time and the hypervisor. Yours implements HypervisorProbe; VMFenceTestKit has one that follows a script.
let clock = VirtualClock(Timestamp(seconds: 1_800_000_000))
let hypervisor = MockHypervisor(clock: clock)
let web = DomainDescription(
  incarnation: Incarnation(uuid: DomainUUID("7f3c0001-0000-4000-8000-000000000001")!, domainID: DomainID(1)),
  name: "web", tenant: TenantID("acme"), serviceType: "http",
  ports: [
    NetworkPort(
      interface: "vif1.0", mac: MACAddress("00:16:3e:00:00:01")!, addresses: [IPAddress("192.0.2.10")!])
  ])

// 2. The rules, by service type. What is wrong in them is in the diagnostics, with its place.
let compilation = try WordEngine().compile(
  RuleCompilationRequest(sources: [
    RuleSource(file: "http.words", text: Array("1000001 1 password-file 80 etc/passwd\n".utf8))
  ]))
for diagnostic in compilation.diagnostics { print(diagnostic) }

// 3. A detector for each domain. With ProcessDetectorBackend (product VMFenceProcess) it is a sandboxed process.
let pool = DetectorPool(
  backend: ThreadDetectorBackend<WordInspector>(), configuration: .init(waitsWhenFull: true), at: clock.now
) { domain in
  domain.serviceType == "http" ? compilation.rules : nil
}

// 4. What follows from alerts. Words found without flows prove nothing about their sender, so the block is withheld, and
// says why; limiting the domain's own traffic is allowed on any evidence that the rule accepts.
let directory = DomainDirectory()
let policy = Policy(rules: [
  PolicyRule(
    name: "block-attackers", selectors: [.priority(atMost: 1)],
    counting: Counting(per: .source, count: 2, within: .seconds(60)),
    ladder: [LadderStep(.block, for: .seconds(300))]),
  PolicyRule(
    name: "calm-down", selectors: [.signatures(gid: 1, sids: 1_000_001...1_000_001)],
    counting: Counting(per: .domain, count: 3, within: .seconds(60)), evidence: .any,
    ladder: [LadderStep(.rateLimit(packetsPerSecond: 100), for: .seconds(60))]),
])
for diagnostic in policy.validate() { print(diagnostic) }
let firewall = RecordingFirewallSink()
let told = PrintingSink(encoder: EVEEncoder(node: "host-1", directory: directory))
let coordinator = EnforcementCoordinator(
  updater: try PolicyUpdater(policy: policy, directory: directory), log: MemoryDecisionLog(), firewall: firewall,
  events: told)

/// Hands on what has happened: to the notification, and to the policy, which tells of its decisions itself.
@MainActor func handOn() async {
  let events = pool.takeEvents()
  for event in events {
    directory.note(event)
    await told.receive(event)
  }
  await coordinator.handle(events, at: clock.now)
}

// 5. The guest appears.
try hypervisor.perform(.create(web))
directory.update(web)
pool.update(.snapshot(hypervisor.takeSnapshot()), at: clock.now)
await handOn()

// 6. Its packets come, are dispatched by the port where they were seen, and inspected.
let port = PortID(1)
let publisher = DispatchTablePublisher(
  try DispatchTable(
    members: pool.members, ports: [DispatchPort(id: port, kind: .vif(owner: web.incarnation))], key: (1, 2)))
var dispatcher = Dispatcher(publisher)
var capture = TextCapture(exampleFrames, start: clock.now, port: port)
var isAtEnd = false
while !isAtEnd {
  let outcome = try capture.nextBatch(limit: 64, patience: .zero) { frame, bytes in
    clock.advance(to: frame.timestamp)
    dispatcher.dispatch(frame, bytes) { slot, direction in
      var frame = frame
      frame.direction = direction
      pool.deliver(to: slot, frame, bytes)
    }
  }
  isAtEnd = outcome.isAtEnd
  pool.drain(at: clock.now)
  await handOn()
}

// 7. The guest is shut down; its detector ends with it.
try hypervisor.perform(.shutDown(web.incarnation))
pool.update(.snapshot(hypervisor.takeSnapshot()), at: clock.now)
await handOn()

// 8. A summary.
for report in pool.reports {
  print(
    "\(report.description.name): \(report.counters.packets) packets, \(report.counters.inspected) inspected,",
    "\(report.counters.alerts) alerts, state \(report.automaton.map { "\($0.state)" } ?? "forgotten")")
}
let measures = try await firewall.readBack(at: clock.now).measures
print("in force: \(measures.map { "\($0.key.kind)" }.joined(separator: ", "))")
pool.close(at: clock.now)
