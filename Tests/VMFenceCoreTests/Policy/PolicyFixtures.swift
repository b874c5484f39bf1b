import VMFenceCore

func uuid(_ number: UInt64) -> DomainUUID { DomainUUID(high: 0x7F3C_0000_0000_4000, low: number) }
func incarnation(_ number: UInt64) -> Incarnation {
  Incarnation(uuid: uuid(number), domainID: DomainID(UInt32(number)))
}
func address(_ text: String) -> IPAddress { IPAddress(text)! }
func network(_ text: String) -> IPNetwork { IPNetwork(text)! }
func at(_ seconds: Double) -> Timestamp { Timestamp(nanoseconds: Int64(seconds * 1e9)) }

let attacker = address("203.0.113.7")

/// Guest 1 is acme's web server, guest 2 acme's too, guest 3 of another tenant.
func hosts() -> DomainDirectory {
  DomainDirectory(
    [(1, "acme", "http", "192.0.2.1"), (2, "acme", "ssh", "192.0.2.2"), (3, "globex", "ftp", "192.0.2.3")].map {
      number, tenant, service, ip in
      DomainDescription(
        incarnation: incarnation(number), name: "guest\(number)", tenant: TenantID(tenant), serviceType: service,
        ports: [
          NetworkPort(
            interface: "vif\(number).0", mac: MACAddress(rawValue: 0x0016_3E00_0000 + number),
            addresses: [address(ip), address("2001:db8:0:1::\(number)")])
        ])
    })
}

func alert(
  sid: UInt32 = 1_000_001, class: String = "attempted-user", priority: Int = 2, on guest: UInt64 = 1,
  from source: IPAddress = attacker, to destination: IPAddress? = nil, protocolNumber: UInt8 = 6,
  established: Bool = true, direction: Alert.FlowDirection = .toServer, change: (inout Alert) -> Void = { _ in }
) -> Event {
  var alert = Alert(
    time: .zero, incarnation: incarnation(guest), packetID: 0,
    rule: RuleMetadata(sid: sid, message: "m", classification: `class`, priority: priority), flowID: 1,
    source: source, destination: destination ?? address("192.0.2.\(guest)"), sourcePort: 4_000, destinationPort: 80,
    ipProtocol: protocolNumber, direction: direction, isEstablished: established)
  change(&alert)
  return .alert(alert)
}

func fileEvent(_ operation: FileEvent.Operation = .write, on guest: UInt64 = 1) -> Event {
  .file(
    FileEvent(
      time: .zero, incarnation: incarnation(guest), disk: "xvda", sequence: 1, operation: operation,
      path: Array("/etc/passwd".utf8), inode: 12))
}

func rule(
  _ name: String = "brute", _ selectors: [EventSelector] = [.allAlerts], per key: Counting.Key = .source,
  count: Int = 3,
  within window: Duration = .seconds(60), evidence: Evidence = .established,
  ladder: [LadderStep] = [LadderStep(.block, for: .seconds(60))], escalation: Escalation = Escalation(),
  services: Set<String> = []
) -> PolicyRule {
  PolicyRule(
    name: name, selectors: selectors, services: services,
    counting: Counting(per: key, count: count, within: window), evidence: evidence, ladder: ladder,
    escalation: escalation)
}

func updater(
  _ rules: PolicyRule..., directory: DomainDirectory = hosts(), change: (inout Policy) -> Void = { _ in }
) throws -> PolicyUpdater {
  var policy = Policy(rules: rules)
  change(&policy)
  return try PolicyUpdater(policy: policy, directory: directory)
}

extension PolicyUpdater {
  /// Handles the same event `count` times at one moment.
  mutating func handle(_ event: Event, times count: Int, at time: Timestamp) -> [Decision] {
    (0..<count).flatMap { _ in handle(event, at: time) }
  }
}
