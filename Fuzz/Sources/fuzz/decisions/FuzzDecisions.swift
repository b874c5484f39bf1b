@testable import VMFenceCore

// A decision log as a start finds it, with records that a machine that lost its power, a bad disk or another version left, and what the policy makes of it.
//
// The first byte says how many bytes of the file are changed (0 to 15), and each of these has three bytes for its place and one that is added there. What
// follows are records: a byte that says what is wrong with it (`Record.Flaw`), two for the length, and the decision's bytes; checksums and numbers are made
// right, so that what lies behind them is tried.
//
// Checked besides "no trap": what is read is what stands before the first damage, whole and in order; no bytes are taken for a decision but those that are
// written for it; damage is told with file and place; what is read once is read again, with what was appended since and after a compaction; another file
// stays as it is; the policy keeps its bounds, and makes the same of what a compacted log would keep; what is shown has nothing that acts on a terminal.

func fuzzDecisions(_ input: RawSpan) {
  guard input.byteCount > 1 else { return }
  let bytes = input.copiedBytes()
  let begin = min(1 + Int(bytes[0]) % 16 * 4, bytes.count)
  let log = WrittenLog(bytes[begin...])
  var changed = log.bytes
  for change in stride(from: 1, to: begin - 3, by: 4) {
    let place = Int(bytes[change]) << 16 | Int(bytes[change + 1]) << 8 | Int(bytes[change + 2])
    changed[place % changed.count] &+= bytes[change + 3]
  }
  if let decisions = ReadLog.check(changed, of: log) { Restart.check(decisions) }
}

/// A log's file, and what is to be read from it.
struct WrittenLog {
  /// What is wrong with a record.
  enum Flaw: UInt8 {
    case number = 4
    case checksum
    /// Its end was not written any more.
    case torn
    /// Zeros stand before it, where the log ends.
    case late
  }

  static let magic = Array("VMFDLOG1".utf8)
  static let headerCount = 64

  private(set) var bytes =
    WrittenLog.magic + Array(repeating: 0, count: WrittenLog.headerCount - WrittenLog.magic.count)
  /// The decisions before the first flaw, and where the record of each ends.
  private(set) var sound: [(decision: Decision, end: Int)] = []
  private(set) var isSound = true
  private var number: UInt64 = 0

  init(_ records: ArraySlice<UInt8>) {
    var rest = records
    while let kind = rest.popFirst(), let high = rest.popFirst(), let low = rest.popFirst() {
      let payload = Array(rest.prefix(Int(high) << 8 | Int(low)))
      rest = rest.dropFirst(payload.count)
      append(payload, Flaw(rawValue: kind % 8))
    }
    // What is allocated ahead.
    bytes += Array(repeating: 0, count: 64)
  }

  private mutating func append(_ payload: [UInt8], _ flaw: Flaw?) {
    number += flaw == .number ? 2 : 1
    func field(_ value: UInt64, _ count: Int) -> [UInt8] {
      (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }
    let length = field(UInt64(payload.count), 4)
    let sum = CRC32C.checksum(length + field(number, 8) + payload) ^ (flaw == .checksum ? 1 : 0)
    var record = length + field(UInt64(sum), 4) + field(number, 8) + payload
    let whole = record
    if flaw == .torn { for index in record.count / 2..<record.count { record[index] = 0 } }
    if flaw == .late { bytes += Array(repeating: 0, count: 16) }
    bytes += record
    let isWhole =
      switch flaw {
      case nil: true
      // The number of the first may be any.
      case .number: sound.isEmpty
      // It may have ended in zeros.
      case .torn: record == whole
      case .checksum, .late: false
      }
    if isSound, isWhole, let decision = DecisionCoding.decode(payload) {
      precondition(DecisionCoding.encode(decision) == payload, "bytes that are not written for any decision")
      sound.append((decision, bytes.count))
    } else {
      isSound = false
    }
  }
}
