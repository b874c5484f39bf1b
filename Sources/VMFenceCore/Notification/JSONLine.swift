/// Writes one JSON object (RFC 8259) as one line, members in the order in which they are given, so that equal input gives
/// equal bytes. Whatever a text holds, no line break comes out.
package struct JSONLine {
  /// The longest text that is written, in bytes of UTF-8; what is longer is cut there and ends in "…".
  package static let textLimit = 16_384

  package private(set) var bytes: [UInt8] = []
  /// Whether the next member is the first of its object or array.
  private var isFirst = true

  package init() { bytes.reserveCapacity(1_024) }

  package mutating func object(_ key: String? = nil, _ body: (inout JSONLine) -> Void) {
    separate(key)
    nest("{", "}", body)
  }

  package mutating func array<Element>(
    _ key: String, _ elements: some Sequence<Element>, _ body: (inout JSONLine, Element) -> Void
  ) {
    separate(key)
    nest("[", "]") { json in
      for element in elements { body(&json, element) }
    }
  }

  /// A member of an object; nothing when the text is nil.
  package mutating func member(_ key: String, _ text: String?) {
    guard let text else { return }
    separate(key)
    append(text)
  }

  package mutating func member<Number: FixedWidthInteger>(_ key: String, _ number: Number?) {
    guard let number else { return }
    separate(key)
    bytes += String(number).utf8
  }

  package mutating func member(_ key: String, _ flag: Bool) {
    separate(key)
    bytes += (flag ? "true" : "false").utf8
  }

  /// Bytes in base64 (RFC 4648 §4), however many.
  package mutating func member(_ key: String, base64 data: [UInt8]) {
    separate(key)
    bytes.append(UInt8(ascii: "\""))
    bytes += Base64.encode(data)
    bytes.append(UInt8(ascii: "\""))
  }

  /// An element of an array.
  package mutating func element(_ text: String) {
    separate(nil)
    append(text)
  }

  package mutating func element(_ number: some FixedWidthInteger) {
    separate(nil)
    bytes += String(number).utf8
  }

  private mutating func nest(_ open: Unicode.Scalar, _ close: Unicode.Scalar, _ body: (inout JSONLine) -> Void) {
    bytes.append(UInt8(ascii: open))
    isFirst = true
    body(&self)
    bytes.append(UInt8(ascii: close))
    isFirst = false
  }

  private mutating func separate(_ key: String?) {
    if !isFirst { bytes.append(UInt8(ascii: ",")) }
    isFirst = false
    guard let key else { return }
    append(key)
    bytes.append(UInt8(ascii: ":"))
  }

  /// Appends `text` as a JSON string. Escaped is what the RFC demands, and besides it everything that acts on a terminal,
  /// on a reader by lines, or on the order in which text is shown.
  private mutating func append(_ text: String) {
    bytes.append(UInt8(ascii: "\""))
    // Most texts are written as they are, all at once.
    if Self.isPlain(text.utf8.span) { bytes.append(contentsOf: text.utf8) } else { appendEscaped(text) }
    bytes.append(UInt8(ascii: "\""))
  }

  /// Whether it is a short text of printable ASCII with nothing to escape.
  private static func isPlain(_ text: Span<UInt8>) -> Bool {
    guard text.count <= textLimit else { return false }
    for index in text.indices {
      let byte = text[index]
      guard byte >= 0x20, byte < 0x7F, byte != UInt8(ascii: "\""), byte != UInt8(ascii: "\\") else { return false }
    }
    return true
  }

  private mutating func appendEscaped(_ text: String) {
    let start = bytes.count
    for scalar in text.unicodeScalars {
      guard bytes.count - start < Self.textLimit else {
        bytes += "…".utf8
        break
      }
      switch scalar {
      case "\"": bytes += "\\\"".utf8
      case "\\": bytes += "\\\\".utf8
      case "\n": bytes += "\\n".utf8
      case "\r": bytes += "\\r".utf8
      case "\t": bytes += "\\t".utf8
      case _ where scalar.actsOnDisplay:
        for unit in scalar.utf16 { bytes += "\\u\(unit.hexadecimal(width: 4))".utf8 }
      default: bytes += scalar.utf8
      }
    }
  }
}
