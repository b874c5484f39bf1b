/// What decoding has to be told: where tunnels are looked for. A flat value without references.
public struct DecodeSettings: Hashable, Sendable, BitwiseCopyable {
  /// Ports of one kind of tunnel at the most.
  public static let portMaximum = 4

  // Unused places are 0, which is no port.
  private var vxlan: InlineArray<4, UInt16> = [4789, 0, 0, 0]
  private var geneve: InlineArray<4, UInt16> = [6081, 0, 0, 0]
  private var teredo: InlineArray<4, UInt16> = [3544, 0, 0, 0]
  /// A bit for the last six bits of each port: what has none of them is no tunnel.
  private var mask: UInt64 = 1 << (4789 & 63) | 1 << (6081 & 63) | 1 << (3544 & 63)

  /// The ports that IANA gave them: VXLAN 4789, Geneve 6081, Teredo 3544.
  public init() {}

  /// At most `portMaximum` ports of each kind; no ports: not decoded.
  public init(vxlanPorts: [UInt16], genevePorts: [UInt16], teredoPorts: [UInt16]) {
    mask = 0
    for ports in [vxlanPorts, genevePorts, teredoPorts] {
      precondition(ports.count <= Self.portMaximum, "more tunnel ports than there is room for")
      for port in ports { mask |= 1 << UInt64(port & 63) }
    }
    for index in 0..<Self.portMaximum {
      vxlan[index] = index < vxlanPorts.count ? vxlanPorts[index] : 0
      geneve[index] = index < genevePorts.count ? genevePorts[index] : 0
      teredo[index] = index < teredoPorts.count ? teredoPorts[index] : 0
    }
  }

  enum UDPTunnel { case vxlan, geneve, teredo }

  /// The kind of tunnel that a port at either end is for.
  @inline(__always)
  func tunnel(_ source: UInt16, _ destination: UInt16) -> UDPTunnel? {
    guard mask & (1 << UInt64(source & 63) | 1 << UInt64(destination & 63)) != 0 else { return nil }
    return kind(source, destination)
  }

  private func kind(_ source: UInt16, _ destination: UInt16) -> UDPTunnel? {
    if has(vxlan, source, destination) { return .vxlan }
    if has(geneve, source, destination) { return .geneve }
    return has(teredo, source, destination) ? .teredo : nil
  }

  private func has(_ ports: InlineArray<4, UInt16>, _ source: UInt16, _ destination: UInt16) -> Bool {
    for index in 0..<Self.portMaximum where ports[index] != 0 {
      if ports[index] == source || ports[index] == destination { return true }
    }
    return false
  }

  // Whole values are compared and hashed by their ports alone: the mask follows from them.
  public static func == (a: DecodeSettings, b: DecodeSettings) -> Bool { a.ports == b.ports }
  public func hash(into hasher: inout Hasher) { hasher.combine(ports) }
  private var ports: [UInt16] { [vxlan, geneve, teredo].flatMap { kind in (0..<Self.portMaximum).map { kind[$0] } } }
}
