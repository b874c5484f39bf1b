import VMFenceCore
import VMFencePackets

/// Inspects the packets of one domain with Snort and Suricata rules.
///
/// A packet is decoded, its checksums are verified (where nobody has done so), its flow is followed, and the rules whose pattern the
/// multi-pattern search found, or that have none, are compared with it in their order. The first `pass` rule that matches
/// silences those after it.
///
/// Each packet is looked at for itself: a pattern that is split over two TCP segments or IP fragments is not seen. Of
/// fragments only rules for `ip` are compared, with the fragment's own payload.
///
/// Allocates nothing per packet. Used by one thread at a time.
public struct SnortInspector: PacketInspector, ~Copyable {
  /// Work spent on the contents of one packet at the most, in steps of about 8 bytes. What was not decided by then
  /// counts as no match, and `work_limit_hits` counts the packet.
  static let workLimit = 1 << 22

  var rules: SnortRules
  /// Made anew with the rules: databases, and what is remembered by rule index.
  var matching: Matching
  let configuration: InspectorConfiguration
  var flows: FlowTable
  var rates: RateTable
  /// What rules remember of flows and of hosts.
  var variables: FlowVariables
  var bits: HostBits
  /// Of the packet being inspected.
  var findings = Findings()
  var counters = Counters()
  /// Counts rule sets, so that a verdict kept with a flow is not taken for a rule of a later set.
  var generation: UInt32 = 0

  /// What belongs to one rule set.
  struct Matching: ~Copyable {
    let header: HeaderMatcher
    let sections: ImageSections
    /// Whether any rule looks at packets whose checksums are wrong.
    let testsChecksums: Bool
    var scanner: PatternScanner
    var candidates: CandidateSet
    /// Holds the budget of the packet being compared, too.
    var payloads: PayloadMatcher
    /// Indices of `dynamic` rules, in order.
    var dynamicRules: [Int] = []
    /// Packets that each rule still logs; empty when no rule is `dynamic`.
    var remaining: [UInt32] = []
    /// Activations that fired at this packet.
    var activated: [Bool]
    var hasActivated = false

    init(_ rules: SnortRules) throws(RuleCompilationError) {
      header = HeaderMatcher(rules.sections)
      sections = rules.sections
      scanner = try PatternScanner.make(for: rules)
      payloads = PayloadMatcher(rules.sections)
      candidates = CandidateSet(ruleCount: rules.ruleCount)
      activated = Array(repeating: false, count: rules.activationCount)
      let records = rules.sections[.rules].offset
      testsChecksums = rules.image.withBytes { image in
        (0..<rules.ruleCount).contains {
          image.u8(records + $0 * RuleRecord.stride + RuleRecord.moreFlags) & RuleRecord.seesBadChecksums != 0
        }
      }
      dynamicRules = rules.image.withBytes { image in
        (0..<rules.ruleCount).filter {
          image.u8(records + $0 * RuleRecord.stride + RuleRecord.action) == RuleAction.dynamic.rawValue
        }
      }
      if !dynamicRules.isEmpty { remaining = Array(repeating: 0, count: rules.ruleCount) }
    }
  }

  struct Counters {
    var packets: UInt64 = 0
    var notIP: UInt64 = 0
    var malformed: UInt64 = 0
    var badChecksums: UInt64 = 0
    var fragments: UInt64 = 0
    var alerts: UInt64 = 0
    var alertsLost: UInt64 = 0
    var passed: UInt64 = 0
    var bypassed: UInt64 = 0
    var dropped: UInt64 = 0
    var scanOverflows: UInt64 = 0
    var workLimitHits: UInt64 = 0
  }

  public static func make(
    rules: SnortRules, configuration: InspectorConfiguration
  ) throws(RuleCompilationError) -> SnortInspector {
    SnortInspector(rules: rules, matching: try Matching(rules), configuration: configuration)
  }

  private init(rules: SnortRules, matching: consuming Matching, configuration: InspectorConfiguration) {
    self.rules = rules
    self.matching = matching
    self.configuration = configuration
    flows = FlowTable(capacity: configuration.flowCapacity, key: configuration.hashKey)
    rates = RateTable(key: configuration.hashKey)
    bits = HostBits(key: configuration.hashKey)
    variables = FlowVariables(rules.variableShape, places: flows.places)
  }

  public mutating func replaceRules(with rules: SnortRules) throws(RuleCompilationError) {
    // Nothing changes when the new rules cannot be used. The old image lives until the old scanner is gone.
    let next = try Matching(rules)
    variables = variables.adapted(from: self.rules, to: rules)
    matching = next
    self.rules = rules
    generation &+= 1
  }

  public var statistics: [(name: String, value: UInt64)] {
    [
      ("packets", counters.packets), ("not_ip", counters.notIP), ("malformed", counters.malformed),
      ("bad_checksums", counters.badChecksums), ("fragments", counters.fragments),
      ("flows", flows.created), ("flows_now", UInt64(flows.current)), ("flows_expired", flows.expired),
      ("flows_evicted", flows.evicted), ("flows_evicted_established", flows.evictedEstablished),
      ("rates_evicted", rates.evicted), ("host_bits_evicted", bits.evicted), ("findings_lost", findings.lost),
      ("alerts", counters.alerts), ("alerts_lost", counters.alertsLost),
      ("packets_passed", counters.passed), ("packets_bypassed", counters.bypassed),
      ("packets_dropped", counters.dropped),
      ("scan_overflows", counters.scanOverflows), ("work_limit_hits", counters.workLimitHits),
      ("private_databases", UInt64(matching.scanner.privateCopies)),
      ("regexes_compiled", matching.payloads.regexes.compiled),
      ("regexes_without_jit", matching.payloads.regexes.withoutJIT),
      ("regexes_not_compiled", matching.payloads.regexes.notCompiled),
      ("regex_limit_hits", matching.payloads.regexes.limitHits),
    ]
  }

  public mutating func inspect(_ frame: FrameMetadata, _ bytes: RawSpan, into output: inout InspectionOutput) {
    counters.packets += 1
    let packet = DecodedPacket.decode(bytes, linkType: frame.linkType, strippedVLAN: frame.strippedVLAN)
    if !packet.anomalies.isEmpty { counters.malformed += 1 }
    guard packet.network == .ipv4 || packet.network == .ipv6 else {
      counters.notIP += 1
      return
    }
    let verifiesChecksums = frame.checksums == .unknown && configuration.verifiesChecksums
    var hasBadChecksum = false
    if verifiesChecksums {
      switch packet.verifyChecksums(in: bytes) {
      case .correct, .unverifiable: break
      case .badNetwork, .badTransport:
        counters.badChecksums += 1
        hasBadChecksum = true
      }
    }
    if hasBadChecksum, !matching.testsChecksums { return }
    var sighting: FlowTable.Sighting?
    if packet.isFragment {
      counters.fragments += 1
    } else if !hasBadChecksum {
      let seen = flows.see(packet, at: frame.timestamp)
      flows[seen.place].counts.add(bytes: bytes.byteCount, toServer: seen.toServer)
      sighting = seen
      if decideByFlow(seen, into: &output) { return }
    }
    let payload = bytes.extracting(
      Int(packet.payloadOffset)..<Int(packet.payloadOffset) + Int(packet.payloadLength))
    let match = PacketMatch(
      packet: packet, flow: sighting, timestamp: frame.timestamp, verifiesChecksums: verifiesChecksums,
      hasBadChecksum: hasBadChecksum)
    // SAFETY: the image is valid for its length as long as `rules` holds it, which outlasts this call.
    let image = unsafe UnsafeRawBufferPointer(start: rules.image.baseAddress, count: rules.image.byteCount).bytes
    let before = output.count
    let lostBefore = output.overflow
    evaluate(match, payload, frame: bytes, image: image, into: &output)
    settle(image, into: &output)
    if let sighting {
      flows[sighting.place].marks.insert(sighting.toServer ? .clientAddressesSeen : .serverAddressesSeen)
    }
    counters.alerts += UInt64(output.count - before)
    counters.alertsLost += UInt64(output.overflow - lostBefore)
    if output.verdict != .pass { counters.dropped += 1 }
  }

  /// What an earlier packet decided for the whole flow. True: this packet needs no inspection.
  private mutating func decideByFlow(_ seen: FlowTable.Sighting, into output: inout InspectionOutput) -> Bool {
    let marks = flows[seen.place].marks
    if marks.contains(.isPassed) {
      counters.passed += 1
      return true
    }
    if marks.contains(.isBypassed) {
      counters.bypassed += 1
      return true
    }
    if marks.contains(.isDropped) {
      counters.dropped += 1
      output.verdict = .drop
      output.dropReason = .flowDrop
      let flow = flows[seen.place]
      output.verdictRule = flow.verdictGeneration == generation ? flow.verdictRule : .max
      return true
    }
    return false
  }
}
