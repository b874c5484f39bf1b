import VMFenceCore
import VMFencePackets

/// Inspects the packets of one domain with Snort and Suricata rules.
///
/// A packet is decoded, its checksums are verified (where nobody has done so), fragments wait until their datagram is whole, its flow
/// is followed, TCP payload is put together to what its receiver reads, and the rules whose pattern the multi-pattern search found, or that
/// have none, are compared in their order with the packet and with the stream. The first `pass` rule that matches silences
/// those after it.
///
/// Passive, a stream is inspected once its receiver acknowledged it; inline, as it arrives.
///
/// Allocates nothing per packet. Used by one thread at a time.
public struct SnortInspector: PacketInspector, ~Copyable {
  /// Work spent on the contents of one packet at the most, in steps of about 8 bytes. What was not decided by then
  /// counts as no match, and `work_limit_hits` counts the packet. One rule may take all of it.
  static let workLimit = 1 << 22
  /// What of a rule's debt to a flow (`WorkDebts`) each packet of that pays off. What a rule owes is taken from what it may cost there, down to this: so a
  /// rule that a flow is made dear for costs about this much a packet in the long run. `flow_work_limit_hits` counts packets that would have
  /// had more in another flow.
  static let workAllowance = 1 << 14
  /// What each rule may cost at each packet, whatever others took before it and the flow owes: enough for a plain rule on a large packet. So no dear
  /// rule keeps those after it from being decided. Nobody owes so little.
  static let ruleAllowance = 1 << 12

  private let inPlace = InPlace()
  var rules: SnortRules
  /// Made anew with the rules: databases, and what is remembered by rule index.
  var matching: Matching
  let configuration: InspectorConfiguration
  let settings: EngineSettings
  let tcp: TCPSettings
  var flows: FlowTable
  /// By the places of flows, of those that have the mark.
  var debts: ZeroedTable<WorkDebts>
  var fragments: FragmentStore
  var streams: StreamStore
  /// Headers for windows of streams that no packet stands for.
  var pseudoFrame = ByteStore(count: 64)
  /// A frame whose segment counts with other bytes than it came with.
  var rewritten = ByteStore(count: 66_048)
  var replacements = Replacements()
  var rates: RateTable
  /// What rules remember of flows and of hosts.
  var variables: FlowVariables
  var bits: HostBits
  var tags: TagTable
  var flowRates: FlowRates
  /// Of the packet being inspected.
  var findings = Findings()
  /// Of the window being inspected: what the search finds in it, after what it found in the bytes before.
  var found = FoundRules()
  var counters = Counters()
  /// Counts rule sets, so that a verdict kept with a flow is not taken for a rule of a later set.
  var generation: UInt32 = 0
  /// Where `finish` goes on.
  var finishPlace = 0
  /// Where `advance` goes on.
  var advancePlace = 0

  /// What belongs to one rule set.
  struct Matching: ~Copyable {
    private let inPlace = InPlace()
    let header: HeaderMatcher
    let sections: ImageSections
    /// Whether any rule looks at packets whose checksums are wrong.
    let testsChecksums: Bool
    var scanner: PatternScanner
    var candidates: CandidateSet
    /// Holds the budget of the packet being compared, too.
    var payloads: PayloadMatcher
    /// Whether any rule wants reassembled streams, or to be told of how they are put together.
    let wantsStreams: Bool
    var profile: RuleProfile
    /// Indices of `dynamic` rules, in order.
    var dynamicRules: [Int] = []
    /// Packets that each rule still logs; empty when no rule is `dynamic`.
    var remaining: [UInt32] = []
    /// Activations that fired at this packet.
    var activated: [Bool]
    var hasActivated = false
    /// Only rules are compared that ask for what rules keep with flows, and did not match this packet before.
    var isSecondLook = false

    init(
      _ rules: SnortRules, isProfiled: Bool, key: (UInt64, UInt64)
    ) throws(RuleCompilationError) {
      profile = RuleProfile(ruleCount: isProfiled ? rules.ruleCount : 0)
      header = HeaderMatcher(rules.sections)
      sections = rules.sections
      scanner = try PatternScanner.make(for: rules)
      // SAFETY: the image is valid for its length as long as `rules` holds it, which outlasts this initialiser.
      let image = unsafe UnsafeRawBufferPointer(start: rules.image.baseAddress, count: rules.image.byteCount).bytes
      payloads = PayloadMatcher(rules.sections, image, key: key)
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
      let options = rules.sections[.options]
      wantsStreams = rules.image.withBytes { image in
        (0..<rules.ruleCount).contains {
          image.u8(records + $0 * RuleRecord.stride + RuleRecord.flags) & RuleRecord.wantsStreams != 0
        }
          || (0..<options.count).contains {
            let option = options.offset + $0 * OptionRecord.stride
            return image.u8(option + OptionRecord.kind) == StateKind.streamEvent.rawValue
              && EventRecord.contains(option, image) { StreamEvent(rawValue: $0)?.isOfReassembly == true }
          }
      }
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
    var work: UInt64 = 0
    var workLimitHits: UInt64 = 0
    var flowWorkLimitHits: UInt64 = 0
    var midstream: UInt64 = 0
    var invalidSegments: UInt64 = 0
    var lowTTL: UInt64 = 0
    var overlapsDifferent: UInt64 = 0
    var gaps: UInt64 = 0
    var depthReached: UInt64 = 0
    var memoryLimitHits: UInt64 = 0
    var memoryEvictions: UInt64 = 0
    var segmentsRefused: UInt64 = 0
    var inspectedEarly: UInt64 = 0
    var streamWindows: UInt64 = 0
    var exceptions: UInt64 = 0
    var rewritten: UInt64 = 0
    var tagged: UInt64 = 0
  }

  /// What data sets with a state file hold now, by that file's name: a line for each value.
  public var dataSetStates: [(file: String, text: [UInt8])] {
    rules.image.withBytes { matching.payloads.dataSets.states($0) }
  }

  /// What each rule has cost since the rules were put in force, the costliest first; empty unless `profiling.rules.enabled` is set.
  public var ruleCosts: [RuleCost] { matching.profile.costs }

  public static func make(
    rules: SnortRules, configuration: InspectorConfiguration
  ) throws(RuleCompilationError) -> SnortInspector {
    let settings = try EngineSettings(configuration)
    return SnortInspector(
      rules: rules, matching: try Matching(rules, isProfiled: settings.profilesRules, key: configuration.hashKey),
      configuration: configuration,
      settings: settings)
  }

  private init(
    rules: SnortRules, matching: consuming Matching, configuration: InspectorConfiguration, settings: EngineSettings
  ) {
    self.rules = rules
    self.matching = matching
    self.configuration = configuration
    self.settings = settings
    tcp = TCPSettings(settings)
    flows = FlowTable(
      capacity: configuration.flowCapacity, key: configuration.hashKey, timeouts: settings.timeouts)
    debts = ZeroedTable(count: flows.places)
    fragments = FragmentStore(settings, key: configuration.hashKey)
    streams = StreamStore(memory: settings.streamMemory, key: configuration.hashKey)
    rates = RateTable(key: configuration.hashKey)
    bits = HostBits(key: configuration.hashKey)
    tags = TagTable(key: configuration.hashKey)
    flowRates = FlowRates(settings, places: flows.places)
    variables = FlowVariables(rules.variableShape, places: flows.places)
  }

  public mutating func replaceRules(with rules: SnortRules) throws(RuleCompilationError) {
    // Nothing changes when the new rules cannot be used. The old image lives until the old scanner is gone.
    var next = try Matching(rules, isProfiled: settings.profilesRules, key: configuration.hashKey)
    variables = variables.adapted(from: self.rules, to: rules)
    swap(&next.payloads.captured, &matching.payloads.captured)
    // SAFETY: the image is valid for its length as long as `rules` holds it, which outlasts this call.
    let image = unsafe UnsafeRawBufferPointer(start: rules.image.baseAddress, count: rules.image.byteCount).bytes
    next.payloads.dataSets.adopt(matching.payloads.dataSets, image)
    matching = next
    self.rules = rules
    generation &+= 1
  }

  public mutating func inspect(_ frame: FrameMetadata, _ bytes: RawSpan, into output: inout InspectionOutput) {
    counters.packets += 1
    let (alerts, lost) = (output.count, output.overflow)
    endOldFlow(at: frame.timestamp, into: &output)
    let packet = DecodedPacket.decode(
      bytes, linkType: frame.linkType, strippedVLAN: frame.strippedVLAN, settings: settings.decoding)
    if !packet.anomalies.isEmpty { counters.malformed += 1 }
    inspectLayers(
      packet, bytes, PacketContext(frame: frame, carrier: PacketContext.carrier(frame, bytes)), into: &output)
    settle(into: &output)
    if !replacements.entries.isEmpty { rewriteFrame(packet, bytes, frame.checksums, into: &output) }
    count(alerts, lost, output)
    if output.verdict != .pass { counters.dropped += 1 }
  }

  mutating func settle(into output: inout InspectionOutput) {
    // SAFETY: the image is valid for its length as long as `rules` holds it, which outlasts this call.
    let image = unsafe UnsafeRawBufferPointer(start: rules.image.baseAddress, count: rules.image.byteCount).bytes
    settle(image, into: &output)
  }

  mutating func count(_ alerts: Int, _ lost: Int, _ output: borrowing InspectionOutput) {
    counters.alerts += UInt64(output.count - alerts)
    counters.alertsLost += UInt64(output.overflow - lost)
  }
}

/// Where a packet comes from.
struct PacketContext {
  var frame: FrameMetadata
  /// `carrier(_:_:)` of the frame.
  var carrier: UInt16 = 0
  /// How many datagrams were put together from fragments to come to it.
  var depth = 0
  /// What the tunnel carries that it is in.
  var carried: DecodedPacket.Carried?
}
