/// What is stopped at a guest's port before the bridge sees it: frames to the bridge's own group addresses, 01:80:C2:00:00:00 to 0F (IEEE 802.1Q, table 8-1:
/// spanning tree, LACP, 802.1X, LLDP).
///
/// Linux learns where the sender of such a frame is, and hands the frame up to the host, before any hook of the bridge family is called
/// (`br_handle_frame` of net/bridge/br_input.c). So with one frame to ..:0E a guest gets all that is meant for another, and one with IP in it reaches the host
/// past blocks and quarantine; no rule of the bridge family can stop that. A chain of the netdev family at each port can.
enum PortRules {
  static let base = ChainSpecification.Base(hook: .prerouting, priority: SpoofingRules.priority)
  private static let prefix = "port-"
  static let comment = "\(SpoofingKind.mac.rawValue): to the bridge's own addresses"

  /// By number and name: an interface that is made anew under an old name, or gets another one, has another chain.
  static func chain(of interface: String, number: UInt32) -> String { "\(prefix)\(number)-\(interface)" }

  /// At whose port a chain is; nil: it is none of these.
  static func interface(of chain: String) -> String? {
    guard chain.hasPrefix(prefix), let end = chain.dropFirst(prefix.count).firstIndex(of: "-") else { return nil }
    return String(chain[chain.index(after: end)...])
  }

  static func rule(in chain: String) -> RuleSpecification {
    RuleSpecification(
      chain, comment,
      [
        .payload(.link, offset: 0, length: 6, Register(0)), .mask(Register(0), [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xF0]),
        .equal(Register(0), [0x01, 0x80, 0xC2, 0x00, 0x00, 0x00]), .counter, .verdict(.drop),
      ])
  }
}
