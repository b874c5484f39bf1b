import VMFenceCore

/// Options about lengths, encodings, digests and small protocols in a buffer.
extension RuleOptionParser {
  /// `bsize` (Suricata) and `bufferlen` (Snort 3).
  mutating func length(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    var items = list(try required(name, value))
    var isRelative = false
    if items.count > 1, dialect == .snort3, items[1].isText("relative") {
      isRelative = true
      items.removeLast()
    }
    guard items.count == 1 else {
      throw RuleProblem(items[1].startIndex, "\(name.shown): \(items[1].shown) is not known", "take it out")
    }
    let number = try number(name, items[0], maximum: UInt64(UInt32.max))
    add(.length(LengthTest(number: number, isRelative: isRelative)))
  }

  mutating func base64Decode(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    var decode = Base64Decode()
    guard buffer.source != .base64 else {
      throw RuleProblem(name.startIndex, "`base64_decode` of what it made", "decode once")
    }
    if let value = value?.trimmed, !value.isEmpty {
      for argument in arguments(value) {
        switch argument.text {
        case "bytes": decode.bytes = UInt32(try integer(argument.name, argument.value, 1...65_535))
        case "offset": decode.offset = UInt32(try integer(argument.name, argument.value, 0...65_535))
        case "relative": decode.isRelative = true
        default:
          throw RuleProblem(
            argument.name.startIndex, "\(argument.name.shown) is not known", "use bytes, offset or relative")
        }
      }
    }
    add(.base64(decode))
  }

  /// `[bytes N,] [offset N,] value OP N`, or `value OP N` with the sign beside the number.
  mutating func entropy(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    var test = EntropyTest()
    var hasValue = false
    for argument in arguments(value) {
      switch argument.text {
      case "bytes": test.bytes = UInt32(try integer(argument.name, argument.value, 0...65_535))
      case "offset": test.offset = UInt32(try integer(argument.name, argument.value, 0...65_535))
      case "value":
        let text = try required(argument.name, argument.value)
        let sign = text.prefix { !(0x30...0x39).contains($0) && $0 != UInt8(ascii: ".") && $0 != 0x20 }
        guard let number = Double(text[sign.endIndex...].trimmed.text), (0...8).contains(number) else {
          throw RuleProblem(
            text.startIndex, "\(name.shown): \(text.shown) is no entropy", "write OPERATOR and 0.0 to 8.0")
        }
        if !sign.isEmpty { (test.comparison, test.isNegated) = try comparison(name, sign.trimmed) }
        test.value = number
        hasValue = true
      default:
        throw RuleProblem(argument.name.startIndex, "\(argument.name.shown) is not known", "use bytes, offset or value")
      }
    }
    guard hasValue, test.comparison != .and, test.comparison != .xor else {
      throw RuleProblem(value.startIndex, "\(name.shown): no value to compare with", "for example `value >= 7.5`")
    }
    add(.entropy(test))
  }

  // MARK: Digests

  /// Snort 3: `[!]"HEX", length N[, offset N][, relative]`.
  mutating func digest(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) {
    let items = list(try required(name, value))
    let algorithm: DigestTest.Algorithm =
      switch text {
      case "md5": .md5
      case "sha256": .sha256
      default: .sha512
      }
    var test = DigestTest(algorithm: algorithm, digest: [])
    try digest(name, items[0], &test)
    for item in items.dropFirst() {
      guard let argument = arguments(item).first else { continue }
      switch argument.text {
      case "length": test.length = UInt32(try integer(argument.name, argument.value, 1...65_535))
      case "offset": test.offset = try numberOrVariable(argument.name, argument.value, -65_535...65_535)
      case "relative": test.isRelative = true
      default: throw RuleProblem(item.startIndex, "\(item.shown) is not known", "use length, offset or relative")
      }
    }
    digestPlace = name.startIndex
    add(.digest(test))
  }

  /// Snort 2: `protected_content:[!]"HEX"; hash:NAME; length:N; offset:N; distance:N;`.
  mutating func protectedContent(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    var test = DigestTest(algorithm: .md5, digest: [])
    try digest(name, required(name, value), &test)
    test.algorithm = DigestTest.Algorithm.allCases.first { $0.byteCount == test.digest.count } ?? .md5
    digestPlace = name.startIndex
    lastPattern = .digest
    add(.digest(test))
  }

  private func digest(
    _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>, _ test: inout DigestTest
  ) throws(RuleProblem) {
    var text = value
    if text.first == UInt8(ascii: "!") {
      test.isNegated = true
      text = text.dropFirst().trimmed
    }
    let (body, _) = try quotedExpression(name, text)
    guard let digest = Self.hexadecimal(body),
      DigestTest.Algorithm.allCases.contains(where: { $0.byteCount == digest.count })
    else {
      throw RuleProblem(
        body.startIndex, "\(name.shown): \(body.shown) is no digest", "write 16, 32 or 64 bytes as hexadecimal digits")
    }
    test.digest = digest
  }

  /// `hash` and `length` of Snort 2, and `offset` and `distance` when they follow `protected_content`.
  mutating func digestModifier(
    _ text: String, _ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?
  ) throws(RuleProblem) {
    guard lastPattern == .digest, case .payload(var test)? = tests.last, case .digest(var digest) = test.check else {
      throw RuleProblem(name.startIndex, "\(name.shown) stands before any `protected_content`", "put it after it")
    }
    switch text {
    case "hash":
      let value = try required(name, value)
      switch value.text.lowercased() {
      case "md5": digest.algorithm = .md5
      case "sha256": digest.algorithm = .sha256
      case "sha512": digest.algorithm = .sha512
      default: throw RuleProblem(value.startIndex, "\(value.shown) is no hash", "use md5, sha256 or sha512")
      }
    case "length": digest.length = UInt32(try integer(name, value, 1...65_535))
    case "offset": digest.offset = try numberOrVariable(name, value, -65_535...65_535)
    case "distance":
      digest.offset = try numberOrVariable(name, value, -65_535...65_535)
      digest.isRelative = true
    default: throw RuleProblem(name.startIndex, "\(name.shown) is no modifier of a digest", "use offset or distance")
    }
    test.check = .digest(digest)
    tests[tests.count - 1] = .payload(test)
  }

  // MARK: Protocols

  mutating func rpc(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let items = list(try required(name, value))
    guard items.count <= 3 else { throw RuleProblem(items[3].startIndex, "rpc is PROGRAM,[VERSION|*],[PROCEDURE|*]") }
    func part(_ index: Int) throws(RuleProblem) -> UInt32? {
      guard index < items.count, !items[index].isText("*") else { return nil }
      return UInt32(try integer(name, items[index], 0...0xFFFF_FFFF))
    }
    add(
      .rpc(
        RPCTest(
          program: UInt32(try integer(name, items[0], 0...0xFFFF_FFFF)), version: try part(1), procedure: try part(2))))
  }

  mutating func asn1(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    var test = ASN1Test()
    for argument in arguments(value) {
      switch argument.text {
      case "bitstring_overflow": test.bitStringOverflow = true
      case "double_overflow": test.doubleOverflow = true
      case "oversize_length": test.oversizeLength = UInt32(try integer(argument.name, argument.value, 1...0xFFFF_FFFF))
      case "absolute_offset": test.offset = Int32(try integer(argument.name, argument.value, 0...65_535))
      case "relative_offset":
        test.offset = Int32(try integer(argument.name, argument.value, -65_535...65_535))
        test.isRelative = true
      case "print": break
      default: throw RuleProblem(argument.name.startIndex, "asn1: \(argument.name.shown) is not known", "take it out")
      }
    }
    guard test.bitStringOverflow || test.doubleOverflow || test.oversizeLength != nil else {
      throw RuleProblem(
        value.startIndex, "asn1 looks for nothing", "name bitstring_overflow, double_overflow or oversize_length N")
    }
    add(.asn1(test))
  }

  mutating func ber(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?, skips: Bool) throws(RuleProblem) {
    let items = list(try required(name, value))
    var test = BERTest(type: UInt8(try integer(name, items[0], 0...255)), skips: skips)
    for item in items.dropFirst() {
      guard skips, item.isText("optional") else {
        throw RuleProblem(item.startIndex, "\(name.shown): \(item.shown) is not known", "take it out")
      }
      test.isOptional = true
    }
    add(.ber(test))
  }

  mutating func cvs(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    let value = try required(name, value)
    guard value.isText("invalid-entry") || value.isText("invalid_entry") else {
      throw RuleProblem(value.startIndex, "cvs: \(value.shown) is not known", "write `invalid-entry`")
    }
    add(.cvsEntry)
  }

  mutating func absent(_ name: ArraySlice<UInt8>, _ value: ArraySlice<UInt8>?) throws(RuleProblem) {
    // A buffer of an application layer has been named where the rule is not supported yet.
    guard buffer != .payload || !unsupported.isEmpty else {
      throw RuleProblem(name.startIndex, "`absent` without a buffer that can be missing", "name the buffer before it")
    }
    var orElse = false
    if let value = value?.trimmed, !value.isEmpty {
      guard value.isText("or_else") else {
        throw RuleProblem(value.startIndex, "absent: \(value.shown) is not known", "write `or_else`")
      }
      orElse = true
    }
    add(.absent(orElse: orElse))
  }
}
