/// The bytes that a payload option looks at.
package struct RuleBuffer: Hashable, Sendable {
  package var source: BufferSource

  package init(_ source: BufferSource) { self.source = source }

  /// What options look at when nothing else is named.
  package static let payload = RuleBuffer(.payload)
}

/// Where a buffer's bytes come from. Raw values stand in images.
///
/// Below 128: what a packet or a window of a stream has by itself. From 128 on: what the parsers of application layers publish for
/// each transaction (none yet).
package enum BufferSource: UInt8, Hashable, Sendable, CaseIterable {
  /// The packet's payload, or the window of a reassembled stream.
  case payload = 0
}
