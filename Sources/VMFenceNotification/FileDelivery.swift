internal import Glibc
public import VMFenceCore

/// Lines to a file, each with one write(2) in append mode. A file that was renamed away (by logrotate, say) is noticed and begun anew, and `reset` does so
/// at once. One that has no room takes none until it was rotated: its lines wait in the queue, which domains share.
public final class FileDelivery: Delivery, @unchecked Sendable {
  public let refused: UInt64 = 0
  private var file: LineFile

  /// - `limit`: how large the file may become, in bytes.
  public init(path: String, limit: UInt64 = EVEFileSink.standardLimit) { file = LineFile(path: path, limit: limit) }

  public func deliver(_ lines: [[UInt8]]) throws(DeliveryFailure) -> Int {
    do throws(SystemFailure) { _ = try file.look() } catch { throw failure(error.number, delivered: 0) }
    for (index, line) in lines.enumerated() {
      let error = file.append(line)
      guard error == 0 else { throw failure(error, delivered: index) }
    }
    return lines.count
  }

  public func reset() { file.close() }

  private func failure(_ number: CInt, delivered: Int) -> DeliveryFailure {
    let path = file.path.escapedForDisplay
    return DeliveryFailure(
      number == EFBIG
        ? "\(path) may become \(file.limit >> 20) MiB large, and takes no more until it is rotated"
        : "\(path) cannot be written: \(describeError(number))", delivered: delivered)
  }
}
