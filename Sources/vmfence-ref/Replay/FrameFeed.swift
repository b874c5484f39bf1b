#if Daemon
import VMFenceCapture
import VMFenceCore

/// The frames of all captures in the order of time, with the next one in view.
struct FrameFeed: ~Copyable {
  private var source = MergedCapture()
  private var ahead: FrameMetadata?
  private var bytes: [UInt8] = []
  private(set) var problem: PacketSourceError?
  private(set) var bytesDone: Int64 = 0
  let bytesTotal: Int64

  init(_ captures: [(file: ScenarioCapture, size: Int64)], _ ports: inout HostPorts) throws(ReplayFailure) {
    bytesTotal = captures.reduce(0) { $0 + $1.size }
    for (capture, _) in captures {
      let port = ports.number(capture.interface, isBridge: capture.isBridge)
      do throws(PacketSourceError) {
        source.add(try CaptureFile.open(path: capture.path, ports: .all(port)))
      } catch { throw ReplayFailure(error.diagnostic) }
    }
    bytes.reserveCapacity(CaptureFile.maximumFrameLength)
    look()
  }

  var counters: CaptureCounters { source.counters }

  /// The next frame; nil at the end.
  var next: FrameMetadata? { ahead }

  /// Hands the next frame over, and looks for the one after it.
  mutating func take(_ body: (FrameMetadata, RawSpan) -> Void) {
    guard let frame = ahead else { return }
    bytes.withRawSpan { body(frame, $0) }
    bytesDone += Int64(bytes.count) + 16
    look()
  }

  private mutating func look() {
    ahead = nil
    guard problem == nil else { return }
    do throws(PacketSourceError) {
      _ = try source.nextBatch(limit: 1, patience: .zero) { frame, span in
        ahead = frame
        bytes.removeAll(keepingCapacity: true)
        for offset in 0..<span.byteCount { bytes.append(span.u8(offset)) }
      }
    } catch {
      problem = error
    }
  }
}
#endif
