internal import CPublicSuffix
import VMFenceCore

/// What of a name is under public administration (publicsuffix.org), by the list in libpsl. See libpsl.h.
enum PublicSuffix {
  /// Bytes of a name at the most (RFC 1035 §2.3.4).
  static let nameMaximum = 255

  enum Part {
    /// What one can register: `bbc.co.uk`.
    case domain
    /// What it is registered under: `co.uk`.
    case suffix
  }

  /// Where in the name the part lies; nil when it has none, or is no name.
  static func find(_ part: Part, in name: RawSpan) -> Range<Int>? {
    let count = name.byteCount
    // SAFETY: the list is a constant of the library.
    guard let list = unsafe psl_builtin(), count > 0, count <= nameMaximum else { return nil }
    // SAFETY: all of the buffer is written before it is read, with a zero at the end.
    return unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: count + 1) { buffer in
      for index in 0..<count {
        let byte = name.u8(index).lowercasedASCII
        // A name ends at a zero for the library; other alphabets would make it allocate.
        guard byte != 0, byte < 0x80 else { return nil }
        unsafe buffer[index] = CChar(byte)
      }
      unsafe buffer[count] = 0
      // SAFETY: what is found points into the buffer, or is nil.
      guard let start = buffer.baseAddress,
        let found = unsafe part == .domain ? psl_registrable_domain(list, start) : psl_unregistrable_domain(list, start)
      else { return nil }
      let offset = unsafe UnsafePointer(start).distance(to: found)
      return (0..<count).contains(offset) ? offset..<count : nil
    }
  }
}
