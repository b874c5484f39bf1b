import Foundation

@testable import VMFenceCore

/// A log's file, read and written.
enum ReadLog {
  /// In memory.
  private static let folder: String = {
    let folder = "/dev/shm/vmfence-fuzz-decisions.\(ProcessInfo.processInfo.processIdentifier)"
    do { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) } catch {
      fatalError("no folder: \(error)")
    }
    atexit { try? FileManager.default.removeItem(atPath: ReadLog.folder) }
    return folder
  }()
  private static let path = folder + "/a\u{1b}[31m.log"

  private static let own = Decision(
    id: 7, time: .zero, incarnation: nil, measure: .notify, status: .enforced, policy: "own", reason: "appended",
    step: 0, expires: nil, trigger: "1:1")

  /// - Returns: the decisions; nil: it is none of this kind.
  static func check(_ bytes: [UInt8], of written: WrittenLog) -> [Decision]? {
    write(bytes)
    let changed = zip(bytes, written.bytes).enumerated().first { $1.0 != $1.1 }?.offset ?? bytes.count
    let recovery: DecisionLogRecovery
    let byteCount: Int
    do throws(DecisionLogError) {
      let (log, found) = try FileDecisionLog.open(path: path)
      (recovery, byteCount) = (found, log.byteCount)
    } catch {
      precondition(error.code == .notALog && !bytes.starts(with: WrittenLog.magic), error.description)
      precondition(error.place?.file == path && !error.remedy.isEmpty, "an error without a place, or a remedy")
      checkShown(error.description)
      precondition(read() == bytes, "another file is not as it was")
      return nil
    }
    let decisions = recovery.decisions
    guard bytes.starts(with: WrittenLog.magic) else {
      precondition(bytes.allSatisfy { $0 == 0 } && decisions.isEmpty, "another file is taken for a log")
      return decisions
    }
    let before = written.sound.filter { $0.end <= changed }.map(\.decision)
    precondition(decisions.starts(with: before), "damage changes what stands before it")
    let sizes = decisions.map { 16 + DecisionCoding.encode($0).count }
    precondition(byteCount == WrittenLog.headerCount + sizes.reduce(0, +), "the log ends somewhere else")
    if changed == bytes.count {
      precondition(decisions.count == before.count, "more than was written")
      precondition((recovery.damage == nil) == written.isSound, "damage that is not told, or is none")
    }
    if let damage = recovery.damage {
      precondition(damage.place?.file == path, "damage without a place")
      precondition(damage.message.contains("at byte \(byteCount), after \(decisions.count) sound records"))
      checkShown(damage.description)
    }
    // Whatever it was, it goes on from there.
    reopen(decisions) { log throws(DecisionLogError) in try log.append([own]) }
    reopen(decisions + [own]) { log throws(DecisionLogError) in try log.compact(to: Array(decisions.prefix(2))) }
    reopen(Array(decisions.prefix(2))) { _ throws(DecisionLogError) in }
    return decisions
  }

  private static func reopen(_ decisions: [Decision], _ body: (FileDecisionLog) throws(DecisionLogError) -> Void) {
    do throws(DecisionLogError) {
      let (log, recovery) = try FileDecisionLog.open(path: path)
      precondition(recovery == DecisionLogRecovery(decisions: decisions), "another log than was written")
      try body(log)
    } catch { fatalError(error.description) }
  }

  private static func write(_ bytes: [UInt8]) {
    do { try Data(bytes).write(to: URL(filePath: path)) } catch { fatalError("\(error)") }
  }

  private static func read() -> [UInt8]? { (try? Data(contentsOf: URL(filePath: path))).map(Array.init) }
}
