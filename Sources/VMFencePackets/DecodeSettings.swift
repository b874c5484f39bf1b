/// What decoding has to be told: at which UDP ports tunnels are looked for. A flat value without references.
public struct DecodeSettings: Hashable, Sendable, BitwiseCopyable {
  /// Ports of one kind of tunnel at the most.
  public static let portMaximum = 4

  /// Tunnels in UDP.
  public enum Tunnel: String, Sendable, CaseIterable { case vxlan, geneve, teredo, gtp }

  private var vxlan = TunnelPorts(4789)
  private var geneve = TunnelPorts(6081)
  private var teredo = TunnelPorts(3544)
  private var gtp = TunnelPorts(2152, 3386)
  /// A bit for the last six bits of each port: what has none of them is no tunnel.
  private var mask: UInt64 =
    1 << (4789 & 63) | 1 << (6081 & 63) | 1 << (3544 & 63) | 1 << (2152 & 63) | 1 << (3386 & 63)

  /// The ports that IANA gave them: VXLAN 4789, Geneve 6081, Teredo 3544, GTP 2152 and (version 0) 3386.
  public init() {}

  /// Sets the ports of a kind of tunnel.
  ///
  /// - Precondition: at most `portMaximum` ports, none of them 0.
  public mutating func setPorts(_ ports: [UInt16], of tunnel: Tunnel) {
    change(tunnel) { $0.setPorts(ports) }
  }

  /// Whether a kind of tunnel is looked for at all; its ports stay.
  public mutating func setEnabled(_ isEnabled: Bool, _ tunnel: Tunnel) {
    change(tunnel) { $0.isEnabled = isEnabled }
  }

  private mutating func change(_ tunnel: Tunnel, _ body: (inout TunnelPorts) -> Void) {
    switch tunnel {
    case .vxlan: body(&vxlan)
    case .geneve: body(&geneve)
    case .teredo: body(&teredo)
    case .gtp: body(&gtp)
    }
    mask = vxlan.mask | geneve.mask | teredo.mask | gtp.mask
  }

  /// The kind of tunnel that a port at either end is for.
  @inline(__always)
  func tunnel(_ source: UInt16, _ destination: UInt16) -> Tunnel? {
    guard mask & (1 << UInt64(source & 63) | 1 << UInt64(destination & 63)) != 0 else { return nil }
    return kind(source, destination)
  }

  private func kind(_ source: UInt16, _ destination: UInt16) -> Tunnel? {
    if vxlan.has(source, destination) { return .vxlan }
    if geneve.has(source, destination) { return .geneve }
    if teredo.has(source, destination) { return .teredo }
    return gtp.has(source, destination) ? .gtp : nil
  }
}

/// The ports of one kind of tunnel; unused places are 0.
private struct TunnelPorts: Hashable, Sendable, BitwiseCopyable {
  private var ports: (UInt16, UInt16, UInt16, UInt16)
  var isEnabled = true

  init(_ port: UInt16, _ second: UInt16 = 0) { ports = (port, second, 0, 0) }

  mutating func setPorts(_ new: [UInt16]) {
    precondition(new.count <= DecodeSettings.portMaximum, "more tunnel ports than there is room for")
    func port(_ index: Int) -> UInt16 { index < new.count ? new[index] : 0 }
    ports = (port(0), port(1), port(2), port(3))
  }

  private var list: [UInt16] { [ports.0, ports.1, ports.2, ports.3] }
  var mask: UInt64 { isEnabled ? list.filter { $0 != 0 }.reduce(0) { $0 | 1 << UInt64($1 & 63) } : 0 }

  func has(_ source: UInt16, _ destination: UInt16) -> Bool {
    isEnabled && (has(source) || has(destination))
  }

  private func has(_ port: UInt16) -> Bool {
    port != 0 && (ports.0 == port || ports.1 == port || ports.2 == port || ports.3 == port)
  }

  static func == (a: TunnelPorts, b: TunnelPorts) -> Bool { a.list == b.list && a.isEnabled == b.isEnabled }
  func hash(into hasher: inout Hasher) {
    hasher.combine(list)
    hasher.combine(isEnabled)
  }
}
