import VMFenceCore

/// Walks over the bytes of a rule file and knows where it is.
struct RuleScanner {
  let file: String
  let bytes: [UInt8]
  private let lineStarts: [Int]
  var position = 0

  init(file: String, bytes: [UInt8]) {
    self.file = file
    self.bytes = bytes
    var starts = [0]
    for (index, byte) in bytes.enumerated() where byte == 0x0A { starts.append(index + 1) }
    lineStarts = starts
  }

  var isAtEnd: Bool { position >= bytes.count }

  func peek(_ ahead: Int = 0) -> UInt8? {
    let index = position + ahead
    return index < bytes.count ? bytes[index] : nil
  }

  /// Line and column of a byte; UTF-8 continuation bytes do not count as columns.
  func place(at offset: Int) -> SourcePlace {
    var low = 0
    var high = lineStarts.count
    while high - low > 1 {
      let middle = (low + high) / 2
      if lineStarts[middle] <= offset { low = middle } else { high = middle }
    }
    let column = bytes[lineStarts[low]..<min(max(offset, lineStarts[low]), bytes.count)].reduce(1) {
      $0 + ($1 & 0xC0 == 0x80 ? 0 : 1)
    }
    return SourcePlace(file: file, line: low + 1, column: column)
  }

  /// Skips blanks; over a line's end only when `acrossLines`, or when a backslash continues the line.
  mutating func skipBlanks(acrossLines: Bool) {
    while let byte = peek() {
      if byte == 0x20 || byte == 0x09 || byte == 0x0D {
        position += 1
      } else if byte == 0x0A, acrossLines {
        position += 1
      } else if byte == 0x5C, let length = continuationLength(at: position) {
        position += length
      } else if acrossLines, byte == UInt8(ascii: "#") {
        skipLine()
      } else {
        return
      }
    }
  }

  /// The length of a backslash, blanks and a line feed at `offset`; nil when there is no such thing.
  func continuationLength(at offset: Int) -> Int? { bytes[...].continuationLength(at: offset) }

  /// To the start of the next line, continued lines included.
  mutating func skipLine() {
    while let byte = peek() {
      if byte == 0x5C, let length = continuationLength(at: position) {
        position += length
        continue
      }
      position += 1
      if byte == 0x0A { return }
    }
  }

  /// This scanner at another place.
  func at(_ position: Int) -> RuleScanner {
    var other = self
    other.position = position
    return other
  }

  /// Letters, digits and what names are made of.
  mutating func name() -> ArraySlice<UInt8> {
    let start = position
    while let byte = peek(), Self.isNameByte(byte) { position += 1 }
    return bytes[start..<position]
  }

  static func isNameByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), UInt8(ascii: "."), UInt8(ascii: "-"):
      true
    default: false
    }
  }
}

/// Something wrong at one byte of a rule file.
struct RuleProblem: Error {
  var offset: Int
  var message: String
  var remedy: String
  /// Whether a rule is lost by it (and not a line of configuration).
  var rejectsRule: Bool

  init(_ offset: Int, _ message: String, _ remedy: String = "", rejectsRule: Bool = true) {
    self.offset = offset
    self.message = message
    self.remedy = remedy
    self.rejectsRule = rejectsRule
  }
}

extension Sequence<UInt8> {
  /// These bytes as text for a message: escaped, and cut when long.
  var shown: String {
    let bytes = Array(self)
    let text = String(decoding: bytes.prefix(80), as: UTF8.self).escapedForDisplay
    return "`\(text)\(bytes.count > 80 ? "…" : "")`"
  }

  var text: String { String(decoding: Array(self), as: UTF8.self) }
}

extension ArraySlice<UInt8> {
  /// Without blanks at both ends; indices stay those of the file.
  var trimmed: ArraySlice<UInt8> {
    func isBlank(_ byte: UInt8) -> Bool { byte == 0x20 || byte == 0x09 || byte == 0x0D || byte == 0x0A }
    var slice = self
    while let first = slice.first, isBlank(first) { slice.removeFirst() }
    while let last = slice.last, isBlank(last) { slice.removeLast() }
    return slice
  }

  /// The length of a backslash, blanks and a line feed at `offset`; nil when there is no such thing.
  func continuationLength(at offset: Int) -> Int? {
    guard self[offset] == 0x5C else { return nil }
    var index = offset + 1
    while index < endIndex, self[index] == 0x20 || self[index] == 0x09 || self[index] == 0x0D { index += 1 }
    return index < endIndex && self[index] == 0x0A ? index + 1 - offset : nil
  }

  func isText(_ text: StaticString) -> Bool {
    guard count == text.utf8CodeUnitCount else { return false }
    // SAFETY: a static string's bytes live for ever, and the count was compared.
    return unsafe elementsEqual(UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount))
  }

  /// A decimal number that fits into `Int32`, with an optional minus sign.
  var decimal: Int32? { Int32(text) }

  func split(at separator: UInt8) -> [ArraySlice<UInt8>] {
    split(separator: separator, omittingEmptySubsequences: false).map(\.trimmed)
  }
}
