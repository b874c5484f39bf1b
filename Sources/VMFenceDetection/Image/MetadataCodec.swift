import VMFenceCore

// A rule's metadata in the image: numbers, then texts as length and UTF-8, lists as count and elements.

extension ByteWriter {
  mutating func metadata(_ value: RuleMetadata) {
    u32(value.gid)
    u32(value.sid)
    u32(value.revision)
    u32(UInt32(clamping: value.priority))
    u8(value.action.rawValue)
    u8(value.target?.rawValue ?? 0)
    text(value.message)
    text(value.classification)
    text(value.classificationText)
    texts(value.references)
    texts(value.captures)
    u32(UInt32(value.metadata.count))
    // By key: equal rules give equal bytes.
    for (key, values) in value.metadata.sorted(by: { $0.key < $1.key }) {
      text(key)
      texts(values)
    }
    u8(value.place == nil ? 0 : 1)
    if let place = value.place {
      text(place.file)
      u32(UInt32(clamping: place.line))
      u32(UInt32(clamping: place.column))
    }
  }

  private mutating func text(_ text: String) {
    let utf8 = Array(text.utf8)
    u32(UInt32(utf8.count))
    append(utf8)
  }

  private mutating func texts(_ values: [String]) {
    u32(UInt32(values.count))
    for value in values { text(value) }
  }
}

/// Reads metadata; nil where the bytes are not what the writer makes.
struct MetadataReader {
  private var offset: Int
  private let end: Int

  /// - Precondition: the range lies inside the bytes read from.
  init(offset: Int, count: Int) {
    self.offset = offset
    end = offset + count
  }

  /// The whole record, which has to end where the range does.
  mutating func metadata(in bytes: RawSpan) -> RuleMetadata? {
    guard let gid = u32(bytes), let sid = u32(bytes), let revision = u32(bytes), let priority = u32(bytes),
      let actionNumber = u8(bytes), let action = RuleAction(rawValue: actionNumber), let targetNumber = u8(bytes),
      let message = text(bytes),
      let classification = text(bytes), let classificationText = text(bytes), let references = texts(bytes),
      let captures = texts(bytes), let keyCount = u32(bytes)
    else { return nil }
    var values: [String: [String]] = [:]
    for _ in 0..<keyCount {
      guard let key = text(bytes), let list = texts(bytes), values.updateValue(list, forKey: key) == nil else {
        return nil
      }
    }
    guard let hasPlace = u8(bytes), hasPlace <= 1 else { return nil }
    var place: SourcePlace?
    if hasPlace == 1 {
      guard let file = text(bytes), let line = u32(bytes), let column = u32(bytes) else { return nil }
      place = SourcePlace(file: file, line: Int(line), column: Int(column))
    }
    let target = RuleMetadata.Target(rawValue: targetNumber)
    guard offset == end, target != nil || targetNumber == 0 else { return nil }
    var result = RuleMetadata(
      gid: gid, sid: sid, revision: revision, message: message, classification: classification,
      classificationText: classificationText, priority: Int(priority), references: references, metadata: values,
      action: action, place: place, target: target)
    result.captures = captures
    return result
  }

  private mutating func u8(_ bytes: RawSpan) -> UInt8? {
    guard offset < end else { return nil }
    defer { offset += 1 }
    return bytes.u8(offset)
  }

  private mutating func u32(_ bytes: RawSpan) -> UInt32? {
    guard end - offset >= 4 else { return nil }
    defer { offset += 4 }
    return bytes.u32le(offset)
  }

  private mutating func text(_ bytes: RawSpan) -> String? {
    guard let count = u32(bytes), Int(count) <= end - offset else { return nil }
    defer { offset += Int(count) }
    return String(decoding: (0..<Int(count)).map { bytes.u8(offset + $0) }, as: UTF8.self)
  }

  private mutating func texts(_ bytes: RawSpan) -> [String]? {
    guard let count = u32(bytes) else { return nil }
    var result: [String] = []
    // Each takes 4 bytes at least, so the count is bounded by what is there.
    guard Int(count) <= (end - offset) / 4 else { return nil }
    for _ in 0..<count {
      guard let text = text(bytes) else { return nil }
      result.append(text)
    }
    return result
  }
}
