import VMFenceCore

/// What an inspector counts, each with its name, its meaning and where it is read: the one list of them.
extension SnortInspector {
  typealias Counter = (counter: InspectorCounter, value: @Sendable (borrowing SnortInspector) -> UInt64)

  static let counterNames = counterTable.map { $0.counter }

  public var statistics: [(name: String, value: UInt64)] {
    var result: [(name: String, value: UInt64)] = []
    for entry in Self.counterTable { result.append((entry.counter.name, entry.value(self))) }
    return result
  }

  public func forEachCounter(_ body: (UInt64) -> Void) {
    for entry in Self.counterTable { body(entry.value(self)) }
  }

  private static let counterTable: [Counter] = packetCounters + streamCounters + ruleCounters

  private static let packetCounters: [Counter] = [
    (InspectorCounter("packets", "Frames that were inspected."), { $0.counters.packets }),
    (InspectorCounter("not_ip", "Frames without an IP packet."), { $0.counters.notIP }),
    (InspectorCounter("malformed", "Frames with something wrong in them."), { $0.counters.malformed }),
    (InspectorCounter("bad_checksums", "Packets with wrong checksums."), { $0.counters.badChecksums }),
    (InspectorCounter("fragments", "Parts of datagrams."), { $0.counters.fragments }),
    (
      InspectorCounter("datagrams_rebuilt", "Datagrams that were put together."), { $0.fragments.counters.rebuilt }
    ),
    (
      InspectorCounter("datagrams_expired", "Datagrams of which parts never came."), { $0.fragments.counters.expired }
    ),
    (
      InspectorCounter("datagrams_evicted", .limit, "Incomplete datagrams that made room for others."),
      { $0.fragments.counters.evicted }
    ),
    (InspectorCounter("fragments_ignored", "Fragments that cannot be right."), { $0.fragments.counters.ignored }),
    (InspectorCounter("fragment_overlaps", "Fragments that overlap others."), { $0.fragments.counters.overlaps }),
    (InspectorCounter("flows", "Flows that began."), { $0.flows.created }),
    (InspectorCounter("flows_now", .level, "Flows that are followed."), { UInt64($0.flows.current) }),
    (InspectorCounter("flows_expired", "Flows whose time was over."), { $0.flows.expired }),
    (InspectorCounter("flows_evicted", .limit, "Flows that made room for others."), { $0.flows.evicted }),
    (
      InspectorCounter("flows_evicted_established", .limit, "Of these, connections whose handshake was seen."),
      { $0.flows.evictedEstablished }
    ),
  ]

  private static let streamCounters: [Counter] = [
    (InspectorCounter("stream_windows", "Stretches of streams that were inspected."), { $0.counters.streamWindows }),
    (
      InspectorCounter("stream_bytes_now", .level, "Bytes that streams hold."),
      { UInt64($0.streams.usedPages * StreamStore.page) }
    ),
    (
      InspectorCounter("stream_bytes_most", .level, "The most that streams have held, in bytes."),
      { UInt64($0.streams.mostPages * StreamStore.page) }
    ),
    (
      InspectorCounter("stream_memory_hits", .limit, "Segments for which there was no memory."),
      { $0.counters.memoryLimitHits }
    ),
    (
      InspectorCounter(
        "stream_memory_evictions", .limit, "Streams that gave up what they held behind a hole, to make room."),
      { $0.counters.memoryEvictions }
    ),
    (
      InspectorCounter(
        "stream_segments_refused", .limit, "Segments that found no room in their stream and were inspected alone."),
      { $0.counters.segmentsRefused }
    ),
    (
      InspectorCounter(
        "stream_inspected_early", .limit, "Streams that were inspected before their time, to make room."),
      { $0.counters.inspectedEarly }
    ),
    (InspectorCounter("stream_gaps", .limit, "Gaps in streams that were passed over."), { $0.counters.gaps }),
    (
      InspectorCounter("stream_depth_reached", "Streams that were followed as far as the settings say."),
      { $0.counters.depthReached }
    ),
    (
      InspectorCounter("stream_midstream", "Connections that were taken up without their beginning."),
      { $0.counters.midstream }
    ),
    (
      InspectorCounter("stream_segments_invalid", "Segments that their receiver does not take."),
      { $0.counters.invalidSegments }
    ),
    (InspectorCounter("low_ttl", "Segments that may not reach their receiver."), { $0.counters.lowTTL }),
    (
      InspectorCounter("stream_overlaps_different", "Segments that say something else than was said before."),
      { $0.counters.overlapsDifferent }
    ),
    (InspectorCounter("exception_policy", "Packets for which a setting decided."), { $0.counters.exceptions }),
  ]

  private static let ruleCounters: [Counter] = [
    (InspectorCounter("rates_evicted", .limit, "Counts of rules that made room for others."), { $0.rates.evicted }),
    (
      InspectorCounter("host_bits_evicted", .limit, "What rules remember of hosts that made room for others."),
      { $0.bits.evicted }
    ),
    (
      InspectorCounter("findings_lost", .limit, "Rules that matched a packet on which too many did."),
      { $0.findings.lost }
    ),
    (InspectorCounter("alerts", "Alerts."), { $0.counters.alerts }),
    (InspectorCounter("alerts_lost", .limit, "Alerts of packets that had too many."), { $0.counters.alertsLost }),
    (InspectorCounter("packets_passed", "Packets that a pass rule let through."), { $0.counters.passed }),
    (
      InspectorCounter("packets_bypassed", "Packets of flows that are not inspected any more."),
      { $0.counters.bypassed }
    ),
    (InspectorCounter("packets_dropped", "Packets that rules refuse."), { $0.counters.dropped }),
    (InspectorCounter("packets_rewritten", "Packets in which rules replaced something."), { $0.counters.rewritten }),
    (InspectorCounter("packets_tagged", "Packets that rules want logged."), { $0.counters.tagged }),
    (InspectorCounter("tags_evicted", .limit, "Tags that made room for others."), { $0.tags.evicted }),
    (
      InspectorCounter("replacements_lost", .limit, "Replacements in packets that had too many."),
      { $0.replacements.lost }
    ),
    (
      InspectorCounter("dataset_values_refused", .limit, "Values for which a data set had no room."),
      { $0.matching.payloads.dataSets.refused }
    ),
    (
      InspectorCounter("captures_evicted", .limit, "Captured values that made room for others."),
      { $0.matching.payloads.captured.evicted }
    ),
    (
      InspectorCounter("scan_overflows", .limit, "Packets in which more patterns were found than are noted."),
      { $0.counters.scanOverflows }
    ),
    (
      InspectorCounter(
        "work", "Steps of about 8 bytes that comparing with rules, and putting segments and fragments together, took."),
      { $0.counters.work }
    ),
    (
      InspectorCounter("work_limit_hits", .limit, "Packets whose rules were not all decided within their work."),
      { $0.counters.workLimitHits }
    ),
    (
      InspectorCounter(
        "flow_work_limit_hits", .limit, "Of these, packets that would have had more work in another flow."),
      { $0.counters.flowWorkLimitHits }
    ),
    (
      InspectorCounter("private_databases", .level, "Pattern databases that the detector copied for itself."),
      { UInt64($0.matching.scanner.privateCopies) }
    ),
    (
      InspectorCounter("regexes_compiled", "Regular expressions that were compiled."),
      { $0.matching.payloads.regexes.compiled }
    ),
    (
      InspectorCounter(
        "regexes_without_jit", .limit, "Regular expressions that run without machine code of their own."),
      { $0.matching.payloads.regexes.withoutJIT }
    ),
    (
      InspectorCounter("regexes_not_compiled", .limit, "Regular expressions that could not be compiled."),
      { $0.matching.payloads.regexes.notCompiled }
    ),
    (
      InspectorCounter("regex_limit_hits", .limit, "Regular expressions that were given up for their work."),
      { $0.matching.payloads.regexes.limitHits }
    ),
  ]
}
