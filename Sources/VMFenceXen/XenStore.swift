internal import CXen
internal import Glibc
internal import Synchronization
package import VMFenceCore

/// What of xenstore VMFence uses. Implementations are safe to use from any thread.
package protocol XenStoreAccess: Sendable {
  /// Readable when there are events; -1 when nothing tells.
  var descriptor: CInt { get }
  /// At most `limit` bytes of a value; nil when there is no such entry.
  func read(_ path: String, limit: Int) throws(SystemFailure) -> [UInt8]?
  /// The names below `path`; none when there is no such entry.
  func list(_ path: String) throws(SystemFailure) -> [String]
  /// Writes an entry below a domain's own folder, if the domain is there: the toolstack takes that folder away at any time, and what is written after that
  /// would stay for ever. One that was not there is the domain's to read, and Dom0's to write.
  ///
  /// - Returns: whether the domain is there.
  func tell(_ domain: DomainID, _ entry: String, _ text: String) throws(SystemFailure) -> Bool
  func watch(_ path: String) throws(SystemFailure)
  /// The path that changed; nil when there is nothing more.
  func nextEvent() throws(SystemFailure) -> String?
}

/// The real one, by libxenstore (xenstore.h).
@safe package final class XenStoreConnection: XenStoreAccess {
  /// Names of one listing are taken up to here; the rest is not seen.
  private static let listingLimit = 64 << 10
  /// XENSTORE_ABS_PATH_MAX of xen/include/public/io/xs_wire.h.
  private static let pathLimit = 3072

  @safe private struct Handle: @unchecked Sendable {
    // SAFETY: used by one thread at a time, under the lock below.
    let store: OpaquePointer
  }
  private let handle: Mutex<Handle>
  package let descriptor: CInt

  private init(_ handle: Handle) {
    // SAFETY: open.
    descriptor = unsafe vmfence_xenstore_descriptor(handle.store)
    self.handle = Mutex(handle)
  }

  deinit {
    // SAFETY: opened by `open`, and nobody else has it any more.
    handle.withLock { unsafe vmfence_xenstore_close($0.store) }
  }

  package static let connect: XenStoreFollower.Connect = { () throws(ProbeError) in try open() }

  /// - Throws: `unavailable` and `permissionDenied`.
  package static func open() throws(ProbeError) -> XenStoreConnection {
    var number: CInt = 0
    // SAFETY: one number is written; the handle is ours.
    if let store = unsafe vmfence_xenstore_open(&number) { return unsafe XenStoreConnection(Handle(store: store)) }
    switch number {
    case ELIBACC:
      throw ProbeError(.unavailable, "libxenstore.so.4 cannot be opened", remedy: "install the Xen utilities")
    case EACCES, EPERM:
      throw ProbeError(
        .permissionDenied, "xenstored cannot be reached: \(describeError(number))", remedy: "run it as root")
    default:
      throw ProbeError(
        .unavailable, "xenstored cannot be reached: \(describeError(number))",
        remedy: "start it: systemctl start xenstored")
    }
  }

  package func read(_ path: String, limit: Int) throws(SystemFailure) -> [UInt8]? {
    var buffer = [UInt8](repeating: 0, count: limit)
    let count = handle.withLock { handle in
      // SAFETY: the handle is open, the path ends in zero, at most `limit` bytes are written.
      unsafe buffer.withUnsafeMutableBytes { unsafe vmfence_xenstore_read(handle.store, path, $0.baseAddress, limit) }
    }
    if count == -Int(ENOENT) { return nil }
    guard count >= 0 else { throw SystemFailure(call: "read \(path) in xenstore", number: CInt(-count)) }
    return Array(buffer.prefix(count))
  }

  package func list(_ path: String) throws(SystemFailure) -> [String] {
    var buffer = [CChar](repeating: 0, count: Self.listingLimit)
    var count: UInt32 = 0
    let used = handle.withLock { handle in
      // SAFETY: the handle is open, the path ends in zero, at most the buffer's length is written.
      unsafe vmfence_xenstore_list(handle.store, path, &buffer, buffer.count, &count)
    }
    if used == -Int(ENOENT) { return [] }
    guard used >= 0 else { throw SystemFailure(call: "list \(path) in xenstore", number: CInt(-used)) }
    return buffer.prefix(used).split(separator: 0).map { name in
      String(decoding: name.map(UInt8.init(bitPattern:)), as: UTF8.self)
    }
  }

  package func tell(_ domain: DomainID, _ entry: String, _ text: String) throws(SystemFailure) -> Bool {
    let (folder, bytes) = ("/local/domain/\(domain)", Array(text.utf8))
    let result = handle.withLock { handle in
      // SAFETY: the handle is open, both paths end in zero, the bytes are only read.
      unsafe vmfence_xenstore_tell(
        handle.store, "\(folder)/name", "\(folder)/\(entry)", bytes, UInt32(bytes.count), domain.rawValue)
    }
    if result < 0, result != -ENOENT {
      throw SystemFailure(call: "write \(folder)/\(entry) in xenstore", number: -result)
    }
    return result == 0
  }

  package func watch(_ path: String) throws(SystemFailure) {
    // SAFETY: the handle is open, both texts end in zero.
    let result = handle.withLock { unsafe vmfence_xenstore_watch($0.store, path, "vmfence") }
    if result < 0 { throw SystemFailure(call: "watch \(path) in xenstore", number: -result) }
  }

  package func nextEvent() throws(SystemFailure) -> String? {
    var buffer = [CChar](repeating: 0, count: Self.pathLimit)
    // SAFETY: the handle is open, at most the buffer's length is written.
    let count = handle.withLock { unsafe vmfence_xenstore_event($0.store, &buffer, buffer.count) }
    if count == -Int(EAGAIN) { return nil }
    guard count >= 0 else { throw SystemFailure(call: "take an event of xenstore", number: CInt(-count)) }
    return String(decoding: buffer.prefix(count).map(UInt8.init(bitPattern:)), as: UTF8.self)
  }
}
