#if Daemon
import VMFenceCore
import VMFenceDetection
import VMFencePackets

extension NotedPacket {
  /// What is told of it: the anomalies first.
  func events(_ settings: DecodeSettings) -> [Event] {
    var events = anomalies.map { anomaly in
      Event.packet(
        PacketNotice(
          .anomaly(anomaly, event: SnortInspector.name(of: anomaly)),
          packet(settings, layer: Int(anomaly.layer), flow: anomaly.flowID)))
    }
    if isTagged { events.append(.packet(PacketNotice(.tagged, packet(settings, layer: 0, flow: 0, .packet)))) }
    return events
  }

  private func packet(
    _ settings: DecodeSettings, layer: Int, flow: UInt64, _ wanted: EvidenceWanted = []
  ) -> DroppedPacket {
    var packet = head.withRawSpan {
      DroppedPacket(
        frame, $0, packetID: packetID, reason: .decodeError, rule: nil, verdict: .pass, settings, layer: layer, wanted)
    }
    packet.incarnation = incarnation
    packet.flowID = flow
    // A datagram that is longer than what is kept of it is no shorter than it says.
    if head.count < capturedLength { packet.evidence?.hasAddresses = packet.source != .anyV4 }
    return packet
  }
}

extension InspectorConfiguration {
  /// How frames are decoded, as the detectors do it. Settings were checked when they were read.
  var decoding: DecodeSettings {
    do throws(RuleCompilationError) { return try EngineSettings(self).decoding } catch { return DecodeSettings() }
  }
}
#endif
