/// Makes detectors: as threads of this process, or as processes of their own. The same input gives the same output
/// from both.
public protocol DetectorBackend: Sendable {
  associatedtype Rules: CompiledRules

  /// Makes the pair of rings for one incarnation. It outlives the detectors that are launched on it, so that a crash loses
  /// nothing.
  func makeChannel(_ configuration: DetectorChannelConfiguration) throws(DetectorError) -> DetectorChannel

  /// Starts a detector that consumes the channel's packet ring from where its last consumer stopped.
  ///
  /// - Throws: also when a detector is attached to the channel already: `kill()` the previous one first, dead or not.
  func launch(
    rules: Rules, channel: DetectorChannel, configuration: InspectorConfiguration
  ) throws(DetectorError) -> any DetectorHandle<Rules>
}

/// Holds one running detector. All calls come from the supervisor, from the thread that uses the channel.
public protocol DetectorHandle<Rules>: AnyObject, Sendable {
  associatedtype Rules: CompiledRules

  /// State q3: the detector executes nothing until it is resumed. A process is stopped by SIGSTOP at any instruction; a
  /// thread parks at the next batch boundary.
  func suspend() throws(DetectorError)
  func resume() throws(DetectorError)
  /// Hands over other rules: every packet enqueued before is inspected with the old ones, every packet enqueued after with
  /// these, flow state kept. A suspended detector swaps when it is resumed.
  ///
  /// - Returns: the generation of these rules, as `PacketVerdict.generation` shows it.
  @discardableResult
  func replaceRules(with rules: Rules) throws(DetectorError) -> UInt32
  /// Ends the detector, waits until it is gone and detaches it from its channel. To be called after a crash too.
  /// Idempotent. Verdicts that it had published can still be collected.
  func kill()
  /// Whether it still runs, without waiting.
  var status: DetectorStatus { get }
}

public enum DetectorStatus: Hashable, Sendable {
  case running
  case suspended
  /// Ended on its own: exit code or signal.
  case exited(code: Int32)
  case crashed(signal: Int32)
  /// Ended by `kill()`.
  case killed
}

public struct DetectorChannelConfiguration: Hashable, Sendable {
  /// Bytes of the packet ring, a power of two, 4 KiB to 1 GiB; room for the largest frame twice at least.
  public var packetRingBytes: Int
  /// Bytes of the verdict ring, a power of two, 16 KiB to 1 GiB.
  public var verdictRingBytes: Int
  /// Bytes kept of a frame at the most; longer frames are cut, counted, and keep their original length.
  public var snapLength: Int
  /// Bytes that a detector's saved state may have, a multiple of 4 KiB up to 256 MiB; 0: it is not saved. There is room for two, which takes
  /// memory only once it is written to.
  public var stateBytes: Int

  public init(
    packetRingBytes: Int = 4 << 20, verdictRingBytes: Int = 1 << 20, snapLength: Int = 262_144,
    stateBytes: Int = 16 << 20
  ) {
    self.packetRingBytes = packetRingBytes
    self.verdictRingBytes = verdictRingBytes
    self.snapLength = snapLength
    self.stateBytes = stateBytes
  }
}

public struct DetectorError: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    public init(_ name: String) { self.name = name }
    public static let launchFailed = Code("launch-failed")
    public static let memory = Code("memory")
    public static let badRules = Code("bad-rules")
    public static let gone = Code("gone")
    /// The detector wrote something into the shared memory that a sound one never writes.
    public static let violation = Code("violation")
    public static let failed = Code("failed")
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace?
  public var remedy: String

  public init(_ code: Code, _ message: String, at place: SourcePlace? = nil, remedy: String = "") {
    self.code = code
    self.message = message
    self.place = place
    self.remedy = remedy
  }
}
