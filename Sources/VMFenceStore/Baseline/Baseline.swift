public import VMFenceCore

/// What a disk's protected files were when somebody said that they are right. Signed as a whole with an `IntegrityKey`, and
/// bound to the disk's name and to a generation that rises with each: neither an edited one nor an earlier one passes.
public struct Baseline: Sendable {
  /// The name of the disk: whatever the operator calls it, the same each time.
  public var disk: String
  /// From 1.
  public var generation: UInt64
  public var time: Timestamp
  /// The patterns of what is protected.
  public var patterns: [String]
  /// In the order of their keys.
  public var entries: [BaselineEntry]

  private static let table = "baseline"
  static func entryTable(_ disk: String) -> String { "baseline:" + disk }

  /// Writes a new baseline in the place of the one before, as a whole or not at all, and counts it beside the key and in the decision
  /// log.
  ///
  /// - Throws: `full`, `inputOutput`; then the one before stands, unless the message says that only the decision log could not be
  ///   written. `edited` when a count was tampered with.
  public static func write(
    disk: String, patterns: [String], entries: [BaselineEntry], at time: Timestamp, to store: some StateStore,
    key: IntegrityKey, log: BaselineLog? = nil
  ) throws(BaselineError) -> Baseline {
    let counter = GenerationFile(key)
    let stored = try header(of: disk, in: store)?.generation ?? 0
    // A scan has them in order: then there is no second copy.
    let isOrdered = zip(entries, entries.dropFirst()).allSatisfy { $0.precedes($1) }
    let baseline = Baseline(
      disk: disk, generation: max(stored, try counted(disk, key, log)) + 1, time: time, patterns: patterns,
      entries: isOrdered ? entries : entries.sorted { $0.precedes($1) })
    var changes: [StateChange] = []
    changes.reserveCapacity(entries.count + 2)
    changes.append(.removeRange(table: entryTable(disk), from: [], to: nil))
    var hmac = baseline.beginCode(key)
    for entry in baseline.entries {
      let (key, value) = (entry.key, entry.encoded)
      hmac.updateField(key)
      hmac.updateField(value)
      changes.append(.put(table: entryTable(disk), key: key, value: value))
    }
    changes.append(.put(table: table, key: Array(disk.utf8), value: baseline.headerBytes + hmac.code()))
    do throws(StateStoreError) { try store.commit(changes) } catch { throw BaselineError(error) }
    try counter.set(baseline.generation, of: disk)
    try log?.append(baseline, key: key)
    return baseline
  }

  /// How many were signed: the higher of what the key's own count and the decision log say.
  ///
  /// - Throws: `edited`: also when the log knows of some, and not of the last ones: it was cut.
  private static func counted(
    _ disk: String, _ key: IntegrityKey, _ log: BaselineLog?
  ) throws(BaselineError) -> UInt64 {
    let own = try GenerationFile(key).generation(of: disk)
    guard let logged = try log?.generation(of: disk, key: key), logged > 0 else { return own }
    // One less: a process ended between the two.
    guard logged + 1 >= own else {
      throw BaselineError(
        .edited,
        "the decision log knows of \(logged) baselines of \(disk.escapedForDisplay), and \(own) were signed: it was cut",
        remedy: "find out who did; restore the log from a copy")
    }
    return max(own, logged)
  }

  /// Reads a disk's baseline and verifies all of it.
  ///
  /// - Throws: `noBaseline`, `edited`, `old`, `inputOutput`.
  public static func read(
    disk: String, from store: some StateStore, key: IntegrityKey, log: BaselineLog? = nil
  ) throws(BaselineError) -> Baseline {
    let counted = try counted(disk, key, log)
    guard let header = try header(of: disk, in: store) else {
      guard counted == 0 else {
        throw BaselineError(
          .old, "the baseline of \(disk.escapedForDisplay) was removed: number \(counted) was signed",
          remedy: "find out who did; restore the store from a copy")
      }
      throw BaselineError(
        .noBaseline, "there is no baseline of \(disk.escapedForDisplay)", remedy: "take one with `integrity init`")
    }
    var baseline = Baseline(
      disk: disk, generation: header.generation, time: header.time, patterns: header.patterns, entries: [])
    var hmac = baseline.beginCode(key)
    var isSound = true
    do throws(StateStoreError) {
      try store.forEach(in: entryTable(disk)) { record throws(StateStoreError) in
        hmac.updateField(record.key)
        hmac.updateField(record.value)
        if let entry = BaselineEntry(record) { baseline.entries.append(entry) } else { isSound = false }
      }
    } catch { throw BaselineError(error) }
    guard isSound, HMACSHA256.areEqual(hmac.code(), header.code) else {
      throw BaselineError(
        .edited, "the baseline of \(disk.escapedForDisplay) is not what was signed: it was edited, or has another key",
        remedy: "find out who did; restore the store from a copy, and check again")
    }
    // More than is counted: the process ended between the two, and only the key's holder can have signed it.
    guard baseline.generation >= counted else {
      throw BaselineError(
        .old,
        "the baseline of \(disk.escapedForDisplay) is number \(baseline.generation), and number \(counted) was signed: "
          + "an old one was put back", remedy: "find out who did; restore the store from a later copy")
    }
    return baseline
  }

  // MARK: Header

  private struct Header {
    var generation: UInt64
    var time: Timestamp
    var patterns: [String]
    var code: [UInt8]
  }

  /// Version, generation, time, number of patterns, and each with its length; the code follows.
  private var headerBytes: [UInt8] {
    var bytes = StateKey.number(1) + StateKey.number(generation) + StateKey.number(UInt64(bitPattern: time.nanoseconds))
    bytes += StateKey.number(UInt64(patterns.count))
    for pattern in patterns { bytes += StateKey.number(UInt64(pattern.utf8.count)) + Array(pattern.utf8) }
    return bytes
  }

  private func beginCode(_ key: IntegrityKey) -> HMACSHA256 {
    var hmac = HMACSHA256(key: key.bytes)
    hmac.updateField(Array("vmfence baseline 1".utf8))
    hmac.updateField(Array(disk.utf8))
    hmac.updateField(headerBytes)
    return hmac
  }

  private static func header(of disk: String, in store: some StateStore) throws(BaselineError) -> Header? {
    let bytes: [UInt8]
    do throws(StateStoreError) {
      guard let found = try store.value(in: table, for: Array(disk.utf8)) else { return nil }
      bytes = found
    } catch { throw BaselineError(error) }
    guard let header = parse(bytes) else {
      throw BaselineError(
        .edited, "the baseline of \(disk.escapedForDisplay) is not what was signed: its header cannot be read",
        remedy: "find out who did; restore the store from a copy")
    }
    return header
  }

  private static func parse(_ bytes: [UInt8]) -> Header? {
    bytes.withRawSpan { span in
      guard span.byteCount >= 64, span.u64(0) == 1, span.u64(24) <= UInt64(bytes.count) else { return nil }
      var header = Header(
        generation: span.u64(8), time: Timestamp(nanoseconds: Int64(bitPattern: span.u64(16))), patterns: [], code: [])
      guard header.generation < UInt64(Int64.max) else { return nil }
      var position = 32
      for _ in 0..<span.u64(24) {
        guard span.byteCount - position >= 8, span.u64(position) <= UInt64(span.byteCount - position - 8) else {
          return nil
        }
        let end = position + 8 + Int(span.u64(position))
        header.patterns.append(String(decoding: bytes[position + 8..<end], as: UTF8.self))
        position = end
      }
      guard span.byteCount - position == 32 else { return nil }
      header.code = Array(bytes[position...])
      return header
    }
  }
}
