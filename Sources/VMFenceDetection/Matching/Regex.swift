internal import CPcre2
import VMFenceCore

/// Regular expressions with PCRE2. See pcre2api(3).
enum Regex {
  /// Options of `pcre` and `regex` by their letters.
  static let caseless = UInt32(PCRE2_CASELESS)
  static let dotAll = UInt32(PCRE2_DOTALL)
  static let multiline = UInt32(PCRE2_MULTILINE)
  static let extended = UInt32(PCRE2_EXTENDED)
  static let anchored = UInt32(PCRE2_ANCHORED)
  static let dollarEndOnly = UInt32(PCRE2_DOLLAR_ENDONLY)
  static let ungreedy = UInt32(PCRE2_UNGREEDY)
  static let known = caseless | dotAll | multiline | extended | anchored | dollarEndOnly | ungreedy

  struct Mistake: Error {
    /// In bytes of the expression.
    var offset: Int
    var message: String
  }

  /// Compiles the expression only to see whether it is right. Returns the names of its captures, with their numbers.
  static func check(_ pattern: [UInt8], options: UInt32) throws(Mistake) -> [(group: Int, name: String)] {
    // SAFETY: bytes of an array, valid through the call.
    let compiled = unsafe try compile(pattern.span.bytes, options)
    // SAFETY: it came from the compiler and is freed once.
    defer { unsafe pcre2_code_free_8(compiled) }
    return unsafe names(compiled)
  }

  /// The table of names: for each two bytes of its number, and the name with a zero at its end (pcre2api(3), PCRE2_INFO_NAMETABLE).
  @unsafe
  private static func names(_ code: OpaquePointer) -> [(group: Int, name: String)] {
    var (count, stride): (UInt32, UInt32) = (0, 0)
    var table: UnsafePointer<UInt8>?
    // SAFETY: the code is valid; the library writes one value of each type, and the table has `count` entries of `stride` bytes.
    unsafe _ = pcre2_pattern_info_8(code, UInt32(PCRE2_INFO_NAMECOUNT), &count)
    unsafe _ = pcre2_pattern_info_8(code, UInt32(PCRE2_INFO_NAMEENTRYSIZE), &stride)
    unsafe _ = pcre2_pattern_info_8(code, UInt32(PCRE2_INFO_NAMETABLE), &table)
    guard let table = unsafe table, stride > 3 else { return [] }
    return (0..<Int(count)).map { index in
      let entry = unsafe UnsafeBufferPointer(start: table + index * Int(stride), count: Int(stride))
      let name = unsafe entry.dropFirst(2).prefix { $0 != 0 }
      return (Int(unsafe entry[0]) << 8 | Int(unsafe entry[1]), unsafe String(decoding: name, as: UTF8.self))
    }
  }

  /// The result is to be freed with `pcre2_code_free_8`.
  @unsafe
  static func compile(_ pattern: RawSpan, _ options: UInt32) throws(Mistake) -> OpaquePointer {
    var code: CInt = 0
    var offset = 0
    // SAFETY: the pattern is valid through the call.
    let compiled = unsafe pattern.withUnsafeBytes { bytes in
      unsafe pcre2_compile_8(
        bytes.baseAddress?.assumingMemoryBound(to: UInt8.self), bytes.count, options | UInt32(PCRE2_NEVER_UTF), &code,
        &offset, nil)
    }
    if let compiled = unsafe compiled { return unsafe compiled }
    throw Mistake(offset: offset, message: text(of: code))
  }

  private static func text(of code: CInt) -> String {
    var buffer = [UInt8](repeating: 0, count: 160)
    let count = buffer.count
    // SAFETY: the library writes into the buffer, with a zero at the end.
    let length = unsafe buffer.withUnsafeMutableBufferPointer {
      unsafe pcre2_get_error_message_8(code, $0.baseAddress, count)
    }
    return String(decoding: buffer.prefix(max(0, Int(length))), as: UTF8.self)
  }
}
