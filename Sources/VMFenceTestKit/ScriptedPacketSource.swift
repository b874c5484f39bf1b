import VMFenceCore

/// A packet source whose frames are written in code, with the faults that a real one has: frames lost, cut off, an error in the
/// middle, pauses without frames.
public struct ScriptedPacketSource: ~Copyable, Sendable, PacketSource {
  public enum Step: Hashable, Sendable {
    case frame(FrameMetadata, [UInt8])
    /// The kernel dropped so many frames here.
    case kernelDrops(UInt64)
    /// The interface dropped so many frames here.
    case interfaceDrops(UInt64)
    /// A record that is no frame.
    case skipped
    /// Nothing comes here: a batch that reaches this point ends, as when patience runs out.
    case pause
    /// The source fails here, and stays so.
    case failure(PacketSourceError)
  }

  private let steps: [Step]
  private var position = 0
  public private(set) var counters = CaptureCounters()

  public init(_ steps: [Step]) { self.steps = steps }

  /// Frames alone. Times, ports and lengths are as the metadata say.
  public init(frames: [(FrameMetadata, [UInt8])]) { self.init(frames.map { .frame($0.0, $0.1) }) }

  public mutating func nextBatch(
    limit: Int, patience: Duration = .zero, _ body: (FrameMetadata, RawSpan) -> Void
  ) throws(PacketSourceError) -> BatchOutcome {
    var frames = 0
    while frames < limit {
      guard position < steps.count else { return BatchOutcome(frames: frames, isAtEnd: true) }
      if case .failure(let error) = steps[position] { throw error }
      position += 1
      switch steps[position - 1] {
      case .frame(let metadata, let bytes):
        counters.received += 1
        counters.receivedBytes += UInt64(bytes.count)
        if Int(metadata.originalLength) > bytes.count { counters.truncated += 1 }
        bytes.withRawSpan { body(metadata, $0) }
        frames += 1
      case .kernelDrops(let count): counters.droppedByKernel += count
      case .interfaceDrops(let count): counters.droppedByInterface += count
      case .skipped: counters.skipped += 1
      case .pause, .failure: return BatchOutcome(frames: frames, isAtEnd: false)
      }
    }
    return BatchOutcome(frames: frames, isAtEnd: false)
  }
}
