/// Encodes events as EVE JSON, the line format that Suricata writes and that log shippers and consoles read
/// (doc/userguide/output/eve/eve-json-format.rst of Suricata). Alerts, drops and statistics are events of that format;
/// what is VMFence's own lies under the one key `vmfence`, in event types of their own where EVE has none.
///
/// Each call gives exactly one line without its line feed. Equal input gives equal bytes. Text from guests and from the
/// network cannot break a line, end a string or act on a terminal.
public struct EVEEncoder: Sendable {
  /// The name of this host, for `host` and `vmfence.node`.
  public var node: String
  /// Whether verdicts act on the packets themselves. If not, an alert of a `drop` rule says `allowed`, since the packet went through.
  public var isInline: Bool
  /// Where the words about a domain come from.
  public let directory: DomainDirectory

  public init(node: String, isInline: Bool = false, directory: DomainDirectory) {
    self.node = node
    self.isInline = isInline
    self.directory = directory
  }

  public func encode(_ event: Event) -> [UInt8] {
    switch event {
    case .alert(let alert): encode(alert)
    case .file(let event): encode(event)
    case .decision(let decision): encode(decision)
    case .lifecycle(let report): encode(report)
    case .platform(let alert): encode(alert)
    case .packet(let notice):
      switch notice.kind {
      case .anomaly(let anomaly, let event): encode(anomaly, event: event, of: notice.packet)
      case .tagged: encodeTagged(notice.packet)
      }
    }
  }

  /// The `drop` event that goes beside an alert whose packet was dropped; nil when the packet was let through.
  public func encodeDrop(_ alert: Alert) -> [UInt8]? {
    isInline && alert.verdict != .pass ? encode(DroppedPacket(alert)) : nil
  }

  /// The `drop` event of a packet.
  public func encode(_ drop: DroppedPacket) -> [UInt8] {
    line(at: drop.time, "drop", flow: EVEFlow(drop)) { json in
      json.member("pkt_src", drop.origin.eveName)
      json.object("drop") { $0.member("reason", drop.reason.eveName) }
      if let rule = drop.rule, drop.reason == .rules || drop.reason == .rulesThreshold {
        json.object("alert") { $0.alert(rule, isBlocked: true) }
      }
      json.object("verdict") { json in
        json.member("action", "drop")
        if drop.verdict == .reject { json.reject(drop.rejectAction ?? drop.rule?.action, drop.ipProtocol) }
      }
      json.object("vmfence") { json in
        about(drop.incarnation, addresses: [drop.source, drop.destination], &json)
        json.member("packet", drop.packetID)
      }
    }
  }

  /// An `anomaly` event.
  ///
  /// - `packet`: where it was found; its `reason` and `verdict` are not told.
  /// - `event`: its name among those of its kind, as rules have it.
  public func encode(_ anomaly: PacketAnomaly, event: String, of packet: DroppedPacket) -> [UInt8] {
    line(at: packet.time, "anomaly", flow: EVEFlow(packet)) { json in
      json.object("anomaly") { json in
        json.member("type", anomaly.kind.rawValue)
        json.member("event", (anomaly.kind == .decode ? "decoder." : "stream.") + event)
      }
      json.object("vmfence") { json in
        about(packet.incarnation, addresses: [packet.source, packet.destination], &json)
        json.member("packet", packet.packetID)
      }
    }
  }

  /// A `packet` event: one that is logged because an earlier packet matched a rule that asks for it.
  ///
  /// - `packet`: its `reason` and `verdict` are not told; its evidence has the bytes.
  public func encodeTagged(_ packet: DroppedPacket) -> [UInt8] {
    line(at: packet.time, "packet", flow: EVEFlow(packet)) { json in
      json.member("pkt_src", packet.origin.eveName)
      json.contents(packet.evidence, excerpt: [], isInStream: false)
      json.object("vmfence") { json in
        about(packet.incarnation, addresses: [packet.source, packet.destination], &json)
        json.member("packet", packet.packetID)
      }
    }
  }

  /// A `stats` event: counters of a whole run, or of one domain.
  public func encode(_ statistics: EVEStatistics) -> [UInt8] {
    line(at: statistics.time, "stats") { json in
      json.object("stats") { json in
        json.member("uptime", Swift.max(0, statistics.uptime.wholeNanoseconds / 1_000_000_000))
        json.object("capture") { json in
          json.member("kernel_packets", statistics.packets)
          json.member("kernel_drops", statistics.drops)
        }
        json.object("decoder") { json in
          json.member("pkts", statistics.packets)
          json.member("bytes", statistics.bytes)
        }
        json.object("detect") { $0.member("alert", statistics.alerts) }
      }
      json.object("vmfence") { json in
        about(statistics.incarnation, &json)
        json.object("counters") { json in
          for (name, value) in statistics.counters { json.member(name, value) }
        }
        if !statistics.inspector.isEmpty {
          json.object("inspector") { json in
            for (name, value) in statistics.inspector { json.member(name, value) }
          }
        }
      }
    }
  }

  // MARK: The event types

  private func encode(_ alert: Alert) -> [UInt8] {
    line(at: alert.time, "alert", flow: EVEFlow(alert)) { json in
      json.member("pkt_src", alert.origin.eveName)
      if let tunnel = alert.evidence?.tunnel { json.tunnel(tunnel) }
      json.object("alert") { json in
        json.alert(alert.rule, isBlocked: isInline && alert.verdict != .pass)
        json.sides(alert)
        json.captures(alert.captures)
      }
      json.object("verdict") { json in
        let verdict = alert.packetVerdict ?? alert.verdict
        let passed = alert.rule.action == .pass ? "pass" : "alert"
        json.member("action", isInline && verdict != .pass ? "drop" : passed)
        if verdict == .reject { json.reject(alert.rejectAction ?? alert.rule.action, alert.ipProtocol) }
      }
      json.contents(alert.evidence, excerpt: alert.payloadExcerpt, isInStream: alert.isInStream)
      json.object("vmfence") { json in
        about(alert.incarnation, addresses: [alert.source, alert.destination], &json)
        json.member("packet", alert.packetID)
        json.member("established", alert.isEstablished)
        if alert.verdict != .pass {
          json.member("rule_verdict", alert.verdict == .drop ? "drop" : "reject")
          json.member("inline", isInline)
          // From where on the verdict held: this packet, or those after it in its flow.
          if isInline || alert.isFlowCut { json.member("verdict_from", isInline ? "inline" : "next-packet") }
        }
      }
    }
  }

  private func encode(_ event: FileEvent) -> [UInt8] {
    line(at: event.time, "vmfence_file") { json in
      json.object("vmfence") { json in
        about(event.incarnation, &json)
        json.object("file") { json in
          json.member("operation", event.operation.rawValue)
          json.member("disk", event.disk)
          json.path("path", event.path)
          if let oldPath = event.oldPath { json.path("old_path", oldPath) }
          json.member("inode", event.inode)
          json.member("offset", event.offset)
          json.member("length", event.length)
          if !event.changes.isEmpty {
            json.array("changes", event.changes) { json, change in
              json.object { json in
                json.member("attribute", change.attribute)
                json.member("old", change.old)
                json.member("new", change.new)
              }
            }
          }
          json.member("request", event.sequence)
          json.member("verdict", "\(event.verdict)")
          json.member("severity", event.severity)
          if event.isAnnounced { json.member("announced", true) }
        }
      }
    }
  }

  private func encode(_ decision: Decision) -> [UInt8] {
    line(at: decision.time, "vmfence_decision") { json in
      json.object("vmfence") { json in
        about(decision.incarnation, &json)
        json.object("decision") { json in
          json.member("id", decision.id)
          json.member("measure", decision.measure.name)
          decision.measure.encodeDetails(&json)
          json.member("status", decision.status.rawValue)
          json.member("policy", decision.policy)
          json.member("reason", decision.reason)
          json.member("step", decision.step)
          json.member("expires", decision.expires?.eveDescription)
          json.member("trigger", decision.trigger)
          json.member("source", decision.source?.description)
          json.member("logged", decision.isLogged)
        }
      }
    }
  }

  private func encode(_ report: LifecycleReport) -> [UInt8] {
    line(at: report.time, "vmfence_lifecycle") { json in
      json.object("vmfence") { json in
        about(report.incarnation, name: report.domainName, &json)
        json.object("lifecycle") { json in
          switch report.kind {
          case .transition(let from, let event, let to):
            json.member("kind", "transition")
            json.member("from", from.rawValue)
            json.member("event", event.rawValue)
            json.member("to", to.rawValue)
          case .unexpected(let state, let event):
            json.member("kind", "unexpected")
            json.member("state", state.rawValue)
            json.member("event", event.rawValue)
          case .configurationNeeded:
            json.member("kind", "configuration_needed")
          case .stuck(let state, let duration):
            json.member("kind", "stuck")
            json.member("state", state.rawValue)
            json.member("for_ms", duration.wholeNanoseconds / 1_000_000)
          }
        }
      }
    }
  }

  private func encode(_ alert: PlatformAlert) -> [UInt8] {
    line(at: alert.time, "vmfence_platform") { json in
      json.object("vmfence") { json in
        about(alert.incarnation, &json)
        json.object("platform") { json in
          json.member("kind", alert.kind.name)
          json.member("message", alert.message)
          json.member("severity", alert.severity)
          json.member("count", alert.count)
          json.member("source", alert.source?.description)
        }
      }
    }
  }

  // MARK: What all have

  private func line(
    at time: Timestamp, _ type: String, flow: EVEFlow? = nil, _ body: (inout JSONLine) -> Void
  ) -> [UInt8] {
    var json = JSONLine()
    json.object { json in
      json.member("timestamp", time.eveDescription)
      if let flow, flow.flowID != 0 { json.member("flow_id", flow.flowID.eveFlowID) }
      json.member("event_type", type)
      flow?.encode(into: &json)
      json.member("host", node)
      body(&json)
    }
    return json.bytes
  }

  /// The node and the domain. `addresses` tell which of several ports is meant.
  private func about(
    _ incarnation: Incarnation?, name: String? = nil, addresses: [IPAddress] = [], _ json: inout JSONLine
  ) {
    json.member("node", node)
    guard let incarnation else { return }
    let entry = directory.entry(for: incarnation)
    let ports = entry?.description.ports ?? []
    let port = ports.first { $0.addresses.contains(where: addresses.contains) } ?? ports.first
    json.object("vm") { json in
      json.member("uuid", incarnation.uuid.description)
      json.member("name", entry?.description.name ?? name)
      json.member("domid", incarnation.domainID.rawValue)
      json.member("vif", port?.interface)
      json.member("mac", port?.mac.description)
    }
    json.member("state", entry?.state?.rawValue)
    json.member("tenant", entry?.description.tenant?.name)
    json.member("service", entry?.description.serviceType)
  }
}

/// Counters for a `stats` event.
public struct EVEStatistics: Sendable {
  public var time: Timestamp
  /// Since the start of the run.
  public var uptime: Duration
  /// nil: the whole host.
  public var incarnation: Incarnation?
  public var packets: UInt64
  public var bytes: UInt64
  /// Packets lost, wherever it was.
  public var drops: UInt64
  public var alerts: UInt64
  /// Further counters by name, in the order in which they are to be written.
  public var counters: [(name: String, value: UInt64)]
  /// What the domain's detectors counted by themselves, likewise.
  public var inspector: [(name: String, value: UInt64)]

  public init(
    time: Timestamp, uptime: Duration, incarnation: Incarnation? = nil, packets: UInt64 = 0, bytes: UInt64 = 0,
    drops: UInt64 = 0, alerts: UInt64 = 0, counters: [(name: String, value: UInt64)] = [],
    inspector: [(name: String, value: UInt64)] = []
  ) {
    self.time = time
    self.uptime = uptime
    self.incarnation = incarnation
    self.packets = packets
    self.bytes = bytes
    self.drops = drops
    self.alerts = alerts
    self.counters = counters
    self.inspector = inspector
  }
}
