import VMFenceCore

/// Options that look at bytes, and those that choose which bytes.
extension RuleOptionParser {
  /// Variables of one rule at the most.
  static let variableMaximum = 16

  mutating func payloadOption(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    case "content": try content(name, value)
    case "nocase", "offset", "depth", "distance", "within", "rawbytes", "fast_pattern", "startswith", "endswith":
      try modifier(name, value)
    case "replace": try replace(name, value)
    // Chooses what is searched for first; never changes what matches.
    case "prefilter": try none(name, value)
    case "pcre": try pcre(name, value)
    case "regex": try regex(name, value)
    case "sd_pattern": try sensitivePattern(name, value)
    case "byte_test": try byteTest(name, value)
    case "byte_jump": try byteJump(name, value)
    case "byte_extract": try byteExtract(name, value)
    case "byte_math": try byteMath(name, value)
    case "isdataat": try dataAt(name, value)
    case "bsize", "bufferlen": try length(name, value)
    case "base64_decode": try base64Decode(name, value)
    case "entropy": try entropy(name, value)
    case "md5", "sha256", "sha512": try digest(text, name, value)
    case "protected_content": try protectedContent(name, value)
    case "hash", "length": try digestModifier(text, name, value)
    case "rpc": try rpc(name, value)
    case "asn1": try asn1(name, value)
    case "ber_data", "ber_skip": try ber(name, value, skips: text == "ber_skip")
    case "cvs": try cvs(name, value)
    case "absent": try absent(name, value)
    case "dataset": try dataSet(name, value)
    case "datarep": try dataReputation(name, value)
    default: return try chooseBuffer(text, name, value)
    }
    return true
  }

  private mutating func chooseBuffer(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    switch text {
    // Nothing normalises the payload: raw and decoded are the same.
    case "pkt_data", "raw_data": buffer = .payload
    case "base64_data":
      guard tests.contains(where: \.isBase64Decode) else {
        throw RuleProblem(name.startIndex, "`base64_data` without `base64_decode` before it", "decode first")
      }
      buffer = RuleBuffer(.base64)
    default:
      guard dialect == .suricata else { return false }
      if let source = BufferSource.names[text] {
        buffer = RuleBuffer(source)
      } else if try !transform(text, name, value) {
        return false
      } else {
        return true
      }
    }
    try none(name, value)
    return true
  }

  mutating func finishPayload() throws(RuleProblem) {
    for (index, places) in contents {
      guard var content = content(at: index) else { continue }
      try check(&content, places)
      setContent(content, at: index)
    }
    if contents.count(where: { $0.places.fastPattern != 0 }) > 1,
      let last = contents.last(where: { $0.places.fastPattern != 0 })
    {
      throw RuleProblem(last.places.fastPattern, "a second `fast_pattern` in one rule", "keep one of them")
    }
    for test in tests {
      guard case .payload(let test) = test, case .digest(let digest) = test.check else { continue }
      guard digest.length > 0, digest.digest.count == digest.algorithm.byteCount else {
        throw RuleProblem(
          digestPlace, "a digest needs its length, and \(digest.algorithm.byteCount) bytes for `\(digest.algorithm)`",
          "say over how many bytes it was made: `length`, and with protected_content which `hash`")
      }
    }
  }

  func content(at index: Int) -> ContentTest? { tests[index].content }

  mutating func setContent(_ content: ContentTest, at index: Int) {
    guard case .payload(var test) = tests[index] else { return }
    test.check = .content(content)
    tests[index] = .payload(test)
  }

  // MARK: Transforms

  /// Suricata's transforms of the buffer chosen last.
  private mutating func transform(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Bool {
    let simple: [String: BufferTransform] = [
      "dotprefix": .dotPrefix, "to_md5": .md5, "to_sha1": .sha1, "to_sha256": .sha256, "to_lowercase": .lowercase,
      "to_uppercase": .uppercase, "strip_whitespace": .stripWhitespace, "compress_whitespace": .compressWhitespace,
      "url_decode": .urlDecode, "domain": .domain, "tld": .topLevelDomain, "header_lowercase": .lowercaseNames,
      "strip_pseudo_headers": .stripPseudoHeaders,
    ]
    let found: BufferTransform
    if let transform = simple[text] {
      try none(name, value)
      found = transform
    } else {
      switch text {
      case "xor" where dialect == .suricata && value?.trimmed.first != UInt8(ascii: "\""):
        found = try xorWithin(name, required(name, value))
      case "xor": found = try xor(name, value)
      case "from_base64": found = .base64(try fromBase64(name, value))
      case "pcrexform":
        let text = try required(name, value)
        let (body, _) = try quotedExpression(name, text)
        let test = RegexTest(pattern: Array(body), options: 0)
        try check(test, name, body)
        found = .capture(test)
      case "subslice": found = try slice(name, value)
      case "gunzip": found = .gunzip(maximum: try decompressedMaximum(name, value))
      case "zlib_deflate": found = .inflate(maximum: try decompressedMaximum(name, value))
      default: return false
      }
    }
    guard buffer.transforms.count < 8 else {
      throw RuleProblem(name.startIndex, "more than 8 transforms of one buffer", "take some out")
    }
    buffer.transforms.append(found)
    return true
  }

  /// `[offset N,]extract LENGTH POSITION`: so many bytes of the buffer, there, are the key for what begins at the offset.
  private func xorWithin(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>
  ) throws(RuleProblem) -> BufferTransform {
    var (offset, key): (UInt32, (length: UInt8, position: UInt32)?) = (0, nil)
    for part in value.split(at: UInt8(ascii: ",")) {
      let words = part.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 }).map(\.text)
      let numbers = words.dropFirst().map { UInt32($0) ?? .max }
      if words.count == 2, words[0] == "offset", numbers[0] <= 65_535 {
        offset = numbers[0]
      } else if words.count == 3, words[0] == "extract", (1...255).contains(numbers[0]), numbers[1] <= 65_535 {
        key = (UInt8(numbers[0]), numbers[1])
      } else {
        throw RuleProblem(
          part.startIndex, "\(name.shown): \(part.shown) is not known",
          "write a key in quotation marks, or offset N, extract LENGTH POSITION")
      }
    }
    guard let key else {
      throw RuleProblem(
        value.startIndex, "\(name.shown): \(value.shown) names no key", "add `extract LENGTH POSITION`")
    }
    return .xorWithin(offset: offset, keyOffset: key.position, keyLength: key.length)
  }

  private func xor(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) -> BufferTransform {
    let (body, _) = try quotedExpression(name, required(name, value))
    guard let key = Self.hexadecimal(body), !key.isEmpty, key.count <= 255 else {
      throw RuleProblem(
        body.startIndex, "\(name.shown): \(body.shown) is no key", "write 1 to 255 bytes as hexadecimal digits")
    }
    return .xor(key: key)
  }

  private func fromBase64(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> Base64Transform {
    var transform = Base64Transform(mode: .rfc4648, offset: 0, bytes: 0)
    guard let value = value?.trimmed, !value.isEmpty else { return transform }
    for argument in arguments(value) {
      switch argument.text {
      case "bytes": transform.bytes = UInt32(try integer(argument.name, argument.value, 1...65_535))
      case "offset": transform.offset = UInt32(try integer(argument.name, argument.value, 0...65_535))
      case "mode":
        switch argument.value?.text.lowercased() {
        case "rfc4648": transform.mode = .rfc4648
        case "rfc2045": transform.mode = .rfc2045
        case "strict": transform.mode = .strict
        default: throw RuleProblem(argument.name.startIndex, "no such mode", "use rfc4648, rfc2045 or strict")
        }
      default: throw RuleProblem(argument.name.startIndex, "\(argument.name.shown) is not known", "take it out")
      }
    }
    return transform
  }

  private func slice(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) -> BufferTransform {
    let items = list(try required(name, value))
    guard items.count <= 3, items.count < 3 || items[2].isText("truncate") else {
      throw RuleProblem(items[0].startIndex, "subslice is OFFSET[,LENGTH][,truncate]", "write it so")
    }
    let offset = Int32(try integer(name, items[0], -65_535...65_535))
    // `truncate` cuts a part that is longer than the buffer, which is done in any case.
    let length =
      items.count > 1 && !items[1].isText("truncate") ? Int32(try integer(name, items[1], -65_535...65_535)) : nil
    return .slice(offset: offset, length: length)
  }

  /// `max-size N`: bytes that are looked at of what was compressed.
  private func decompressedMaximum(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) -> UInt32 {
    guard let value = value?.trimmed, !value.isEmpty else { return 1024 }
    let items = arguments(value)
    guard items.count == 1, items[0].text == "max-size" else {
      throw RuleProblem(value.startIndex, "\(name.shown): \(value.shown) is not known", "write `max-size BYTES`")
    }
    return UInt32(try integer(items[0].name, items[0].value, 1...65_535))
  }

  /// Pairs of hexadecimal digits, blanks between them or not.
  static func hexadecimal(_ text: ArraySlice<UInt8>) -> [UInt8]? {
    var bytes: [UInt8] = []
    var half: UInt8?
    for byte in text where byte != 0x20 {
      guard let digit = byte.hexadecimalDigitValue else { return nil }
      if let first = half { bytes.append(first << 4 | digit) }
      half = half == nil ? digit : nil
    }
    return half == nil ? bytes : nil
  }
}

extension RuleTest {
  var isBase64Decode: Bool {
    if case .payload(let test) = self, case .base64 = test.check { true } else { false }
  }
}
