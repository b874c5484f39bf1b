public import VMFenceCore
import VMFencePackets

/// What the measured detector does with each packet, as its rule image's first byte says.
public enum Work: UInt8, Sendable, CaseIterable {
  /// Nothing: the ring alone.
  case nothing
  /// Decodes it down to the transport header.
  case decode
}

public struct MeasuredRules: CompiledRules {
  public let work: Work
  public let image: RuleImage

  public init(_ work: Work) {
    self.work = work
    image = [work.rawValue].withRawSpan { RuleImage(copying: $0) }
  }

  public init(image: RuleImage) throws(RuleCompilationError) {
    guard image.byteCount >= 1, let work = Work(rawValue: image.withBytes { $0.u8(0) }) else {
      throw RuleCompilationError(.badImage, "not a benchmark's image")
    }
    self.work = work
    self.image = image
  }

  public var ruleCount: Int { 1 }
  public func metadata(at index: Int) -> RuleMetadata { RuleMetadata(sid: 1) }
}

public struct MeasuredInspector: PacketInspector, ~Copyable {
  public typealias Rules = MeasuredRules
  private var work: Work
  private var ports: UInt64 = 0

  public static func make(
    rules: MeasuredRules, configuration: InspectorConfiguration
  ) throws(RuleCompilationError) -> MeasuredInspector { MeasuredInspector(work: rules.work) }

  public mutating func replaceRules(with rules: MeasuredRules) throws(RuleCompilationError) { work = rules.work }
  public var statistics: [(name: String, value: UInt64)] { [("ports", ports)] }

  public mutating func inspect(_ frame: FrameMetadata, _ bytes: RawSpan, into output: inout InspectionOutput) {
    guard work == .decode else { return }
    let packet = DecodedPacket.decode(bytes, linkType: frame.linkType, strippedVLAN: frame.strippedVLAN)
    // Used, so that nothing is left out; never true.
    ports &+= UInt64(packet.sourcePort)
    if packet.anomalies.rawValue == .max { output.verdict = .drop }
  }
}
