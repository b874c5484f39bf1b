internal import Glibc
import VMFenceCore

/// The guest's own entries in xenstore, over the kernel's device: /dev/xen/xenbus, with the messages of xen/include/public/io/xs_wire.h.
/// Paths are relative to the guest's own subtree. After a restore or a migration the kernel sets watches anew, and each of them tells.
@safe final class XenStoreDevice {
  static let path = "/dev/xen/xenbus"
  /// Of one message (XENSTORE_PAYLOAD_MAX).
  private static let payloadLimit = 4096
  /// How long an answer may take.
  private static let patience: Int32 = 30_000
  /// Messages about watches that are passed over while an answer is awaited.
  private static let eventLimit = 4096

  private enum Operation: UInt32 {
    case read = 2
    case watch = 4
    case write = 11
    case remove = 13
    case event = 15
    case error = 16
  }

  /// To poll for input.
  let descriptor: Int32
  private var lastRequest: UInt32 = 0
  /// A watch told something while an answer was awaited.
  private var hasNews = false

  init() throws(SystemFailure) {
    // SAFETY: open(2) reads the path up to its zero.
    descriptor = unsafe open(Self.path, O_RDWR | O_CLOEXEC | O_NONBLOCK)
    guard descriptor >= 0 else { throw SystemFailure(call: "open \(Self.path)", number: errno) }
  }

  deinit { close(descriptor) }

  /// nil when there is no such entry.
  func read(_ path: String) throws(SystemFailure) -> String? {
    do throws(SystemFailure) {
      return String(decoding: try ask(.read, Array(path.utf8) + [0]), as: UTF8.self)
    } catch {
      if error.number == ENOENT { return nil }
      throw error
    }
  }

  func write(_ path: String, _ text: String) throws(SystemFailure) {
    _ = try ask(.write, Array(path.utf8) + [0] + Array(text.utf8))
  }

  func remove(_ path: String) throws(SystemFailure) { _ = try ask(.remove, Array(path.utf8) + [0]) }

  func watch(_ path: String) throws(SystemFailure) { _ = try ask(.watch, Array(path.utf8) + [0, 0x76, 0]) }

  /// Whether a watch told something since the last call.
  func takeNews() throws(SystemFailure) -> Bool {
    defer { hasNews = false }
    for _ in 0..<Self.eventLimit {
      guard let message = try next(patience: 0) else { break }
      if message.operation == Operation.event.rawValue { hasNews = true }
    }
    return hasNews
  }

  private func ask(_ operation: Operation, _ payload: [UInt8]) throws(SystemFailure) -> [UInt8] {
    lastRequest &+= 1
    var bytes: [UInt8] = []
    for number in [operation.rawValue, lastRequest, 0, UInt32(payload.count)] { append(number, to: &bytes) }
    bytes += payload
    // SAFETY: write(2) reads as many bytes as the array has; the kernel takes a message whole.
    let count = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
    guard count == bytes.count else {
      throw SystemFailure(call: "write to \(Self.path)", number: count < 0 ? errno : EIO)
    }
    for _ in 0..<Self.eventLimit {
      guard let message = try next(patience: Self.patience) else { break }
      if message.operation == Operation.event.rawValue {
        hasNews = true
      } else if message.request == lastRequest {
        guard message.operation != Operation.error.rawValue else {
          throw SystemFailure(call: "use xenstore", number: Self.number(of: message.payload))
        }
        return message.payload
      }
    }
    throw SystemFailure(call: "await an answer of xenstore", number: ETIMEDOUT)
  }

  private struct Message {
    var operation: UInt32
    var request: UInt32
    var payload: [UInt8]
  }

  /// The next message; nil when none comes in so many milliseconds.
  private func next(patience: Int32) throws(SystemFailure) -> Message? {
    guard let header = try bytes(16, patience: patience) else { return nil }
    let (operation, request, length) = header.withRawSpan { ($0.u32le(0), $0.u32le(4), Int($0.u32le(12))) }
    guard length <= Self.payloadLimit else { throw SystemFailure(call: "read from \(Self.path)", number: EPROTO) }
    guard let payload = try bytes(length, patience: Self.patience) else {
      throw SystemFailure(call: "read from \(Self.path)", number: ETIMEDOUT)
    }
    return Message(operation: operation, request: request, payload: payload)
  }

  private func bytes(_ count: Int, patience: Int32) throws(SystemFailure) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      // SAFETY: read(2) writes at most as many bytes as are left in the array.
      let result = unsafe bytes.withUnsafeMutableBytes { room in
        let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: room[done...])
        return unsafe Glibc.read(descriptor, rest.baseAddress, rest.count)
      }
      if result > 0 {
        done += result
        continue
      }
      let number = errno
      if result < 0, number == EINTR { continue }
      guard result == 0 || number == EAGAIN else {
        throw SystemFailure(call: "read from \(Self.path)", number: number)
      }
      // Of a message that began, the rest is there or comes at once.
      var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      // SAFETY: one structure, as is said.
      let ready = unsafe poll(&waiting, 1, done > 0 ? Self.patience : patience)
      if ready == 0, done == 0 { return nil }
      guard ready != 0 else { throw SystemFailure(call: "read from \(Self.path)", number: ETIMEDOUT) }
    }
    return bytes
  }

  private func append(_ number: UInt32, to bytes: inout [UInt8]) {
    for shift in stride(from: 0, to: 32, by: 8) { bytes.append(UInt8(truncatingIfNeeded: number >> shift)) }
  }

  /// xenstored tells errors by their names.
  private static func number(of payload: [UInt8]) -> Int32 {
    switch String(decoding: payload.prefix { $0 != 0 }, as: UTF8.self) {
    case "ENOENT": ENOENT
    case "EACCES": EACCES
    case "EPERM": EPERM
    case "ENOSPC": ENOSPC
    case "E2BIG": E2BIG
    case "EEXIST": EEXIST
    default: EIO
    }
  }
}
