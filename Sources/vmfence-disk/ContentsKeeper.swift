#if Daemon
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// Writes down what the verbs `rollback` and `freeze` keep. What cannot be written is counted, and told once until there is
/// room again.
final class ContentsKeeper {
  private let file: KeptFile
  private(set) var kept: UInt64 = 0
  private(set) var lost: UInt64 = 0
  private var isFailing = false

  init(_ file: KeptFile) { self.file = file }

  func keep(_ contents: [KeptContents], at time: Timestamp, _ output: EventOutput, _ incarnation: Incarnation) {
    for var item in contents {
      item.time = item.time + output.offset
      if file.append(item) {
        kept += 1
        isFailing = false
        continue
      }
      lost += 1
      guard !isFailing else { continue }
      isFailing = true
      output.write(
        PlatformAlert(
          time: time, incarnation: incarnation, kind: .integrityGap,
          message: "contents before a change could not be kept: \(file.path.escapedForDisplay) has no room",
          severity: 1,
          count: 1))
    }
  }
}
#endif
