internal import Glibc
public import VMFenceCore

/// Lines to a file, each with one write(2) in append mode. A file that was renamed away, removed or cut (by logrotate, say) is noticed and begun anew, and `reset` does so
/// at once.
///
/// The file has a limit, which events share as in `EVEFileSink`: half of it is for alerts, anomalies and tagged packets, a quarter for file events, a quarter for decisions and all else; of
/// each, one guest has as much as there is room left. What finds no room is lost until the file is begun anew, and counted, by guest; what others have to say goes on.
public final class FileDelivery: Delivery, SharedDelivery, @unchecked Sendable {
  /// Lines that found no room, of those that came without whose they are.
  public private(set) var refused: UInt64 = 0
  private var file: LineFile
  /// In bytes. What lines have taken is given back when the file is begun anew.
  private var room: EventRoom
  /// Something found no room.
  private var isFull = false

  /// - `limit`: how large the file may become, in bytes.
  /// - `isForAlerts`: nothing else comes, so they have all of it.
  public init(path: String, limit: UInt64 = EVEFileSink.standardLimit, isForAlerts: Bool = false) {
    file = LineFile(path: path, limit: limit)
    let quarter = Int(clamping: limit / 4)
    room = EventRoom(
      traffic: isForAlerts ? Int(clamping: limit) : 2 * quarter, files: isForAlerts ? 0 : quarter,
      others: isForAlerts ? 0 : quarter, assured: 0)
  }

  public func deliver(_ lines: [[UInt8]]) throws(DeliveryFailure) -> Int {
    var lost: UInt64 = 0
    defer { refused &+= lost }
    return try deliver(lines.map { DeliveryLine(bytes: $0, kind: .traffic, domain: nil) }) { _ in lost += 1 }
  }

  package func deliver(
    _ lines: [DeliveryLine], losing lose: (Incarnation?) -> Void
  ) throws(DeliveryFailure) -> Int {
    do throws(SystemFailure) { if try file.look() { beginAnew() } } catch {
      throw failure(error.number, delivered: 0)
    }
    for (index, line) in lines.enumerated() {
      let cost = line.bytes.count + 1
      guard room.enter(line.kind, of: line.domain, cost) else {
        isFull = true
        lose(line.domain)
        continue
      }
      let error = file.append(line.bytes)
      guard error != 0 else { continue }
      room.leave(line.kind, of: line.domain, cost)
      // Others write there, too.
      guard error == EFBIG else { throw failure(error, delivered: index) }
      isFull = true
      lose(line.domain)
    }
    return lines.count
  }

  package var refusal: String? {
    isFull
      ? "\(file.path.escapedForDisplay) may become \(file.limit >> 20) MiB large, and has no room for some events until it is rotated"
      : nil
  }

  public func reset() { file.close() }

  private func beginAnew() {
    for kind in EventRoom.Kind.allCases { room.leaveAll(kind) }
    room.occupy(Int(clamping: file.size))
    isFull = false
  }

  private func failure(_ number: CInt, delivered: Int) -> DeliveryFailure {
    DeliveryFailure(
      "\(file.path.escapedForDisplay) cannot be written: \(describeError(number))", delivered: delivered)
  }
}
