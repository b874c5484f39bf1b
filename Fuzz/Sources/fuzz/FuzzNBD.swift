import Glibc
import Synchronization
import VMFenceBlock
import VMFenceCore

// What an NBD client sends, from its first byte on, to a real server on a socket of this process. The first byte of the input
// says what the observer makes of requests. What is checked besides "no trap": the server lets the client go when it has, the
// numbers of requests rise by one (a held one is shown again), writes carry what they say, and nothing that was refused is counted
// as done.

private let byteCount = 256 << 10
/// Of an input, in bytes: each request for all of the disk costs as much as the disk has.
private let inputLimit = 4096

/// A clock that goes on by `step` each time that it is looked at. So how far a call of `deliver` comes does not depend on the machine, and
/// it never waits: its deadline passes between two looks.
private final class LookedAtClock: TimeSource {
  static let step = Duration.milliseconds(5)
  private let looks = Atomic<Int64>(0)
  var now: Timestamp { .zero + Self.step * Int(looks.add(1, ordering: .relaxed).newValue) }
  /// Between the next look and the one after it.
  var deadline: Timestamp { now + Self.step * 3 / 2 }
}

/// One server for all inputs: clients come and go.
private final class Bench {
  var server: NBDServer
  let clock = LookedAtClock()
  let socketPath: String

  init() {
    var name = Array("/tmp/vmfence-fuzz-nbd.XXXXXX".utf8CString)
    // SAFETY: the array ends in a zero; mkdtemp(3) changes it in place.
    let folder = unsafe name.withUnsafeMutableBufferPointer { buffer in
      unsafe buffer.baseAddress.flatMap { unsafe mkdtemp($0) }.map { unsafe String(cString: $0) }
    }
    guard let folder else { fatalError("no folder") }
    socketPath = folder + "/nbd.sock"
    let image = folder + "/disk.img"
    // SAFETY: C strings that live during the calls.
    let file = unsafe open(image, O_RDWR | O_CREAT, 0o600)
    guard file >= 0, ftruncate(file, off_t(byteCount)) == 0 else { fatalError("no disk") }
    close(file)
    do throws(BlockSourceError) {
      server = try NBDServer(
        disk: DiskFile(path: image), listener: NBDListener(path: socketPath),
        configuration: .init(exportName: "disk", clientLimit: 4), clock: clock)
    } catch { fatalError(error.description) }
    // SAFETY: as above. What listens and what is open stays.
    unsafe _ = unlink(image)
  }

  /// A client's socket.
  func connect() -> CInt {
    let client = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    // SAFETY: the path is shorter than the field, which is zero behind it; the address is valid during the call.
    let isConnected = unsafe withUnsafeMutableBytes(of: &address) { bytes in
      for (index, byte) in socketPath.utf8.enumerated() { unsafe bytes[2 + index] = byte }
      return unsafe bytes.withMemoryRebound(to: sockaddr.self) { address in
        unsafe Glibc.connect(client, address.baseAddress, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
      }
    }
    guard client >= 0, isConnected else { fatalError("no connection: \(errno)") }
    return client
  }
}

private struct Judge: BlockObserver, ~Copyable {
  let mode: UInt8
  private var last: UInt64?
  private var held: UInt64?
  private(set) var denied = 0

  init(mode: UInt8) { self.mode = mode }

  mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict {
    if let held {
      precondition(
        request.sequence == held || request.sequence == held + 1, "another request than the one that was held")
    } else if let last {
      precondition(request.sequence == last + 1, "a number is missing")
    }
    precondition(UInt64(data.byteCount) == (request.operation == .write ? request.length : 0), "other data")
    precondition(request.offset + request.length <= UInt64(byteCount), "beyond the end")
    let isShownAgain = held == request.sequence
    held = nil
    last = request.sequence
    guard request.operation != .read, request.operation != .flush else { return .allow }
    switch mode % 4 {
    case 1:
      denied += 1
      return .deny
    case 2 where !isShownAgain:
      held = request.sequence
      return .hold
    default: return .allow
    }
  }

  mutating func observeGap(at time: Timestamp, reason: String) {}
}

// SAFETY: libFuzzer calls from one thread.
nonisolated(unsafe) private var bench: Bench?

func fuzzNBD(_ input: RawSpan) {
  guard input.byteCount > 1 else { return }
  if unsafe bench == nil { unsafe bench = Bench() }
  guard let bench = unsafe bench else { return }
  talk(bench, mode: input.u8(0), input.extracting(1..<min(input.byteCount, inputLimit)).copiedBytes())
}

private func talk(_ bench: Bench, mode: UInt8, _ bytes: [UInt8]) {
  let client = bench.connect()
  defer { close(client) }
  var judge = Judge(mode: mode)
  var sent = 0
  var answer = [UInt8](repeating: 0, count: 256 << 10)
  let before = bench.server.statistics
  var silence = 0
  for round in 0..<10_000 {
    if sent < bytes.count {
      // SAFETY: the rest of the array, for reading.
      let result = unsafe bytes[sent...].withUnsafeBytes {
        unsafe send(client, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL))
      }
      // Hung up on: what comes now is what was answered before.
      sent = result > 0 ? sent + result : errno == EAGAIN ? sent : bytes.count
      if sent == bytes.count { shutdown(client, CInt(SHUT_WR)) }
    }
    do throws(BlockSourceError) {
      _ = try bench.server.deliver(limit: 64, until: bench.clock.deadline, to: &judge)
    } catch { fatalError(error.description) }
    silence += 1
    var result = 1
    while result > 0 {
      // SAFETY: as many bytes as the array has.
      result = unsafe answer.withUnsafeMutableBytes { unsafe recv(client, $0.baseAddress, $0.count, 0) }
      if result > 0 { silence = 0 }
    }
    if result == 0 || errno != EAGAIN {
      precondition(bench.server.statistics.denied - before.denied == UInt64(judge.denied), "refusals are counted")
      return
    }
    // What goes on besides is done by the threads that wait for the disk.
    if silence > 50 {
      var waited = pollfd(fd: client, events: Int16(POLLIN), revents: 0)
      // SAFETY: one structure, as is said.
      unsafe _ = poll(&waited, 1, 1)
    }
    precondition(round < 9_999, "the server does not let a client go that has gone")
  }
}
