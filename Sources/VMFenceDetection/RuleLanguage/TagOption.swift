import VMFenceCore

/// `tag`: whose packets are logged after a match, and how many.
package struct TagEffect: Hashable, Sendable {
  /// Raw values stand in images.
  package enum Subject: UInt8, Hashable, Sendable, CaseIterable {
    case session = 1
    case source, destination
  }
  package var subject: Subject
  /// Of those that follow; 0: no limit of this kind.
  package var packets: UInt32 = 0
  package var seconds: UInt32 = 0
  package var bytes: UInt32 = 0

  package init(subject: Subject) { self.subject = subject }
}

extension RuleOptionParser {
  /// Packets that are logged when a rule does not say how many.
  private static let taggedPackets: UInt32 = 256

  private func tagMistake(_ name: ArraySlice<UInt8>, _ part: ArraySlice<UInt8>) -> RuleProblem {
    RuleProblem(
      part.startIndex, "\(name.shown): \(part.shown) is not known here",
      dialect == .snort3
        ? "write session, host_src or host_dst, and then packets N, seconds N or bytes N"
        : "write session or host, a count, packets, seconds or bytes, and for hosts src or dst")
  }

  mutating func tag(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>) throws(RuleProblem) {
    let parts = value.split(at: UInt8(ascii: ","))
    if let tag = dialect == .snort3 ? try snort3Tag(name, parts) : try positionalTag(name, parts) {
      effects.append(.tag(tag))
    }
  }

  /// `session|host_src|host_dst[, METRIC N …]`.
  private func snort3Tag(_ name: ArraySlice<UInt8>, _ parts: [ArraySlice<UInt8>]) throws(RuleProblem) -> TagEffect {
    let subjects: [String: TagEffect.Subject] = [
      "session": .session, "host_src": .source, "host_dst": .destination,
    ]
    guard let subject = subjects[parts[0].text] else { throw tagMistake(name, parts[0]) }
    var tag = TagEffect(subject: subject)
    for part in parts.dropFirst() {
      let words = part.split(separator: 0x20)
      guard words.count == 2, let number = UInt32(words[1].text), set(words[0].text, to: number, &tag) else {
        throw tagMistake(name, part)
      }
    }
    if parts.count == 1 { tag.packets = Self.taggedPackets }
    return tag
  }

  /// `session|host[,COUNT[,METRIC[,src|dst]]]`. Suricata counts the packet that matched, which is told of anyway; nil when no other is
  /// meant.
  private func positionalTag(_ name: ArraySlice<UInt8>, _ parts: [ArraySlice<UInt8>]) throws(RuleProblem) -> TagEffect?
  {
    guard parts[0].isText("session") || parts[0].isText("host") || parts[0].isText("exclusive") else {
      throw tagMistake(name, parts[0])
    }
    let isHost = parts[0].isText("host")
    var tag = TagEffect(subject: isHost ? .source : .session)
    var count = Self.taggedPackets
    var metric = "packets"
    for (index, part) in parts.enumerated().dropFirst() {
      switch (index, part.text) {
      case (1, let text):
        guard let number = UInt32(text) else { throw tagMistake(name, part) }
        count = number
      case (2, let text): metric = text
      case (3, "src"): if isHost { tag.subject = .source }
      case (3, "dst"): if isHost { tag.subject = .destination }
      case (3, "exclusive"): break
      default: throw tagMistake(name, part)
      }
    }
    if isHost, dialect == .suricata, parts.count < 4 { throw tagMistake(name, parts[0]) }
    guard set(metric, to: count, &tag) else { throw tagMistake(name, parts.count > 2 ? parts[2] : parts[0]) }
    guard metric == "packets", dialect == .suricata else { return tag }
    guard count > 1 else { return nil }
    tag.packets = count - 1
    return tag
  }

  /// False: there is no such metric.
  private func set(_ metric: String, to number: UInt32, _ tag: inout TagEffect) -> Bool {
    switch metric {
    case "packets": tag.packets = number
    case "seconds": tag.seconds = number
    case "bytes": tag.bytes = number
    default: return false
    }
    return true
  }
}
