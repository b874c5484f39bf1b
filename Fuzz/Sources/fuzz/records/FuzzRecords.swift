import VMFenceCore

// What passes between the daemon and its helper processes: `vmfence-hypervisor`, `vmfence-firewall`, `vmfence-capture` and `vmfence-channel`. Both
// directions: what a daemon reads of a helper that has been taken over, and what a helper reads of such a daemon. The first byte says of whom, and what.
// Checked besides "no trap": what is taken for a message is written as the same bytes again, keeps its bounds, and is none without its end or with more behind
// it; a whole session ends after a bounded number of steps; a helper does what it was asked and nothing else; a daemon that was told nothing wrong sees
// what is, and one that was lied to gets lists within their bounds, text that is fit to be shown, and keeps no descriptor.

func fuzzRecords(_ input: RawSpan) {
  guard input.byteCount > 1 else { return }
  let choice = input.u8(0) % 11
  let operands = Operands(Array(input.copiedBytes().dropFirst()))
  switch choice {
  case 0: XenRecords.read(operands)
  case 1: XenRecords.serve(operands)
  case 2: XenRecords.believe(operands)
  case 3: FirewallRecords.readQuestion(operands)
  case 4: FirewallRecords.readAnswer(operands)
  case 5: FirewallRecords.serve(operands)
  case 6: FirewallRecords.believe(operands)
  case 7: CaptureRecords.read(operands)
  case 8: CaptureRecords.believe(operands)
  case 9: ChannelRecords.read(operands)
  default: ChannelRecords.believe(operands)
  }
}

/// Takes operands from the input; zeroes when it is over. Used by one thread at a time.
final class Operands: @unchecked Sendable {
  private let input: [UInt8]
  private var position = 0

  init(_ input: [UInt8]) { self.input = input }

  var count: Int { input.count }
  var isAtEnd: Bool { position >= input.count }

  func byte() -> UInt8 {
    defer { position += 1 }
    return position < input.count ? input[position] : 0
  }

  func number<Number: FixedWidthInteger & UnsignedInteger>(_ type: Number.Type = Number.self) -> Number {
    var value: Number = 0
    for shift in stride(from: 0, to: Number.bitWidth, by: 8) { value |= Number(byte()) << Number(shift) }
    return value
  }

  /// As many bytes, or all that are left.
  func bytes(_ count: Int) -> [UInt8] {
    let start = min(position, input.count)
    let taken = Array(input[start..<min(start + count, input.count)])
    position = start + taken.count
    return taken
  }

  func rest() -> [UInt8] { bytes(input.count) }
}

/// What a process says instead of what it ought to.
enum Lie: UInt8, CaseIterable {
  case none, changed, cut, longer, raw, earlier, twice, silence, late, end

  /// - Returns: the messages that come in place of `sound`.
  func messages(_ sound: [UInt8], earlier: [UInt8], _ operands: Operands) -> [[UInt8]] {
    var bytes = sound
    switch self {
    case .none: break
    case .changed:
      for _ in 0...operands.byte() % 4 where !bytes.isEmpty {
        bytes[Int(operands.number(UInt16.self)) % bytes.count] ^= operands.byte()
      }
    case .cut: bytes.removeLast(min(bytes.count, Int(operands.byte())))
    case .longer: bytes += operands.bytes(Int(operands.byte()))
    case .raw: bytes = operands.bytes(Int(operands.number(UInt16.self)) % 4_096)
    case .earlier: bytes = earlier
    case .twice: return [sound, sound]
    case .silence, .late, .end: return []
    }
    return [bytes]
  }

  static func next(_ operands: Operands) -> Lie { allCases[Int(operands.byte()) % allCases.count] }
}

/// A process that may lie, from its owner's side: the answers that wait, and how often the owner asked for one.
struct LyingProcess {
  private(set) var lies = 0
  private(set) var isGone = false
  private(set) var receptions = 0
  private var waiting: [[UInt8]] = []
  private var late: [[UInt8]] = []
  private var earlier: [UInt8] = []
  /// Whether it was waited for in vain: when it is again, it has ended. Who waits until a time comes would wait for long.
  private var wasSilent = false
  private(set) var sends = 0

  mutating func put(_ sound: [UInt8], _ lie: Lie, _ operands: Operands) {
    let messages = lie.messages(sound, earlier: earlier, operands)
    if messages != [sound] { lies += 1 }
    waiting += late + messages
    late = lie == .late ? [sound] : []
    earlier = sound
    sends += 1
    if lie == .end { isGone = true }
  }

  /// One that an owner which is not itself spoke to has ended.
  mutating func end() { (isGone, waiting, late) = (true, [], []) }

  mutating func receive(within patience: Duration) -> ReceivedMessage {
    receptions += 1
    if !waiting.isEmpty { return .message(waiting.removeFirst()) }
    if isGone { return .ended }
    if patience > .zero {
      if wasSilent {
        isGone = true
        return .ended
      }
      wasSilent = true
    }
    (waiting, late) = (late, [])
    return .nothing
  }
}

/// Text that is shown to people has nothing that acts on a terminal.
func checkText(_ text: String) {
  precondition(
    !text.unicodeScalars.contains { $0.value < 0x20 || $0.value == 0x7F || (0x80..<0xA0).contains($0.value) },
    "text that is not escaped")
}
