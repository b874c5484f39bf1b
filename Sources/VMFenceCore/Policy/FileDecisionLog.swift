internal import Glibc
internal import Synchronization

/// A decision log in one file: a header, then records one after another, in space that is allocated ahead.
///
/// ```
/// header  "VMFDLOG1" | zero to 64 bytes
/// record  length u32 | crc32c u32 | sequence u64 | payload (length bytes)
/// ```
/// Little-endian. The checksum covers length, sequence and payload; sequences rise by one; a length of zero is the end. The
/// payload is one decision. A record that is torn or damaged ends the log: what was appended before it is kept.
public final class FileDecisionLog: DecisionLog {
  static let magic = Array("VMFDLOG1".utf8)
  static let headerSize = 64
  static let frameSize = 16
  /// Space is allocated in steps of this many bytes.
  static let allocationStep = 1 << 16

  /// A file with records.
  private struct Part {
    var file: LogFile
    var end: Int
    var allocated: Int
    var sequence: UInt64

    mutating func makeRoom(for count: Int) throws(DecisionLogError) {
      guard end + count > allocated else { return }
      let target = (end + count + allocationStep - 1) / allocationStep * allocationStep
      try file.allocate(from: allocated, to: target)
      allocated = target
    }

    /// Where there is room already.
    mutating func write(_ records: (bytes: [UInt8], last: UInt64)) throws(DecisionLogError) {
      try file.write(records.bytes, at: end)
      end += records.bytes.count
      sequence = records.last
    }

    func records(_ decisions: [Decision]) throws(DecisionLogError) -> (bytes: [UInt8], last: UInt64) {
      var sequence = sequence
      return (try FileDecisionLog.records(decisions, &sequence), sequence)
    }
  }

  private struct State {
    var part: Part
    /// Where the log ended after it was opened or compacted last.
    var compactedEnd: Int
    /// The log is being compacted: what was appended since that began and is not in `next` yet.
    var meanwhile: [Decision]?
    /// What is to take the place of `part`, once it has all that is to be kept. From then on both get what is appended, so that
    /// it does not matter which of them a crash leaves.
    var next: Part?
  }

  /// How far a compaction is.
  package enum CompactionStep: Hashable, Sendable, CaseIterable { case begun, written, joined, replaced }

  public let path: String
  /// The log refuses to grow beyond this; `compact` makes it small again.
  public let byteLimit: Int
  private let state: Mutex<State>

  private init(path: String, byteLimit: Int, state: consuming State) {
    self.path = path
    self.byteLimit = byteLimit
    self.state = Mutex(state)
  }

  /// Opens or makes the log at `path` (mode 0600) and reads what it holds. One process at a time.
  ///
  /// `byteLimit`: in bytes; reading a log takes memory in proportion to it.
  /// - Throws: `notALog` for a file of another kind, which stays as it is; `inUse`; `permissionDenied`; `full`; `inputOutput`.
  public static func open(
    path: String, byteLimit: Int = 64 << 20
  ) throws(DecisionLogError) -> (log: FileDecisionLog, recovery: DecisionLogRecovery) {
    let file = try LogFile.open(path, flags: O_RDWR | O_CREAT)
    try file.lock()
    let bytes = try file.read(limit: byteLimit + allocationStep)
    if bytes.allSatisfy({ $0 == 0 }), bytes.count <= allocationStep {
      try file.write(magic + Array(repeating: 0, count: headerSize - magic.count), at: 0)
      try file.sync()
      try file.syncDirectory()
      let state = State(
        part: Part(file: file, end: headerSize, allocated: headerSize, sequence: 0), compactedEnd: headerSize)
      return (FileDecisionLog(path: path, byteLimit: byteLimit, state: state), DecisionLogRecovery(decisions: []))
    }
    guard bytes.count >= headerSize, bytes.starts(with: magic) else {
      throw DecisionLogError(
        .notALog, "\(path.escapedForDisplay) is not a decision log", at: SourcePlace(file: path),
        remedy: "choose another path, or move the file away")
    }
    let scan = scan(bytes, path: path)
    let state = State(
      part: Part(file: file, end: scan.end, allocated: bytes.count, sequence: scan.sequence), compactedEnd: headerSize)
    let log = FileDecisionLog(path: path, byteLimit: byteLimit, state: state)
    if scan.recovery.damage != nil { try log.cut() }
    return (log, scan.recovery)
  }

  /// A quarter of the limit, and twice what is needed; of a log that would be full before that, half of what was left.
  public var isCompactionDue: Bool {
    state.withLock { state in
      let needed = state.compactedEnd
      return state.part.end > max(byteLimit / 4, min(2 * needed, needed + max(0, byteLimit - needed) / 2))
    }
  }

  /// How large the log is, in bytes, without what is allocated ahead.
  public var byteCount: Int { state.withLock { $0.part.end } }

  public func append(_ decisions: [Decision]) throws(DecisionLogError) {
    guard !decisions.isEmpty else { return }
    let limit = byteLimit
    try locked { state throws(DecisionLogError) in
      let records = try state.part.records(decisions)
      // Both have records of the same lengths.
      let end = max(state.part.end, state.next?.end ?? 0) + records.bytes.count
      guard end <= limit else {
        throw DecisionLogError(
          .full, "the decision log has reached its limit of \(limit) bytes", remedy: "compact it, or raise the limit")
      }
      try state.part.makeRoom(for: records.bytes.count)
      if let others = try state.next?.records(decisions) {
        try state.next?.makeRoom(for: others.bytes.count)
        try state.next?.write(others)
      }
      try state.part.write(records)
      if state.next == nil { state.meanwhile?.append(contentsOf: decisions) }
    }
  }

  public func sync() throws(DecisionLogError) {
    // Copies of the descriptors, so that nobody who appends waits for the disk.
    let (copy, next) = try locked { state throws(DecisionLogError) in
      (try state.part.file.duplicate(), try state.next?.file.duplicate())
    }
    try copy.sync()
    try next?.sync()
  }

  /// Replaces the log by one that holds only `decisions` (see `PolicyUpdater.liveDecisions`): whole, or not at all.
  ///
  /// - Throws: as `open`; `full`, too, where they take more than `byteLimit`.
  public func compact(to decisions: [Decision]) throws(DecisionLogError) { try beginCompaction(to: decisions)() }

  /// The log that is there holds all until another takes its place that holds `decisions` and what is appended meanwhile; nobody who appends waits for the disk.
  public func beginCompaction(
    to decisions: [Decision]
  ) throws(DecisionLogError) -> @Sendable () throws(DecisionLogError) -> Void {
    try beginCompaction(to: decisions) { _ in }
  }

  /// - `after`: called after each step, without the lock.
  package func beginCompaction(
    to decisions: [Decision], after: @escaping @Sendable (CompactionStep) -> Void
  ) throws(DecisionLogError) -> @Sendable () throws(DecisionLogError) -> Void {
    let isFree = state.withLock { state in
      guard state.meanwhile == nil else { return false }
      state.meanwhile = []
      return true
    }
    guard isFree else {
      throw DecisionLogError(.inUse, "the decision log is being compacted already", at: SourcePlace(file: path))
    }
    after(.begun)
    return { [self] () throws(DecisionLogError) in
      defer { state.withLock { ($0.meanwhile, $0.next) = (nil, nil) } }
      do throws(DecisionLogError) {
        try replace(with: decisions, after: after)
      } catch {
        // The room that it takes is the log's. Once it has the log's name there is none of this one.
        // SAFETY: the path is a text that outlives the call.
        _ = unsafe unlink(path + ".new")
        throw error
      }
    }
  }

  private func replace(
    with decisions: [Decision], after: @Sendable (CompactionStep) -> Void
  ) throws(DecisionLogError) {
    var sequence: UInt64 = 0
    let records = try Self.records(decisions, &sequence)
    let bytes = Self.magic + Array(repeating: 0, count: Self.headerSize - Self.magic.count) + records
    try checkSize(bytes.count)
    let file = try LogFile.open(path + ".new", flags: O_RDWR | O_CREAT | O_TRUNC, as: path)
    try file.lock()
    try file.write(bytes, at: 0)
    try file.sync()
    after(.written)
    let end = bytes.count
    try locked { state throws(DecisionLogError) in
      var next = Part(file: file, end: end, allocated: end, sequence: sequence)
      let records = try next.records(state.meanwhile ?? [])
      try checkSize(end + records.bytes.count)
      try next.makeRoom(for: records.bytes.count)
      try next.write(records)
      state.next = next
    }
    after(.joined)
    try file.sync()
    try file.rename(to: path)
    after(.replaced)
    // Until the disk has the new name, a power cut may leave either: both get what is appended. If it does not get it, the log is what has the name all the same.
    defer {
      state.withLock { state in
        if let next = state.next { state.part = next }
        (state.next, state.compactedEnd) = (nil, end)
      }
    }
    try file.syncDirectory()
  }

  /// One that is larger could not be opened again.
  private func checkSize(_ count: Int) throws(DecisionLogError) {
    guard count > byteLimit else { return }
    throw DecisionLogError(
      .full, "what is still needed of the decision log takes \(count) bytes, and \(byteLimit) are allowed",
      at: SourcePlace(file: path), remedy: "raise the limit, or allow fewer measures")
  }

  /// Makes what follows the last sound record zero, so that no remainder of it is ever taken for a record.
  private func cut() throws(DecisionLogError) {
    try locked { state throws(DecisionLogError) in
      try state.part.file.truncate(to: state.part.end)
      state.part.allocated = state.part.end
      try state.part.file.sync()
    }
  }

  private func locked<Result: Sendable>(
    _ body: (inout State) throws(DecisionLogError) -> sending Result
  ) throws(DecisionLogError) -> Result {
    try state.withLock { state throws(DecisionLogError) in try body(&state) }
  }

  // MARK: Records

  private static func records(
    _ decisions: [Decision], _ sequence: inout UInt64
  ) throws(DecisionLogError) -> [UInt8] {
    var out = ByteWriter()
    for decision in decisions {
      let payload = DecisionCoding.encode(decision)
      guard payload.count <= DecisionCoding.sizeLimit else {
        throw DecisionLogError(.tooLarge, "decision \(decision.id) takes \(payload.count) bytes")
      }
      sequence &+= 1
      out.put(UInt32(payload.count))
      out.put(checksum(length: UInt32(payload.count), sequence: sequence, payload[...]))
      out.put(sequence)
      out.put(raw: payload)
    }
    return out.bytes
  }

  private static func checksum(length: UInt32, sequence: UInt64, _ payload: ArraySlice<UInt8>) -> UInt32 {
    var frame = ByteWriter()
    frame.put(length)
    frame.put(sequence)
    var crc = CRC32C()
    crc.update(frame.bytes)
    crc.update(payload)
    return crc.value
  }

  private static func scan(
    _ bytes: [UInt8], path: String
  ) -> (recovery: DecisionLogRecovery, end: Int, sequence: UInt64) {
    var decisions: [Decision] = []
    var offset = headerSize
    var sequence: UInt64 = 0
    var problem: String?
    while bytes.count - offset >= frameSize {
      var frame = ByteReader(Array(bytes[offset..<offset + frameSize]))
      guard let length = frame.u32(), let crc = frame.u32(), let number = frame.u64() else { break }
      if length == 0 && crc == 0 && number == 0 { break }
      let start = offset + frameSize
      guard length <= DecisionCoding.sizeLimit, Int(length) <= bytes.count - start else {
        problem = "a record of \(length) bytes does not fit"
        break
      }
      let payload = bytes[start..<start + Int(length)]
      guard checksum(length: length, sequence: number, payload) == crc, decisions.isEmpty || number == sequence &+ 1
      else {
        problem = "a record is torn or damaged"
        break
      }
      guard let decision = DecisionCoding.decode(Array(payload)) else {
        problem = "a record holds no decision of this version"
        break
      }
      decisions.append(decision)
      sequence = number
      offset = start + Int(length)
    }
    if problem == nil, bytes[offset...].contains(where: { $0 != 0 }) { problem = "a record is torn" }
    let damage = problem.map {
      Diagnostic(
        .warning, at: SourcePlace(file: path),
        "\($0) at byte \(offset), after \(decisions.count) sound records; the log goes on from there",
        remedy: "decisions after it are lost: compare with what the firewall holds")
    }
    return (DecisionLogRecovery(decisions: decisions, damage: damage), offset, sequence)
  }
}
