import Glibc
import VMFenceCore

// What comes over the control plane's sockets, line by line: what a process of a disk tells the daemon, which a guest may have taken over; requests to
// the metrics' port, which anybody sends who can reach it; and requests to the control socket. The first byte says which, the second in what pieces it
// comes. Checked besides "no trap": every line that is understood is acted on once and in order, and no other; what was taken is written as the same
// again; lines keep their bounds; an answer is one line, or one head and its body; and what is shown to people has nothing that acts on a terminal.

func fuzzControl(_ input: RawSpan) {
  guard input.byteCount > 3 else { return }
  let said = input.extracting(3..<input.byteCount).copiedBytes()
  let piece = Int(input.u8(1)) + 1
  switch input.u8(0) % 4 {
  case 0, 1: DiskLines.follow(said, in: piece, refusing: input.u8(2))
  case 2: MetricsRequests.answer(said, in: piece)
  default: ControlRequests.answer(said, in: piece)
  }
}

/// Both ends of a connection. What is sent at once is received at once, so a reader gets the input in the pieces that are wanted.
struct Ends: ~Copyable {
  private let own: CInt
  /// For what is tried, which closes it.
  let other: CInt

  init() {
    var ends: [CInt] = [-1, -1]
    // SAFETY: two numbers are written.
    let result = unsafe socketpair(
      AF_UNIX, CInt(SOCK_SEQPACKET.rawValue | SOCK_NONBLOCK.rawValue), 0, &ends)
    guard result == 0 else { fatalError("no sockets: \(errno)") }
    (own, other) = (ends[0], ends[1])
  }

  deinit { close(own) }

  func send(_ bytes: ArraySlice<UInt8>) {
    // SAFETY: the bytes are read. One that was hung up on is not heard any more.
    _ = unsafe bytes.withUnsafeBytes { unsafe Glibc.send(own, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
  }

  /// Says nothing more after `bytes`. They come in no more pieces than there is room for.
  func send(_ bytes: [UInt8], in piece: Int) {
    let piece = max(piece, bytes.count / 64 + 1)
    for start in stride(from: 0, to: bytes.count, by: piece) { send(bytes[start..<min(start + piece, bytes.count)]) }
    shutdown(own, CInt(SHUT_WR))
  }

  /// What has come.
  func received() -> [UInt8] {
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 16 << 10)
    while true {
      // SAFETY: as many bytes as the array has.
      let count = unsafe buffer.withUnsafeMutableBytes { unsafe recv(own, $0.baseAddress, $0.count, 0) }
      // That not all was read which was said comes before what is there to be received.
      if count < 0, errno == ECONNRESET { continue }
      guard count > 0 else { return bytes }
      precondition(count < buffer.count, "an answer without end")
      bytes += buffer[..<count]
    }
  }
}

extension [UInt8] {
  /// Those that have an end, and what stands behind them.
  var lines: (whole: [[UInt8]], rest: Int) {
    var parts = split(separator: 0x0A, omittingEmptySubsequences: false).map { Array($0) }
    let rest = parts.removeLast()
    return (parts, rest.count)
  }
}
