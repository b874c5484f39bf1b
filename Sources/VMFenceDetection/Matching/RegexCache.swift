internal import CPcre2
import VMFenceCore

/// The regular expressions of one image, compiled when they are first needed, in this process. Matching allocates nothing after an
/// expression's first use. Used by one thread.
@safe
struct RegexCache: ~Copyable {
  /// Expressions compiled at the most; others match nothing, and are counted.
  static let compileLimit = 16_384
  /// Steps of one match (`pcre2_set_match_limit`), its depth, and its heap in KiB.
  static let matchLimit: UInt32 = 100_000
  static let depthLimit: UInt32 = 20_000
  static let heapLimit: UInt32 = 4096

  // SAFETY: codes, context, data and stack come from the library, are used by this value only and freed once, in deinit.
  private var codes: [OpaquePointer?]
  private var wasTried: [Bool]
  private let context: OpaquePointer?
  private let data: OpaquePointer?
  private let stack: OpaquePointer?

  private(set) var compiled: UInt64 = 0
  /// Expressions that run without compiled code: the processor or the sandbox does not let it.
  private(set) var withoutJIT: UInt64 = 0
  private(set) var limitHits: UInt64 = 0
  /// Expressions over `compileLimit`.
  private(set) var notCompiled: UInt64 = 0

  /// Of the last match, in bytes of its subject.
  private(set) var start = 0
  private(set) var end = 0

  init(count: Int) {
    // SAFETY: nil points nowhere.
    unsafe codes = Array(repeating: nil, count: count)
    wasTried = Array(repeating: false, count: count)
    guard count > 0 else {
      unsafe (context, data, stack) = (nil, nil, nil)
      return
    }
    // SAFETY: each may be nil when memory is short; every use copes with it.
    unsafe context = pcre2_match_context_create_8(nil)
    unsafe data = pcre2_match_data_create_8(UInt32(VariableCapture.groupLimit + 1), nil)
    unsafe stack = pcre2_jit_stack_create_8(32 * 1024, 512 * 1024, nil)
    if let context = unsafe context {
      unsafe _ = pcre2_set_match_limit_8(context, Self.matchLimit)
      unsafe _ = pcre2_set_depth_limit_8(context, Self.depthLimit)
      unsafe _ = pcre2_set_heap_limit_8(context, Self.heapLimit)
      unsafe pcre2_jit_stack_assign_8(context, nil, UnsafeMutableRawPointer(stack))
    }
  }

  deinit {
    // SAFETY: see above; the library takes nil.
    for index in unsafe codes.indices { unsafe pcre2_code_free_8(codes[index]) }
    unsafe pcre2_match_data_free_8(data)
    unsafe pcre2_match_context_free_8(context)
    unsafe pcre2_jit_stack_free_8(stack)
  }

  /// Whether expression `index` matches in `subject` at `from` or later; `start` and `end` then say where.
  ///
  /// - `record`: of the expression in `image`; `patterns`: where that section begins.
  mutating func matches(
    _ index: Int, record: Int, patterns: Int, image: RawSpan, subject: RawSpan, from: Int
  ) -> Bool {
    if !wasTried[index] { compile(index, record: record, patterns: patterns, image) }
    // SAFETY: what the library gave, or nil.
    guard let code = unsafe codes[index], let data = unsafe data, from <= subject.byteCount else { return false }
    // SAFETY: code and data are the library's; the subject is valid through the call.
    let result = unsafe subject.withUnsafeBytes { bytes in
      unsafe pcre2_match_8(
        code, bytes.baseAddress?.assumingMemoryBound(to: UInt8.self), bytes.count, from, 0, data, context)
    }
    guard result >= 0 else {
      if result != PCRE2_ERROR_NOMATCH { limitHits += 1 }
      return false
    }
    // SAFETY: after a match the vector has one pair at least.
    let vector = unsafe pcre2_get_ovector_pointer_8(data)
    guard let vector = unsafe vector else { return false }
    // `\K` in a look-ahead can put the start behind the end.
    start = unsafe min(vector[0], subject.byteCount)
    end = unsafe min(max(vector[0], vector[1]), subject.byteCount)
    return true
  }

  /// The first capture of the last match, which was made, or all of it when the expression has none.
  func capture(_ index: Int) -> Range<Int>? {
    // SAFETY: what the library gave, or nil.
    guard let data = unsafe data, let code = unsafe codes[index] else { return nil }
    var captures: UInt32 = 0
    // SAFETY: the library writes one number; the vector has two pairs, of which the second is set or `PCRE2_UNSET`.
    unsafe _ = pcre2_pattern_info_8(code, UInt32(PCRE2_INFO_CAPTURECOUNT), &captures)
    guard captures > 0, let vector = unsafe pcre2_get_ovector_pointer_8(data) else { return start..<end }
    let (low, high) = unsafe (vector[2], vector[3])
    return low <= high && high != Int.max && low >= 0 ? low..<high : nil
  }

  /// A capture of the last match, which was made; nil when that group took no part in it.
  func capture(group: Int) -> Range<Int>? {
    // SAFETY: what the library gave, or nil.
    guard let data = unsafe data, group <= VariableCapture.groupLimit else { return nil }
    // SAFETY: the vector has `groupLimit` + 1 pairs, each set by the library or `PCRE2_UNSET` after a match.
    guard let vector = unsafe pcre2_get_ovector_pointer_8(data), unsafe pcre2_get_ovector_count_8(data) > group else {
      return nil
    }
    let (low, high) = unsafe (vector[2 * group], vector[2 * group + 1])
    return low <= high && high != Int.max && low >= 0 ? low..<high : nil
  }

  private mutating func compile(_ index: Int, record: Int, patterns: Int, _ image: RawSpan) {
    wasTried[index] = true
    guard compiled < Self.compileLimit else {
      notCompiled += 1
      return
    }
    let first = patterns + Int(image.u32le(record + RegexRecord.offset))
    let pattern = image.extracting(first..<first + Int(image.u32le(record + RegexRecord.length)))
    do throws(Regex.Mistake) {
      // SAFETY: the pattern lies in the image; the code is freed in deinit.
      let code = unsafe try Regex.compile(pattern, image.u32le(record + RegexRecord.options))
      compiled += 1
      // SAFETY: a code just compiled.
      if unsafe pcre2_jit_compile_8(code, UInt32(PCRE2_JIT_COMPLETE)) != 0 { withoutJIT += 1 }
      unsafe codes[index] = code
    } catch {
      notCompiled += 1
    }
  }
}
