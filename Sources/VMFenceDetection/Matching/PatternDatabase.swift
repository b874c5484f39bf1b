internal import CVectorscan
import VMFenceCore

/// One pattern of a multi-pattern search.
struct SearchPattern: Hashable {
  var bytes: [UInt8]
  var ignoresCase: Bool
}

/// Making Vectorscan databases, and telling which library and machine they are for.
enum PatternDatabase {
  /// Longer patterns are searched by their beginning: what is found is evaluated in full anyway.
  static let patternLimit = 64
  /// Shorter ones are told of once in a search.
  private static let singleLimit = 4

  /// Compiles patterns (each of 1 ... `patternLimit` bytes) into a database for block mode; a pattern's position is its id. The
  /// result is laid out for use in place: valid wherever its first byte lies at a multiple of 64. Equal patterns give equal
  /// bytes. See `hs_compile_multi`, `hs_serialize_database`, `hs_deserialize_database_at`.
  static func compile(_ patterns: [SearchPattern]) throws(RuleCompilationError) -> [UInt8] {
    // Expressions of escapes only: the library's interface for literals takes a pattern that begins with a zero byte for empty.
    var text: [CChar] = []
    var starts: [Int] = []
    for pattern in patterns {
      precondition((1...patternLimit).contains(pattern.bytes.count), "a pattern that cannot be searched")
      starts.append(text.count)
      for byte in pattern.bytes { text += [0x5C, 0x78, hexadecimal(byte >> 4), hexadecimal(byte & 0xF)] }
      text.append(0)
    }
    // Short ones may be at nearly each byte, so that each is to be told of once; `PatternScanner` sees to that for the others, at less cost.
    let flags = patterns.map {
      ($0.bytes.count < singleLimit ? UInt32(HS_FLAG_SINGLEMATCH) : 0)
        | ($0.ignoresCase ? UInt32(HS_FLAG_CASELESS) : 0)
    }
    let ids = (0..<UInt32(patterns.count)).map { $0 }

    var database: OpaquePointer?
    var failure: UnsafeMutablePointer<hs_compile_error_t>?
    // SAFETY: every array has `patterns.count` elements and lives through the call; the expressions end in zero and lie in
    // `text`, which is not changed meanwhile.
    let status = unsafe text.withUnsafeBufferPointer { buffer in
      let expressions = unsafe starts.map { start in unsafe buffer.baseAddress.map { unsafe $0 + start } }
      return unsafe hs_compile_multi(
        expressions, flags, ids, UInt32(patterns.count), UInt32(HS_MODE_BLOCK), nil, &database, &failure)
    }
    guard status == HS_SUCCESS, let compiled = unsafe database else {
      // SAFETY: on HS_COMPILER_ERROR the library gives an error whose text ends in zero; it is freed once.
      let reason = unsafe failure.map { unsafe String(cString: $0.pointee.message) } ?? "error \(status)"
      unsafe hs_free_compile_error(failure)
      throw RuleCompilationError(
        .failed, "the pattern matcher cannot compile \(patterns.count) patterns: \(reason)",
        remedy: "shorten or remove the rules with the longest contents")
    }
    // SAFETY: `compiled` came from the compiler and is freed once.
    defer { unsafe _ = hs_free_database(compiled) }
    guard let placed = unsafe place(compiled) else {
      throw RuleCompilationError(
        .failed, "the pattern matcher cannot serialise a database", remedy: "free some memory")
    }
    return placed
  }

  private static func hexadecimal(_ digit: UInt8) -> CChar {
    CChar(bitPattern: digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10)
  }

  /// The database as it lies in an image.
  private static func place(_ database: OpaquePointer) -> [UInt8]? {
    var serialised: UnsafeMutablePointer<CChar>?
    var length = 0
    // SAFETY: the database is valid; the bytes that come back are ours to free(3).
    guard unsafe hs_serialize_database(database, &serialised, &length) == HS_SUCCESS else { return nil }
    defer { unsafe free(serialised) }
    var size = 0
    // SAFETY: `serialised` has `length` bytes.
    guard unsafe hs_serialized_database_size(serialised, length, &size) == HS_SUCCESS, size > 0 else { return nil }
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 64)
    // SAFETY: allocated above. Zeros first, so that bytes the library leaves out are equal every time.
    defer { unsafe memory.deallocate() }
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0)
    // SAFETY: `memory` has the size that the library asked for, at the alignment that images give.
    guard unsafe hs_deserialize_database_at(serialised, length, OpaquePointer(memory.baseAddress)) == HS_SUCCESS
    else { return nil }
    return unsafe Array(memory)
  }

  /// The size of the database that lies at `start`, by its own header; nil when this library cannot use it.
  ///
  /// `start`: the beginning of 64 readable bytes at least, at a multiple of 64.
  @unsafe
  static func size(at start: UnsafeRawPointer) -> Int? {
    var size = 0
    // SAFETY: the library looks at the header only, which is shorter than 64 bytes.
    guard unsafe hs_database_size(OpaquePointer(start), &size) == HS_SUCCESS else { return nil }
    return size
  }

  /// What databases are compiled for: the library's version and the processor's features. A database is only used where all
  /// of it is equal.
  static let machine: UInt64 = {
    var hash: UInt64 = 0xCBF2_9CE4_8422_2325
    func add(_ byte: UInt8) { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
    for byte in matcherVersion.utf8 { add(byte) }
    var platform = hs_platform_info_t()
    // SAFETY: the library fills in the structure that it is given.
    if unsafe hs_populate_platform(&platform) == HS_SUCCESS {
      let features = platform.cpu_features
      let tune = platform.tune
      for shift in stride(from: 0, to: 64, by: 8) { add(UInt8(truncatingIfNeeded: features >> UInt64(shift))) }
      for shift in stride(from: 0, to: 32, by: 8) { add(UInt8(truncatingIfNeeded: tune >> UInt32(shift))) }
    }
    add(UInt8(MemoryLayout<Int>.size))
    return hash
  }()

  /// For example "5.4.9".
  static let matcherVersion: String = {
    // SAFETY: a constant string of the library.
    unsafe hs_version().map { unsafe String(cString: $0) } ?? "unknown"
  }()
}
