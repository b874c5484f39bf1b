import VMFenceCore

extension PayloadMatcher {
  /// Makes what `count` transforms from record `record` on make of `bytes`, into `scratch0` (depth 0) or `scratch2`; false when there
  /// is nothing to look at then.
  mutating func transform(_ record: Int, _ count: Int, depth: Int, _ bytes: RawSpan, image: RawSpan) -> Bool {
    // The number of turns decides which of the two is written first, so that the last writes the first of them.
    var writesFirst = count % 2 == 1
    for index in 0..<count {
      let record = record + index * TransformRecord.stride
      budget -= bytes.byteCount / 8 + 1
      // SAFETY: read from one scratch while the other is written; both live as long as this value.
      let made =
        if depth == 0 {
          unsafe writesFirst ? scratch1.bytes : scratch0.bytes
        } else {
          unsafe writesFirst ? scratch3.bytes : scratch2.bytes
        }
      let input = index == 0 ? bytes : unsafe made.bytes
      let isMade =
        switch (depth, writesFirst) {
        case (0, true): Self.apply(record, input, to: &scratch0, &regexes, &inflater, sections, image)
        case (0, false): Self.apply(record, input, to: &scratch1, &regexes, &inflater, sections, image)
        case (_, true): Self.apply(record, input, to: &scratch2, &regexes, &inflater, sections, image)
        case (_, false): Self.apply(record, input, to: &scratch3, &regexes, &inflater, sections, image)
        }
      guard isMade else { return false }
      writesFirst.toggle()
    }
    return true
  }

  /// Makes one transform.
  private static func apply(
    _ record: Int, _ bytes: RawSpan, to output: inout Scratch, _ regexes: inout RegexCache, _ inflater: inout Inflater,
    _ sections: ImageSections, _ image: RawSpan
  ) -> Bool {
    output.removeAll()
    let count = bytes.byteCount
    let word0 = image.u32le(record + TransformRecord.word0)
    let word1 = image.u32le(record + TransformRecord.word1)
    let patterns = sections[.patterns].offset
    switch TransformKind(rawValue: image.u8(record + TransformRecord.kind)) {
    case .dotPrefix:
      output.append(UInt8(ascii: "."))
      output.append(bytes)
    case .md5: MD5.digest(bytes).append(to: &output)
    case .sha1: SHA1.digest(bytes).append(to: &output)
    case .sha256: SHA256.digest(bytes).append(to: &output)
    case .lowercase: for index in 0..<count { output.append(bytes.u8(index).lowercasedASCII) }
    case .uppercase:
      for index in 0..<count {
        let byte = bytes.u8(index)
        output.append(byte &- 97 < 26 ? byte & 0xDF : byte)
      }
    case .stripWhitespace: for index in 0..<count where !isSpace(bytes.u8(index)) { output.append(bytes.u8(index)) }
    case .compressWhitespace: compress(bytes, to: &output)
    case .urlDecode: decodeURL(bytes, to: &output)
    case .xor:
      for index in 0..<count {
        output.append(bytes.u8(index) ^ image.u8(patterns + Int(word0) + index % Int(word1)))
      }
    case .xorWithin:
      let length = Int(image.u8(record + TransformRecord.small))
      guard Int(word1) + length <= count, Int(word0) <= count else { return false }
      for index in Int(word0)..<count {
        output.append(bytes.u8(index) ^ bytes.u8(Int(word1) + (index - Int(word0)) % length))
      }
    case .base64:
      let mode = Base64Transform.Mode(rawValue: image.u8(record + TransformRecord.small)) ?? .rfc4648
      let start = min(Int(word0), count)
      let end = word1 == 0 ? count : min(count, start + Int(word1))
      return Base64Decoder.decode(bytes.extracting(start..<end), mode, to: &output)
    case .capture:
      let regex = sections[.regexes].offset + Int(word0) * RegexRecord.stride
      guard
        regexes.matches(Int(word0), record: regex, patterns: patterns, image: image, subject: bytes, from: 0),
        let range = regexes.capture(Int(word0)), range.upperBound <= count
      else { return false }
      output.append(bytes.extracting(range))
    case .slice:
      let range = slice(
        Int(Int32(bitPattern: word0)),
        image.u8(record + TransformRecord.small) == 1 ? Int(Int32(bitPattern: word1)) : nil, count)
      output.append(bytes.extracting(range))
    case .gunzip: return inflater.inflate(bytes, .gzip, limit: Int(word0), to: &output)
    case .inflate: return inflater.inflate(bytes, .zlib, limit: Int(word0), to: &output)
    case .domain, .topLevelDomain:
      let part =
        image.u8(record + TransformRecord.kind) == TransformKind.domain.rawValue ? PublicSuffix.Part.domain : .suffix
      guard let range = PublicSuffix.find(part, in: bytes) else { return false }
      output.append(bytes.extracting(range))
    case .lowercaseNames: lowercaseNames(bytes, to: &output)
    case .stripPseudoHeaders: stripPseudoHeaders(bytes, to: &output)
    case nil: return false
    }
    return true
  }

  private static func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || (0x09...0x0D).contains(byte) }

  private static func compress(_ bytes: RawSpan, to output: inout Scratch) {
    var wasSpace = false
    for index in 0..<bytes.byteCount {
      let byte = bytes.u8(index)
      let isSpace = isSpace(byte)
      if !isSpace || !wasSpace { output.append(byte) }
      wasSpace = isSpace
    }
  }

  /// In each line, up to the colon.
  private static func lowercaseNames(_ bytes: RawSpan, to output: inout Scratch) {
    var isName = true
    for index in 0..<bytes.byteCount {
      let byte = bytes.u8(index)
      output.append(isName ? byte.lowercasedASCII : byte)
      if byte == UInt8(ascii: ":") { isName = false }
      if byte == 0x0A { isName = true }
    }
  }

  private static func stripPseudoHeaders(_ bytes: RawSpan, to output: inout Scratch) {
    var (isFirst, isPseudo) = (true, false)
    for index in 0..<bytes.byteCount {
      let byte = bytes.u8(index)
      if isFirst { isPseudo = byte == UInt8(ascii: ":") }
      if !isPseudo { output.append(byte) }
      isFirst = byte == 0x0A
    }
  }

  /// `+` becomes a blank, `%41` a byte; what is no such escape stays.
  private static func decodeURL(_ bytes: RawSpan, to output: inout Scratch) {
    var index = 0
    while index < bytes.byteCount {
      let byte = bytes.u8(index)
      if byte == UInt8(ascii: "%"), index + 2 < bytes.byteCount,
        let high = bytes.u8(index + 1).hexadecimalDigitValue, let low = bytes.u8(index + 2).hexadecimalDigitValue
      {
        output.append(high << 4 | low)
        index += 3
        continue
      }
      output.append(byte == UInt8(ascii: "+") ? 0x20 : byte)
      index += 1
    }
  }

  /// A negative offset counts from the end; so does a negative length.
  private static func slice(_ offset: Int, _ length: Int?, _ count: Int) -> Range<Int> {
    let start = offset < 0 ? max(0, count + offset) : min(offset, count)
    guard let length else { return start..<count }
    let end = length < 0 ? count + length : start + length
    return start..<max(start, min(end, count))
  }
}
