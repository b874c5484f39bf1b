import CLinux
import Foundation
import Synchronization
import TestSupport
import VMFenceBlock
import VMFenceCore
import VMFenceTestKit

struct Entry: Hashable, Sendable {
  var request: BlockRequest
  var data: [UInt8]
}

/// What the observer of a test is asked.
final class SharedObserver: Sendable {
  typealias Judge = @Sendable (BlockRequest, [UInt8]) -> BlockVerdict
  let entries = Mutex<[Entry]>([])
  let gaps = Mutex<[String]>([])
  let judge: Judge
  init(_ judge: @escaping Judge) { self.judge = judge }
}

struct AskingObserver: BlockObserver, ~Copyable {
  let shared: SharedObserver

  mutating func observe(_ request: BlockRequest, data: RawSpan) -> BlockVerdict {
    let bytes = data.copiedBytes()
    shared.entries.withLock { $0.append(Entry(request: request, data: bytes)) }
    return shared.judge(request, bytes)
  }

  mutating func observeGap(at time: Timestamp, reason: String) { shared.gaps.withLock { $0.append(reason) } }
}

/// A disk in a file, served by a thread until it is stopped.
final class ServedDisk: @unchecked Sendable {
  let folder: TemporaryFolder
  let imagePath: String
  let socketPath: String
  let observer: SharedObserver
  private let stopper: NBDStopper
  private let finished = DispatchSemaphore(value: 0)
  private let result = Mutex<(NBDStatistics?, String?)>((nil, nil))

  init(
    byteCount: Int = 1 << 20, isReadOnly: Bool = false, clientLimit: Int = 16, handshakeLimit: Duration = waitLimit,
    _ judge: @escaping SharedObserver.Judge = { _, _ in .allow }
  ) throws {
    folder = try TemporaryFolder()
    imagePath = folder.path + "/disk.img"
    socketPath = folder.path + "/nbd.sock"
    try folder.write([], to: "disk.img")
    let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: imagePath))
    try handle.truncate(atOffset: UInt64(byteCount))
    try handle.close()
    observer = SharedObserver(judge)
    let server = try NBDServer(
      disk: DiskFile(path: imagePath, isReadOnly: isReadOnly), listener: NBDListener(path: socketPath),
      configuration: .init(
        exportName: "disk", clientLimit: clientLimit, handshakeLimit: handshakeLimit),
      clock: SystemClock())
    stopper = server.stopper
    let box = Box(server)
    Thread { [self] in box.run(serve) }.start()
  }

  /// Carries the server to its thread.
  private final class Box: @unchecked Sendable {
    private var server: NBDServer
    init(_ server: consuming NBDServer) { self.server = server }
    func run(_ body: (inout NBDServer) -> Void) { body(&server) }
  }

  private func serve(_ server: inout NBDServer) {
    var observer = AskingObserver(shared: observer)
    var problem: String?
    do {
      while try !server.deliver(limit: 100, until: SystemClock().now + .milliseconds(20), to: &observer).isAtEnd {}
    } catch { problem = "\(error)" }
    let statistics = server.statistics
    result.withLock { $0 = (statistics, problem) }
    finished.signal()
  }

  /// Ends it, and gives what it has counted.
  func stop() throws -> NBDStatistics {
    stopper.stop()
    finished.wait()
    let (statistics, problem) = result.withLock { $0 }
    guard let statistics, problem == nil else { throw TestFailure(problem ?? "it never ran") }
    return statistics
  }

  var entries: [Entry] { observer.entries.withLock { $0 } }
  func image() throws -> [UInt8] { [UInt8](try Data(contentsOf: URL(fileURLWithPath: imagePath))) }
}

struct TestFailure: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// A client that sends exactly what a test says.
final class RawClient: Sendable {
  let socket: CInt

  init(_ path: String) throws {
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    socket = unsafe vmfence_unix_connect(path)
    guard socket >= 0 else { throw TestFailure("cannot connect: \(errno)") }
    // Far more than an answer takes: a flush waits for the disk, with all that others write to it.
    var limit = timeval(tv_sec: 120, tv_usec: 0)
    // SAFETY: `limit` lives across the call.
    unsafe setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
  }

  deinit { close(socket) }

  func send(_ bytes: [UInt8]) throws {
    var sent = 0
    while sent < bytes.count {
      // SAFETY: the rest of the array, for reading.
      let count = unsafe bytes[sent...].withUnsafeBytes {
        unsafe Glibc.send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      guard count > 0 else { throw TestFailure("the server hung up") }
      sent += count
    }
  }

  /// Exactly so many bytes; fewer only when the server hung up.
  func receive(_ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var received = 0
    while received < count {
      // SAFETY: the rest of the array.
      let result = unsafe bytes.withUnsafeMutableBytes {
        unsafe recv(socket, $0.baseAddress! + received, count - received, 0)
      }
      if result < 0 {
        if errno == ECONNRESET { break }
        throw TestFailure("no answer in time")
      }
      if result == 0 { break }
      received += result
    }
    return Array(bytes[..<received])
  }

  /// Whether the server hangs up within the time.
  func isHungUp() throws -> Bool {
    while true { if try receive(4096).count < 4096 { return true } }
  }

  static func big(_ value: UInt64, _ bytes: Int) -> [UInt8] {
    (0..<bytes).reversed().map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }
  }

  static func option(_ number: UInt32, _ data: [UInt8] = [], length: UInt32? = nil) -> [UInt8] {
    Array("IHAVEOPT".utf8) + big(UInt64(number), 4) + big(UInt64(length ?? UInt32(data.count)), 4) + data
  }

  static func request(
    _ type: UInt16, _ offset: UInt64 = 0, _ length: UInt32 = 0, flags: UInt16 = 0, cookie: UInt64 = 0
  ) -> [UInt8] {
    big(0x2560_9513, 4) + big(UInt64(flags), 2) + big(UInt64(type), 2) + big(cookie, 8) + big(offset, 8)
      + big(UInt64(length), 4)
  }

  /// Greets and enters transmission without structured replies.
  func enter() throws {
    guard try receive(18).prefix(8) == Array("NBDMAGIC".utf8)[...] else { throw TestFailure("no greeting") }
    try send(Self.big(3, 4) + Self.option(1))
    guard try receive(10).count == 10 else { throw TestFailure("no export") }
  }

  /// One request and its simple reply: the error, and the data of a read that had none.
  func ask(_ type: UInt16, _ offset: UInt64 = 0, _ length: UInt32 = 0, flags: UInt16 = 0, data: [UInt8] = []) throws
    -> (error: UInt32, data: [UInt8])
  {
    try send(Self.request(type, offset, length, flags: flags, cookie: 77) + data)
    let reply = try receive(16)
    guard reply.count == 16, Array(reply[..<4]) == Self.big(0x6744_6698, 4), Array(reply[8...]) == Self.big(77, 8)
    else { throw TestFailure("no reply: \(reply)") }
    let error = reply[4..<8].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    return (error, type == 0 && error == 0 ? try receive(Int(length)) : [])
  }
}
