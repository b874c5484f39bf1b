import VMFenceCore

/// A test of the bytes in one buffer.
package struct PayloadTest: Hashable, Sendable {
  package var buffer: RuleBuffer
  package var check: PayloadCheck

  package init(_ check: PayloadCheck, in buffer: RuleBuffer = .payload) {
    self.check = check
    self.buffer = buffer
  }
}

package enum PayloadCheck: Hashable, Sendable {
  case content(ContentTest)
}

/// A byte pattern in the packet's payload.
package struct ContentTest: Hashable, Sendable {
  package var pattern: [UInt8]
  package var isNegated = false
  package var ignoresCase = false
  package var offset: Int32?
  package var depth: Int32?
  package var distance: Int32?
  package var within: Int32?
  /// Nothing here normalises the payload, so raw and decoded bytes are the same; kept for what comes.
  package var isRaw = false
  package var fastPattern: FastPattern?
  /// Suricata: the pattern ends at the end of the buffer.
  package var endsBuffer = false
  package var place: SourcePlace

  package struct FastPattern: Hashable, Sendable {
    /// The part that is searched for; nil: all of it.
    package var offset: Int?
    package var length: Int?
  }

  package var isRelative: Bool { distance != nil || within != nil }
}

extension RuleTest {
  /// The content that this is, if it is one.
  package var content: ContentTest? {
    guard case .payload(let test) = self, case .content(let content) = test.check else { return nil }
    return content
  }
}
