#if Daemon
import Foundation
import Logging
import Synchronization
import VMFenceCore

/// What detectors remembered of their domains' traffic when the daemon stopped, or when the domain was saved or migrated, in files of its state
/// directory: one for each domain, by its UUID. Each is used once, by the domain's next detector.
///
/// ```
/// 0    "VMFSTATE"
/// 8    version        u32, little-endian: 1
/// 12   CRC-32C        u32, of the bytes
/// 16   length         u64
/// 24   bytes          the engine's own
/// ```
struct DetectorStates: Sendable {
  private static let magic = Array("VMFSTATE".utf8)
  private static let version: UInt32 = 1
  private static let headerBytes = 24
  /// How many seconds a state waits to be taken.
  private static let kept: TimeInterval = 7 * 86400

  /// The folder of the files; it need not exist.
  let folder: String

  init(stateDirectory: String) { folder = stateDirectory + "/detectors" }

  private func path(_ domain: DomainUUID) -> String { "\(folder)/\(domain).state" }

  /// Writes the file of one domain. What cannot be written is told in the result.
  func write(_ bytes: [UInt8], of domain: DomainUUID) -> [Diagnostic] {
    prune()
    let path = path(domain)
    var data = Data(Self.magic)
    for value in [Self.version, CRC32C.checksum(bytes)] { data.append(contentsOf: littleEndian(UInt64(value), 4)) }
    data.append(contentsOf: littleEndian(UInt64(bytes.count), 8))
    data.append(contentsOf: bytes)
    do {
      try FileManager.default.createDirectory(
        atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
      try data.write(to: URL(filePath: path), options: .atomic)
    } catch { return [failure(path, error)] }
    return []
  }

  /// What was kept of a domain is out of date.
  func remove(_ domain: DomainUUID) { try? FileManager.default.removeItem(atPath: path(domain)) }

  /// Removes what nobody took: of guests that were saved and never restored, and damaged files.
  private func prune() {
    let oldest = Date(timeIntervalSinceNow: -Self.kept)
    for name in (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [] {
      let path = folder + "/" + name
      let written = try? FileManager.default.attributesOfItem(atPath: path)[.modificationDate] as? Date
      if let written, written < oldest { try? FileManager.default.removeItem(atPath: path) }
    }
  }

  /// A domain's state, at most `limit` bytes, and its file is gone; nil when there is none.
  ///
  /// - Throws: when the file is damaged, or not one of these. It stays where it is, for whoever looks into it, for a week.
  func take(_ domain: DomainUUID, limit: Int) throws(DetectorStateProblem) -> [UInt8]? {
    let path = path(domain)
    guard let file = FileHandle(forReadingAtPath: path) else { return nil }
    let bytes: [UInt8]
    do { bytes = Array(try file.read(upToCount: Self.headerBytes + limit + 1) ?? Data()) } catch {
      throw DetectorStateProblem(path, error.localizedDescription)
    }
    func number(_ range: Range<Int>) -> UInt64 { bytes[range].reversed().reduce(0) { $0 << 8 | UInt64($1) } }
    guard bytes.count >= Self.headerBytes, Array(bytes[..<8]) == Self.magic else {
      throw DetectorStateProblem(path, "it does not begin as such a file does")
    }
    guard number(8..<12) == Self.version else {
      throw DetectorStateProblem(path, "its version is \(number(8..<12)), not \(Self.version)")
    }
    let length = number(16..<24)
    guard length <= UInt64(limit) else {
      throw DetectorStateProblem(path, "its state has \(length) bytes, more than \(limit)")
    }
    guard bytes.count == Self.headerBytes + Int(length) else {
      throw DetectorStateProblem(
        path, "its state should have \(length) bytes, and the file has \(bytes.count - Self.headerBytes) after its head"
      )
    }
    let state = Array(bytes[Self.headerBytes...])
    guard CRC32C.checksum(state) == UInt32(number(12..<16)) else {
      throw DetectorStateProblem(path, "the checksum at byte 12 does not fit what follows")
    }
    try? FileManager.default.removeItem(atPath: path)
    return state
  }

  private func littleEndian(_ value: UInt64, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
  }

  private func failure(_ path: String, _ error: any Error) -> Diagnostic {
    Diagnostic(
      .error,
      "what a detector remembers cannot be saved in \(path.escapedForDisplay): \(error.localizedDescription)",
      remedy: "check the state directory")
  }
}

/// The same beside the loop: a disk can be slow, and packets do not wait for it. What is to be kept is there for `take` at once. Safe to use from any thread.
final class DetectorStateKeeper: Sendable {
  private struct Wish {
    /// nil: the file is to go.
    var bytes: [UInt8]?
    var number: UInt64
  }

  private let states: DetectorStates
  private let logger: Logger
  private let queue = DispatchQueue(label: "vmfence-states")
  /// What the files are not yet, and how many wishes there were.
  private let wishes = Mutex((byDomain: [DomainUUID: Wish](), count: UInt64(0)))

  init(_ states: DetectorStates, logger: Logger) {
    self.states = states
    self.logger = logger
  }

  /// - `bytes`: nil: what was kept of the domain is out of date.
  func keep(_ bytes: [UInt8]?, of domain: DomainUUID) {
    wishes.withLock { wishes in
      wishes.count += 1
      wishes.byDomain[domain] = Wish(bytes: bytes, number: wishes.count)
    }
    queue.async { [self] in settle(domain) }
  }

  /// A domain's state, which is kept no more; nil when there is none. Only one of an earlier process is read from the disk here.
  func take(_ domain: DomainUUID, limit: Int) throws(DetectorStateProblem) -> [UInt8]? {
    guard let wish = wishes.withLock({ $0.byDomain[domain] }) else { return try states.take(domain, limit: limit) }
    keep(nil, of: domain)
    return wish.bytes
  }

  /// Returns when all of it is kept.
  func finish() { queue.sync {} }

  private func settle(_ domain: DomainUUID) {
    guard let wish = wishes.withLock({ $0.byDomain[domain] }) else { return }
    if let bytes = wish.bytes { logger.log(states.write(bytes, of: domain)) } else { states.remove(domain) }
    wishes.withLock { wishes in
      if wishes.byDomain[domain]?.number == wish.number { wishes.byDomain[domain] = nil }
    }
  }
}

/// Why a file is no detector's state.
struct DetectorStateProblem: Error {
  var diagnostic: Diagnostic

  init(_ path: String, _ reason: String) {
    diagnostic = Diagnostic(
      .error, "the saved detector state \(path.escapedForDisplay) is damaged: \(reason.escapedForDisplay)",
      remedy: "the detector begins without it; nothing is to be done")
  }
}
#endif
