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
  case regex(RegexTest)
  case byteTest(ByteTest)
  case byteJump(ByteJump)
  case byteExtract(ByteExtract)
  case byteMath(ByteMath)
  case dataAt(DataAtTest)
  case length(LengthTest)
  case base64(Base64Decode)
  case entropy(EntropyTest)
  case digest(DigestTest)
  case rpc(RPCTest)
  case asn1(ASN1Test)
  case ber(BERTest)
  /// CVE-2004-0396: an `Entry` line of CVS that a heap overflow was made with.
  case cvsEntry
  case sensitiveData(SensitiveDataTest)
  /// Suricata: the buffer is not there; `orElse`: or the other tests hold.
  case absent(orElse: Bool)
  case dataSet(DataSetTest)
}

/// A number in a rule, or the number of a variable that an earlier option of the rule sets.
package enum RuleNumber: Hashable, Sendable {
  case value(Int64)
  case variable(UInt8)
}

extension RuleNumber: ExpressibleByIntegerLiteral {
  package init(integerLiteral value: Int64) { self = .value(value) }

  /// nil for a variable.
  package var constant: Int? { if case .value(let value) = self { Int(value) } else { nil } }
}

/// A byte pattern.
package struct ContentTest: Hashable, Sendable {
  package var pattern: [UInt8]
  package var isNegated = false
  package var ignoresCase = false
  package var offset: RuleNumber?
  package var depth: RuleNumber?
  package var distance: RuleNumber?
  package var within: RuleNumber?
  /// Nothing here normalises the payload, so raw and decoded bytes are the same; kept for what comes.
  package var isRaw = false
  package var fastPattern: FastPattern?
  /// Suricata: the pattern ends at the end of the buffer.
  package var endsBuffer = false
  /// Inline: what is written over it in the packet.
  package var replacement: [UInt8]?
  package var place: SourcePlace

  package struct FastPattern: Hashable, Sendable {
    /// The part that is searched for; nil: all of it.
    package var offset: Int?
    package var length: Int?
  }

  package var isRelative: Bool { distance != nil || within != nil }
}

/// A regular expression of PCRE2: `pcre`, `regex`.
package struct RegexTest: Hashable, Sendable {
  package var pattern: [UInt8]
  /// Compile options of PCRE2 (`PCRE2_CASELESS` …).
  package var options: UInt32
  package var isNegated = false
  /// The subject begins at the end of the last match.
  package var isRelative = false
  /// Variables that its captures go to.
  package var captures: [VariableCapture] = []

  package init(pattern: [UInt8], options: UInt32) {
    self.pattern = pattern
    self.options = options
  }
}

/// How a number is read from a buffer.
package struct NumberReading: Hashable, Sendable {
  /// Bytes: 1 … 8, as digits up to 23; 0 (with `byte_jump` only) reads nothing.
  package var count: RuleNumber = .value(0)
  package var offset: RuleNumber = .value(0)
  package var isRelative = false
  package var isLittleEndian = false
  /// The byte order is that of the DCE/RPC message that the payload begins with.
  package var isDCE = false
  /// 0: binary; else the base of digits.
  package var base: UInt8 = 0
  /// The number is masked and shifted right by the mask's trailing zeros; 0: not.
  package var mask: UInt32 = 0
}

package struct ByteTest: Hashable, Sendable {
  package enum Comparison: UInt8, Hashable, Sendable {
    case less, greater, equal, lessOrEqual, greaterOrEqual
    /// `&`: a bit in common. `^`: not equal (both manuals say "or").
    case and, xor
  }
  package var reading = NumberReading()
  package var comparison = Comparison.equal
  package var isNegated = false
  package var value: RuleNumber = .value(0)
}

package struct ByteJump: Hashable, Sendable {
  package var reading = NumberReading()
  package var multiplier: UInt32 = 1
  package var aligns = false
  package var fromBeginning = false
  package var fromEnd = false
  package var postOffset: RuleNumber = .value(0)
}

package struct ByteExtract: Hashable, Sendable {
  package var reading = NumberReading()
  package var variable: UInt8 = 0
  package var multiplier: UInt32 = 1
  /// 0, 2 or 4.
  package var alignment: UInt8 = 0
}

package struct ByteMath: Hashable, Sendable {
  package enum Operation: UInt8, Hashable, Sendable {
    case add, subtract, multiply, divide, shiftLeft, shiftRight
  }
  package var reading = NumberReading()
  package var operation = Operation.add
  package var value: RuleNumber = .value(0)
  package var variable: UInt8 = 0
}

/// `isdataat`.
package struct DataAtTest: Hashable, Sendable {
  package var position: RuleNumber
  package var isRelative = false
  package var isNegated = false
}

/// `bsize`, `bufferlen`: the buffer's length in bytes, or what is left of it after the last match.
package struct LengthTest: Hashable, Sendable {
  package var number: NumberTest
  package var isRelative = false
}

package struct Base64Decode: Hashable, Sendable {
  /// Encoded bytes looked at; 0: all there are.
  package var bytes: UInt32 = 0
  package var offset: UInt32 = 0
  package var isRelative = false
}

/// Shannon's entropy of bytes, 0 … 8 bits.
package struct EntropyTest: Hashable, Sendable {
  package var bytes: UInt32 = 0
  package var offset: UInt32 = 0
  package var comparison = ByteTest.Comparison.equal
  package var isNegated = false
  package var value: Double = 0
}

/// `md5`, `sha256`, `sha512`, `protected_content`: the digest of some bytes.
package struct DigestTest: Hashable, Sendable {
  package enum Algorithm: UInt8, Hashable, Sendable, CaseIterable {
    case md5 = 0
    case sha256 = 1
    case sha512 = 2

    var byteCount: Int {
      switch self {
      case .md5: 16
      case .sha256: 32
      case .sha512: 64
      }
    }
  }
  package var algorithm: Algorithm
  package var digest: [UInt8]
  package var length: UInt32 = 0
  package var offset: RuleNumber = .value(0)
  package var isRelative = false
  package var isNegated = false
}

/// A call of ONC RPC (RFC 5531 §9); nil: any.
package struct RPCTest: Hashable, Sendable {
  package var program: UInt32
  package var version: UInt32?
  package var procedure: UInt32?
}

package struct ASN1Test: Hashable, Sendable {
  package var bitStringOverflow = false
  package var doubleOverflow = false
  package var oversizeLength: UInt32?
  package var offset: Int32 = 0
  package var isRelative = false
}

/// `ber_data` goes into an element of this type, `ber_skip` over it.
package struct BERTest: Hashable, Sendable {
  package var type: UInt8
  package var skips: Bool
  package var isOptional = false
}

/// `sd_pattern`: so many matches at least.
package struct SensitiveDataTest: Hashable, Sendable {
  package var regex: RegexTest
  package var threshold: UInt32
  /// Only numbers that Luhn's check accepts count.
  package var isCardNumber = false
}

extension RuleTest {
  /// The content that this is, if it is one.
  package var content: ContentTest? {
    guard case .payload(let test) = self, case .content(let content) = test.check else { return nil }
    return content
  }
}
