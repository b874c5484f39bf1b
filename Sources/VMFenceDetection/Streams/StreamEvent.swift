/// What is told of TCP segments that are not as they should be: names of the `stream-event` option, and the built-in rules of Snort's
/// generator 129. Raw values stand in rule images and change with their version only.
package enum StreamEvent: UInt8, CaseIterable, Sendable {
  case ackInWrongDirection, asyncWrongSequence, rightSequenceWrongAck, synAckInWrongDirection
  case synAckResendOtherAck, synAckResendOtherSequence, synAckToServer, synAckWrongAck
  case synAckFlood, synFlood, synResendOtherSequence, synToClient, wrongSequenceWrongAck, ackDataInject
  case fastOpenDataIgnored
  case fourWaySynAckWrongAck, fourWaySynAckWrongSyn, fourWayWrongSequence, fourWayInvalidAck
  case closeWaitAckOutOfWindow, closeWaitFinOutOfWindow, closeWaitBeforeLastAck, closeWaitInvalidAck
  case closingAckWrongSequence, closingInvalidAck
  case establishedOutOfWindow, establishedBeforeLastAck, establishedSynAckResend, establishedSynAckOtherAck
  case establishedSynAckOtherSequence, establishedSynAckToServer, establishedSynResend
  case establishedSynOtherSequence, establishedSynToClient, establishedInvalidAck
  case finInvalidAck, finWait1AckWrongSequence, finWait1FinWrongSequence, finWait1InvalidAck
  case finWait2AckWrongSequence, finWait2FinWrongSequence, finWait2InvalidAck
  case finNoSession, finOutOfWindow, finSyn
  case lastAckWrongSequence, lastAckInvalidAck, resetNoSession
  case timeWaitWrongSequence, timeWaitInvalidAck, shutdownSynResend
  case invalidTimestamp, invalidAck, brokenAck, resetInvalidAck, retransmission, spuriousRetransmission
  case badWindowUpdate, suspectedResetInject, wrongThread
  case segmentBeforeBase, noSegment, sequenceGap, overlapDifferentData, depthReached
  case insertMemoryLimit, insertLimit, insertInvalid, urgentLimit
  case dataOnSyn, dataAfterFin, ackBeyondFin, dataAfterReset, dataToReset, noFlags, timestampMissing
  case fourWayHandshake, noHandshake, lowTTL
  case clientMoved, serverMoved, windowClosed
  case windowTooLarge, excessiveOverlaps, smallSegments

  /// Names as rules write them, in the order of the cases. `wrong_thread` and `reassembly_insert_invalid` are about the inside of Suricata
  /// and never happen here; those from `data_on_syn` on are ours.
  package static let names = [
    "3whs_ack_in_wrong_dir", "3whs_async_wrong_seq", "3whs_right_seq_wrong_ack_evasion",
    "3whs_synack_in_wrong_direction", "3whs_synack_resend_with_different_ack", "3whs_synack_resend_with_diff_seq",
    "3whs_synack_toserver_on_syn_recv", "3whs_synack_with_wrong_ack", "3whs_synack_flood", "3whs_syn_flood",
    "3whs_syn_resend_diff_seq_on_syn_recv", "3whs_syn_toclient_on_syn_recv", "3whs_wrong_seq_wrong_ack",
    "3whs_ack_data_inject", "3whs_synack_tfo_data_ignored", "4whs_synack_with_wrong_ack",
    "4whs_synack_with_wrong_syn", "4whs_wrong_seq", "4whs_invalid_ack", "closewait_ack_out_of_window",
    "closewait_fin_out_of_window", "closewait_pkt_before_last_ack", "closewait_invalid_ack",
    "closing_ack_wrong_seq", "closing_invalid_ack", "est_packet_out_of_window", "est_pkt_before_last_ack",
    "est_synack_resend", "est_synack_resend_with_different_ack", "est_synack_resend_with_diff_seq",
    "est_synack_toserver", "est_syn_resend", "est_syn_resend_diff_seq", "est_syn_toclient", "est_invalid_ack",
    "fin_invalid_ack", "fin1_ack_wrong_seq", "fin1_fin_wrong_seq", "fin1_invalid_ack", "fin2_ack_wrong_seq",
    "fin2_fin_wrong_seq", "fin2_invalid_ack", "fin_but_no_session", "fin_out_of_window", "fin_syn",
    "lastack_ack_wrong_seq", "lastack_invalid_ack", "rst_but_no_session", "timewait_ack_wrong_seq",
    "timewait_invalid_ack", "shutdown_syn_resend", "pkt_invalid_timestamp", "pkt_invalid_ack", "pkt_broken_ack",
    "rst_invalid_ack", "pkt_retransmission", "pkt_spurious_retransmission", "pkt_bad_window_update",
    "suspected_rst_inject", "wrong_thread", "reassembly_segment_before_base_seq", "reassembly_no_segment",
    "reassembly_seq_gap", "reassembly_overlap_different_data", "reassembly_depth_reached",
    "reassembly_insert_memcap", "reassembly_insert_limit", "reassembly_insert_invalid",
    "reassembly_urgent_oob_limit_reached", "data_on_syn", "data_after_fin", "ack_beyond_fin", "data_after_rst_sent",
    "data_after_rst_received", "pkt_without_flags", "pkt_timestamp_missing", "4whs_seen", "3whs_not_seen",
    "pkt_low_ttl", "client_mac_changed", "server_mac_changed", "window_closed_before_data",
    "window_too_large", "excessive_overlaps", "small_segments",
  ]

  var name: String { Self.names[Int(rawValue)] }

  /// What Snort's built-in rule of generator 129 with this number is about; empty: there is none. 6, 7 and 12 are about limits, which
  /// are off unless somebody sets them, as in Snort.
  static func ofSnort(_ sid: UInt32) -> [StreamEvent] {
    switch sid {
    case 1: [.establishedSynResend, .establishedSynOtherSequence, .establishedSynToClient]
    case 2: [.dataOnSyn]
    case 3: [.dataAfterFin]
    case 4: [.invalidTimestamp]
    case 5: [.segmentBeforeBase]
    case 6: [.windowTooLarge]
    case 7: [.excessiveOverlaps]
    case 8: [.dataAfterReset]
    case 9: [.clientMoved]
    case 10: [.serverMoved]
    case 11: [.noFlags]
    case 12: [.smallSegments]
    case 13: [.fourWayHandshake]
    case 14: [.timestampMissing]
    case 15: [.resetInvalidAck]
    case 16: [.finWait1FinWrongSequence, .finWait2FinWrongSequence]
    case 17: [.ackBeyondFin]
    case 18: [.dataToReset]
    case 19: [.windowClosed]
    case 20: [.noHandshake]
    default: []
    }
  }

  /// Whether it is told of while a stream is put together.
  var isOfReassembly: Bool {
    switch self {
    case .segmentBeforeBase, .noSegment, .sequenceGap, .overlapDifferentData, .depthReached, .insertMemoryLimit,
      .insertLimit, .insertInvalid, .urgentLimit, .excessiveOverlaps:
      true
    default: false
    }
  }

  /// A segment about which this is told is not a part of the connection: hosts take no notice of it.
  var isInvalid: Bool {
    switch self {
    case .rightSequenceWrongAck, .wrongSequenceWrongAck, .synAckWrongAck, .synAckInWrongDirection, .ackDataInject,
      .closeWaitAckOutOfWindow, .closeWaitInvalidAck, .closingAckWrongSequence, .closingInvalidAck,
      .establishedOutOfWindow, .establishedInvalidAck, .establishedSynAckOtherAck, .establishedSynAckOtherSequence,
      .finInvalidAck, .finWait1AckWrongSequence, .finWait1InvalidAck, .finWait2AckWrongSequence, .finWait2InvalidAck,
      .lastAckWrongSequence, .lastAckInvalidAck, .timeWaitWrongSequence, .timeWaitInvalidAck, .invalidTimestamp,
      .invalidAck, .resetInvalidAck, .lowTTL:
      true
    default: false
    }
  }

  init?(name: some StringProtocol) {
    guard let index = Self.names.firstIndex(where: { $0 == name }) else { return nil }
    self.init(rawValue: UInt8(truncatingIfNeeded: index))
  }
}

/// The events of one packet.
struct StreamEvents: BitwiseCopyable {
  private var low: UInt64 = 0
  private var high: UInt64 = 0

  var isEmpty: Bool { low | high == 0 }

  /// Those that tell of segments of which hosts take no notice.
  static let invalid: StreamEvents = {
    var events = StreamEvents()
    for event in StreamEvent.allCases where event.isInvalid { events.insert(event) }
    return events
  }()

  func isDisjoint(with other: StreamEvents) -> Bool { low & other.low | high & other.high == 0 }

  mutating func insert(_ event: StreamEvent) {
    let bit = UInt64(1) << UInt64(event.rawValue % 64)
    if event.rawValue < 64 { low |= bit } else { high |= bit }
  }

  func contains(_ number: UInt8) -> Bool {
    (number < 64 ? low : high) >> UInt64(number % 64) & 1 != 0
  }
}
