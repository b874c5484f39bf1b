import VMFenceCore
import VMFencePackets

/// Bytes that rules which matched the frame being inspected overwrite in it (`replace`). Fixed capacity; what does not fit is counted.
struct Replacements {
  static let capacity = 64

  struct Entry: BitwiseCopyable {
    var rule: Int
    /// Where in the frame, and the bytes in the image's patterns.
    var offset: Int
    var source: Int
    var count: Int
    /// Nothing kept the rule from doing what it says.
    var isAccepted = false
  }

  private(set) var entries: [Entry] = []
  private(set) var lost: UInt64 = 0

  init() { entries.reserveCapacity(Self.capacity) }

  mutating func removeAll() { entries.removeAll(keepingCapacity: true) }

  mutating func insert(_ entry: Entry) {
    guard entries.count < Self.capacity else {
      lost += 1
      return
    }
    entries.append(entry)
  }

  mutating func noteLost() { lost += 1 }

  mutating func accept(_ rule: Int) {
    for index in entries.indices where entries[index].rule == rule { entries[index].isAccepted = true }
  }
}

extension SnortInspector {
  /// Inline: notes where the contents stand that a rule which matched this frame replaces. Only the payload of the frame's own packet can be
  /// replaced: not that of a stream, of a datagram put together, or of a tunnel, whose carriers would have to change too.
  mutating func noteReplacements(
    _ rule: Int, _ record: Int, _ match: borrowing PacketMatch, _ payload: RawSpan, _ frame: RawSpan, _ image: RawSpan
  ) {
    guard configuration.isInline else { return }
    guard match.source != .stream, match.origin == .wire, match.packet.tunnelDepth == 0, !match.isRewritten,
      match.packet.checksumOffset != nil
    else { return replacements.noteLost() }
    let start = Int(match.packet.payloadOffset)
    let first =
      matching.sections[.options].offset
      + (Int(image.u32le(record + RuleRecord.optionsStart)) + Int(image.u16le(record + RuleRecord.conditionCount)))
      * OptionRecord.stride
    let patterns = matching.sections[.patterns].offset
    let count = Int(image.u16le(record + RuleRecord.topPayloadCount))
    let isSuricata = image.u8(record + RuleRecord.flags) & RuleRecord.isSuricata != 0
    var index = 0
    while index < count {
      let run = first + index * OptionRecord.stride
      let tests = Int(image.u32le(OptionRecord.word(run, 2)))
      if matching.payloads.placesContents(
        run, tests, first, PayloadMatcher.Subject(isSuricata: isSuricata), payload, frame, image)
      {
        for level in 0..<tests {
          let test = run + (1 + level) * OptionRecord.stride
          let length = Int(image.u32le(OptionRecord.word(test, 7)))
          guard image.u8(test + OptionRecord.kind) == PayloadKind.content.rawValue, length > 0 else { continue }
          let at = matching.payloads.contentPosition(level)
          // Snort 3 lets it be longer than what it replaces, but not than the packet.
          guard at >= 0, at + length <= payload.byteCount else {
            replacements.noteLost()
            continue
          }
          replacements.insert(
            Replacements.Entry(
              rule: rule, offset: start + at, source: patterns + Int(image.u32le(OptionRecord.word(test, 6))),
              count: length))
        }
      }
      index += 1 + tests
    }
  }

  /// Makes the frame that goes on, where rules replaced something and none dropped it.
  mutating func rewriteFrame(
    _ packet: DecodedPacket, _ frame: RawSpan, _ checksums: ChecksumState, into output: inout InspectionOutput
  ) {
    defer { replacements.removeAll() }
    guard output.verdict == .pass, replacements.entries.contains(where: \.isAccepted),
      let checksum = packet.checksumOffset
    else { return }
    guard frame.byteCount <= rewritten.count else { return replacements.noteLost() }
    // SAFETY: the image is valid for its length as long as `rules` holds it, which outlasts this call.
    let image = unsafe UnsafeRawBufferPointer(start: rules.image.baseAddress, count: rules.image.byteCount).bytes
    rewritten.write(frame, at: 0)
    for entry in replacements.entries where entry.isAccepted {
      rewritten.write(image.extracting(entry.source..<entry.source + entry.count), at: entry.offset)
    }
    let range = Self.payload(packet)
    // SAFETY: nothing writes to it before the span's last use.
    let changed = unsafe rewritten.bytes(range).bytes
    // What is left to hardware is computed over the new bytes.
    if checksums != .notYetComputed {
      mendChecksum(
        at: checksum, isUDP: packet.transport == .udp, in: frame,
        old: Checksum.internet(frame, from: range.lowerBound, count: range.count), new: Checksum.internet(changed))
    }
    // SAFETY: as above.
    output.rewrite(unsafe rewritten.bytes(0..<frame.byteCount).bytes)
    counters.rewritten += 1
  }

  /// Writes a transport checksum into `rewritten`: that of `frame` with the payload's part exchanged (RFC 1624). `old` and `new`: the
  /// checksums of the payloads alone, which begin at an even distance from their transport header.
  mutating func mendChecksum(at offset: Int, isUDP: Bool, in frame: RawSpan, old: UInt16, new: UInt16) {
    let before = frame.u16(offset)
    // A sender of UDP over IPv4 may leave it out (RFC 768).
    if isUDP, before == 0 { return }
    var sum = UInt32(~before) + UInt32(old) + UInt32(~new)
    while sum > 0xFFFF { sum = sum & 0xFFFF + sum >> 16 }
    var after = ~UInt16(truncatingIfNeeded: sum)
    if isUDP, after == 0 { after = 0xFFFF }
    rewritten[offset] = UInt8(truncatingIfNeeded: after >> 8)
    rewritten[offset + 1] = UInt8(truncatingIfNeeded: after)
  }
}

extension DecodedPacket {
  /// Where in the frame the checksum stands that covers the payload; nil for transports without one that is known.
  fileprivate var checksumOffset: Int? {
    guard !isFragment else { return nil }
    switch transport {
    case .tcp: return Int(transportOffset) + 16
    case .udp: return Int(transportOffset) + 6
    case .icmp, .icmpv6: return Int(transportOffset) + 2
    case .sctp, .other, .none: return nil
    }
  }
}

extension PayloadMatcher {
  /// Whether the run of tests at `run` is about the payload as it came, and holds; then `contentPosition` says where each content stands.
  mutating func placesContents(
    _ run: Int, _ tests: Int, _ first: Int, _ subject: Subject, _ payload: RawSpan, _ frame: RawSpan, _ image: RawSpan
  ) -> Bool {
    image.u8(run + OptionRecord.small2) == BufferSource.payload.rawValue && image.u32le(OptionRecord.word(run, 1)) == 0
      && chainMatches(run + OptionRecord.stride, tests, first, depth: 0, subject, payload, frame: frame, image: image)
  }

  /// Where the content of this level matched last.
  func contentPosition(_ level: Int) -> Int { Int(progress[level].next) - 1 }
}
