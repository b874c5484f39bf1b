internal import CVectorscan
internal import Glibc
import VMFenceCore

/// Searches payloads with the databases of one image, in place. Allocates nothing while scanning. Used by one thread.
@safe
struct PatternScanner: ~Copyable {
  /// Ids of one scan at the most. More, and the caller evaluates the whole group.
  static let hitLimit = 1022

  // SAFETY: `hits` is a buffer of `HitBuffer.words(patterns:)` words, `scratch` was made for every database in `databases`; both are
  // freed once, in deinit. Databases lie in the image, which the owner keeps alive, or are private copies.
  private var scratch: OpaquePointer?
  private let hits: UnsafeMutablePointer<UInt32>
  private var databases: [OpaquePointer?] = unsafe []
  private var copies: [OpaquePointer] = unsafe []

  /// Databases that did not work in place and were copied.
  var privateCopies: Int { unsafe copies.count }

  /// `patterns`: of the group that has the most.
  private init(patterns: Int) {
    let words = HitBuffer.words(patterns: patterns)
    // SAFETY: uninitialised memory for plain numbers, all written here.
    unsafe hits = UnsafeMutablePointer<UInt32>.allocate(capacity: words)
    unsafe hits.initialize(repeating: 0, count: words)
    unsafe hits[HitBuffer.patterns] = UInt32(patterns)
  }

  deinit {
    // SAFETY: each came from the library or the allocation in init, and nothing uses them any more.
    unsafe _ = hs_free_scratch(scratch)
    for index in unsafe copies.indices { unsafe _ = hs_free_database(copies[index]) }
    unsafe hits.deallocate()
  }

  /// Prepares the databases of `rules`, and tries each on a pattern of its own. One that fails in place is copied.
  ///
  /// The image of `rules` has to live as long as the scanner.
  static func make(for rules: SnortRules) throws(RuleCompilationError) -> PatternScanner {
    let groups = rules.sections[.groups].count
    let records = rules.sections[.groups].offset
    let most = rules.image.withBytes { image in
      (0..<groups).map { Int(image.u32le(records + $0 * GroupRecord.stride + GroupRecord.patternCount)) }.max() ?? 0
    }
    var scanner = PatternScanner(patterns: most)
    // SAFETY: nil pointers point nowhere; each is set below to what was prepared.
    unsafe scanner.databases = Array(repeating: nil, count: groups)
    for group in 0..<groups {
      guard let offset = rules.databaseOffset(ofGroup: group) else { continue }
      // SAFETY: the image was validated: a database lies at this offset.
      let inPlace = unsafe OpaquePointer(rules.image.baseAddress + offset)
      if unsafe scanner.prepare(inPlace, group), rules.selfTest(group, &scanner) { continue }
      guard unsafe scanner.copyPrivately(inPlace, group), rules.selfTest(group, &scanner) else {
        throw RuleCompilationError(
          .badImage, "a pattern database of the rule image does not work here",
          remedy: "compile the rules again on this host, with the libhs that is installed")
      }
    }
    return scanner
  }

  private mutating func prepare(_ database: OpaquePointer, _ group: Int) -> Bool {
    // SAFETY: `scratch` is nil or a scratch of the library, which grows it when this database needs more.
    guard unsafe hs_alloc_scratch(database, &scratch) == HS_SUCCESS else { return false }
    unsafe databases[group] = database
    return true
  }

  private mutating func copyPrivately(_ inPlace: OpaquePointer, _ group: Int) -> Bool {
    var serialised: UnsafeMutablePointer<CChar>?
    var length = 0
    // SAFETY: the library checks the database's header; what it returns is ours to free(3).
    guard unsafe hs_serialize_database(inPlace, &serialised, &length) == HS_SUCCESS else { return false }
    defer { unsafe free(serialised) }
    var copy: OpaquePointer?
    guard unsafe hs_deserialize_database(serialised, length, &copy) == HS_SUCCESS, let copy = unsafe copy else {
      return false
    }
    unsafe copies.append(copy)
    return unsafe prepare(copy, group)
  }

  enum Outcome {
    /// So many ids, each once, from `hit(0)` on.
    case hits(Int)
    /// There were more than fit, or the library failed: take it that every pattern is there.
    case everything
  }

  /// Searches `bytes` for the patterns of `group`, which has some.
  mutating func scan(_ group: Int, _ bytes: RawSpan) -> Outcome {
    // SAFETY: `hits` has room for its header words, and for a stamp of each pattern, from `make` on.
    unsafe hits[HitBuffer.count] = 0
    unsafe hits[HitBuffer.overflow] = 0
    unsafe hits[HitBuffer.scan] &+= 1
    if unsafe hits[HitBuffer.scan] == 0 {
      for index in 0..<Int(unsafe hits[HitBuffer.patterns]) { unsafe hits[HitBuffer.stamps + index] = 0 }
      unsafe hits[HitBuffer.scan] = 1
    }
    let count = UInt32(clamping: bytes.byteCount)
    // SAFETY: the database was prepared for this scratch; the callback writes to `hits` only, within its bounds; the bytes
    // are valid through the call.
    let status = unsafe bytes.withUnsafeBytes { buffer in
      unsafe hs_scan(
        databases[group], buffer.baseAddress?.assumingMemoryBound(to: CChar.self), count, 0, scratch, recordHit, hits)
    }
    guard status == HS_SUCCESS, unsafe hits[HitBuffer.overflow] == 0 else { return .everything }
    return .hits(Int(unsafe hits[HitBuffer.count]))
  }

  /// - Precondition: `index` is below the count of the last scan.
  func hit(_ index: Int) -> Int {
    precondition(index >= 0 && index < Self.hitLimit, "a hit that is not there")
    // SAFETY: inside the buffer by the check above.
    return Int(unsafe hits[HitBuffer.ids + index])
  }
}

/// What a scan writes, in words: how many ids there are, a flag for "too many", the number of the scan, how many patterns there can be; the ids,
/// each once; and for each pattern the number of the scan that met it last. The library tells of each place where a pattern is: having it
/// tell of the first only (HS_FLAG_SINGLEMATCH) costs a fifth of all searching.
private enum HitBuffer {
  static let count = 0
  static let overflow = 1
  static let scan = 2
  static let patterns = 3
  static let ids = 4
  static let stamps = ids + PatternScanner.hitLimit

  static func words(patterns: Int) -> Int { stamps + patterns }
}

/// `match_event_handler`: writes the id behind those before. `context` points to a `HitBuffer`.
private func recordHit(
  _ id: UInt32, _ from: UInt64, _ to: UInt64, _ flags: UInt32, _ context: UnsafeMutableRawPointer?
) -> CInt {
  // SAFETY: `scan` gave a buffer of this layout, used by this thread only; ids and stamps are written within it.
  guard let hits = unsafe context?.assumingMemoryBound(to: UInt32.self) else { return 1 }
  guard unsafe id < hits[HitBuffer.patterns] else { return 1 }
  let stamp = HitBuffer.stamps + Int(id)
  if unsafe hits[stamp] == hits[HitBuffer.scan] { return 0 }
  unsafe hits[stamp] = hits[HitBuffer.scan]
  let count = unsafe hits[HitBuffer.count]
  guard count < PatternScanner.hitLimit else {
    unsafe hits[HitBuffer.overflow] = 1
    return 1
  }
  unsafe hits[HitBuffer.ids + Int(count)] = id
  unsafe hits[HitBuffer.count] = count + 1
  return 0
}
