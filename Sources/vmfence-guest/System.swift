internal import Glibc
import VMFenceCore

/// What is read, as far as it may be long.
enum Input {
  /// The bytes of a file, of which one more than `limit` are read at most: whoever takes them refuses what is longer.
  static func read(_ file: String, atMost limit: Int) throws(GuestCommand.Failure) -> [UInt8] {
    let place = SourcePlace(file: file)
    // A pipe without a writer is empty, and nothing to wait for.
    // SAFETY: open(2) reads the path up to its zero.
    let descriptor = file == "-" ? 0 : unsafe open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
    guard descriptor >= 0 else {
      let number = errno
      throw GuestCommand.Failure(number == EACCES ? 77 : 66, "cannot be read: \(describeError(number))", at: place)
    }
    defer { if descriptor != 0 { close(descriptor) } }
    return try read(descriptor, at: place, atMost: limit)
  }

  /// The same of a file that is open.
  static func read(
    _ descriptor: Int32, at place: SourcePlace, atMost limit: Int
  ) throws(GuestCommand.Failure) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: limit + 1)
    var count = 0
    while count < bytes.count {
      // SAFETY: read(2) writes at most as many bytes as are left in the array.
      let result = unsafe bytes.withUnsafeMutableBytes { room in
        let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: room[count...])
        return unsafe Glibc.read(descriptor, rest.baseAddress, rest.count)
      }
      if result == 0 { break }
      if result < 0, errno == EINTR { continue }
      guard result > 0 else {
        throw GuestCommand.Failure(66, "cannot be read: \(describeError(errno))", at: place)
      }
      count += result
    }
    return Array(bytes[..<count])
  }
}

enum Output {
  /// - Returns: whether all of it was written; otherwise errno says why not.
  @discardableResult
  static func write(_ text: String, to descriptor: Int32) -> Bool {
    var rest = Array(text.utf8)[...]
    while !rest.isEmpty {
      // SAFETY: write(2) reads as many bytes as the slice has.
      let count = unsafe rest.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return false }
      rest = rest.dropFirst(count)
    }
    return true
  }
}

enum Identity {
  private static let path = "/sys/hypervisor/uuid"

  /// This guest's UUID: the one that was given, or what the hypervisor says; nil when nobody does.
  static func uuid(_ given: String?) throws(GuestCommand.Failure) -> DomainUUID? {
    if let given {
      guard let uuid = DomainUUID(given) else {
        throw GuestCommand.wrong("'\(given.escapedForDisplay)' is no UUID")
      }
      return uuid
    }
    guard let bytes = try? Input.read(path, atMost: 64) else { return nil }
    let text = String(decoding: bytes, as: UTF8.self)
    return DomainUUID(text.prefix { $0 != "\n" })
  }
}
