internal import Glibc
internal import VMFenceCore

/// Lines to a file, each with one write(2) in append mode. A file that was renamed away (by logrotate, say) is noticed and begun anew, and `reset` does so
/// at once.
public final class FileDelivery: Delivery, @unchecked Sendable {
  public private(set) var refused: UInt64 = 0
  private let path: String
  private var descriptor: Int32 = -1
  /// The last write was cut short: the next begins with a line feed.
  private var isInsideLine = false

  public init(path: String) { self.path = path }

  deinit { if descriptor >= 0 { close(descriptor) } }

  public func deliver(_ lines: [[UInt8]]) throws(DeliveryFailure) -> Int {
    if descriptor >= 0, wasMoved { reset() }
    if descriptor < 0 {
      // SAFETY: the path is handed over as a string that ends in zero and lives during the call.
      descriptor = unsafe open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0o640)
      guard descriptor >= 0 else { throw failure(errno, delivered: 0) }
    }
    for (index, line) in lines.enumerated() {
      let bytes = (isInsideLine ? [0x0A] : []) + line + [0x0A]
      var written = 0
      while written < bytes.count {
        // SAFETY: the buffer is valid for its count during the call, which only reads it.
        let count = unsafe bytes[written...].withUnsafeBytes { unsafe write(descriptor, $0.baseAddress, $0.count) }
        if count < 0, errno == EINTR { continue }
        guard count > 0 else {
          let number = count < 0 ? errno : ENOSPC
          isInsideLine = isInsideLine ? written != 1 : written > 0
          throw failure(number, delivered: index)
        }
        written += count
      }
      isInsideLine = false
    }
    return lines.count
  }

  public func reset() {
    if descriptor >= 0 { close(descriptor) }
    descriptor = -1
    isInsideLine = false
  }

  /// Whether the path is another file now, or none.
  private var wasMoved: Bool {
    var (there, open) = (stat(), stat())
    // SAFETY: both calls write one structure; the path is a string that ends in zero and lives during the call.
    guard unsafe stat(path, &there) == 0, unsafe fstat(descriptor, &open) == 0 else { return true }
    return there.st_ino != open.st_ino || there.st_dev != open.st_dev
  }

  private func failure(_ number: Int32, delivered: Int) -> DeliveryFailure {
    DeliveryFailure("\(path.escapedForDisplay) cannot be written: \(describeError(number))", delivered: delivered)
  }
}
