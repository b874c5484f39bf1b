import VMFenceCore
import VMFencePackets

extension Frame {
  /// One of each way to carry the datagram of `tcp(hello)`: its name, how the packet in it came to be, and the frame.
  static let nested: [(name: String, origin: PacketOrigin, bytes: [UInt8])] = {
    let tcp4 = ipv4(6, tcp(hello))
    let tcp6 = ipv6(6, tcp(hello, v6: true))
    let inner = ethernet(0x0800, tcp4)
    func v4(_ ipProtocol: Int, _ payload: [UInt8]) -> [UInt8] { ethernet(0x0800, ipv4(ipProtocol, payload)) }
    func v6(_ next: Int, _ payload: [UInt8]) -> [UInt8] { ethernet(0x86DD, ipv6(next, payload)) }
    func gre(_ flags: Int, _ type: Int, _ rest: [UInt8]) -> [UInt8] { v4(47, be16(flags) + be16(type) + rest) }
    func inUDP(_ port: Int, _ payload: [UInt8]) -> [UInt8] { v4(17, udp(payload, destination: port)) }
    return [
      ("ipv4 in ipv4", .ipv4Tunnel, v4(4, tcp4)), ("ipv6 in ipv4", .ipv4Tunnel, v4(41, tcp6)),
      ("ipv4 in ipv6", .ipv6Tunnel, v6(4, tcp4)), ("ipv6 in ipv6", .ipv6Tunnel, v6(41, tcp6)),
      ("ipv4 in ipv6 after options", .ipv6Tunnel, v6(60, [4, 0, 1, 4, 0, 0, 0, 0] + tcp4)),
      ("gre", .gre, gre(0, 0x0800, tcp4)), ("gre with ipv6", .gre, gre(0, 0x86DD, tcp6)),
      ("gre over ipv6", .gre, v6(47, be16(0) + be16(0x0800) + tcp4)),
      ("gre with everything", .gre, gre(0xB000, 0x0800, be32(0) + be32(1) + be32(2) + tcp4)),
      ("gre with a route", .gre, gre(0x4000, 0x0800, be32(0) + be16(0x0800) + [0, 4] + be32(9) + be32(0) + tcp4)),
      ("gre with a tag", .gre, gre(0, 0x8100, be16(5) + be16(0x0800) + tcp4)),
      ("gre bridging", .gre, gre(0, 0x6558, inner)),
      ("gre with mpls", .gre, gre(0, 0x8847, be32(0x10_0140) + tcp4)),
      ("pptp", .gre, gre(0x3001, 0x880B, be16(4 + tcp4.count) + be16(1) + be32(1) + [0xFF, 3, 0, 0x21] + tcp4)),
      ("pptp, acknowledging", .gre, gre(0x3081, 0x880B, be16(2) + be16(1) + be32(1) + be32(2) + [0, 0x57] + tcp6)),
      ("erspan I", .gre, gre(0, 0x88BE, inner)),
      ("erspan II", .gre, gre(0x1000, 0x88BE, be32(1) + be16(0x1017) + be16(0) + be32(0) + inner)),
      ("erspan III", .gre, gre(0x1000, 0x22EB, be32(1) + be16(0x2017) + be16(0) + be32(0) + be32(0) + inner)),
      (
        "erspan III with a subheader", .gre,
        gre(0x1000, 0x22EB, be32(1) + be16(0x2000) + be16(0) + be32(0) + be32(1) + be32(0) + be32(0) + inner)
      ),
      ("vxlan", .vxlan, inUDP(4789, [8, 0, 0, 0, 0, 0, 9, 0] + inner)),
      ("geneve", .geneve, inUDP(6081, [1, 0, 0x65, 0x58, 0, 0, 9, 0] + be32(0) + inner)),
      ("geneve with ipv6", .geneve, inUDP(6081, [0, 0, 0x86, 0xDD, 0, 0, 9, 0] + tcp6)),
      ("teredo", .teredo, inUDP(3544, tcp6)),
      ("teredo with an origin", .teredo, inUDP(3544, [0, 0, 1, 2, 3, 4, 5, 6] + tcp6)),
      ("teredo, authenticated", .teredo, inUDP(3544, [0, 1, 0, 0] + [UInt8](repeating: 0, count: 9) + tcp6)),
      ("gtp", .gtp, inUDP(2152, [0x30, 0xFF] + be16(tcp4.count) + be32(7) + tcp4)),
      (
        "gtp with a number", .gtp,
        inUDP(2152, [0x32, 0xFF] + be16(4 + tcp6.count) + be32(7) + be16(1) + [0, 0] + tcp6)
      ),
      (
        "gtp with extensions", .gtp,
        inUDP(
          2152,
          [0x34, 0xFF] + be16(16 + tcp4.count) + be32(7) + [0, 0, 0, 0x85] + [1, 9, 9, 0xC0] + [2, 1, 2, 3, 4, 5, 6, 0]
            + tcp4)
      ),
      (
        "gtp version 0", .gtp,
        inUDP(3386, [0x1E, 0xFF] + be16(tcp4.count) + [UInt8](repeating: 0xFF, count: 16) + tcp4)
      ),
    ]
  }()

  /// Headers that are no tunnels: the datagram is the frame's own.
  static let carried: [(name: String, bytes: [UInt8])] = {
    let tcp4 = ipv4(6, tcp(hello))
    let inner = ethernet(0x0800, tcp4)
    return [
      ("three tags", ethernet(0x0800, tcp4, vlans: [(0x88A8, 1), (0x8100, 2), (0x8100, 3)])),
      ("802.1ah", ethernet(0x88E7, be32(5) + guestMAC + peerMAC + be16(0x0800) + tcp4)),
      ("vn-tag", ethernet(0x8926, be32(5) + be16(0x0800) + tcp4)),
      ("mpls", ethernet(0x8847, be32(0x10_0040) + be32(0x11_0140) + tcp4)),
      ("mpls, explicit null", ethernet(0x8847, be32(0x0000_0140) + tcp4)),
      ("mpls pseudowire", ethernet(0x8847, be32(0x10_0140) + be32(0) + inner)),
      ("pppoe", ethernet(0x8864, [0x11, 0] + be16(1) + be16(2 + tcp4.count) + [0, 0x21] + tcp4)),
      ("fabricpath", ethernet(0x8903, [0, 1] + inner)),
      ("nsh", ethernet(0x894F, [0, 6, 1, 1] + [UInt8](repeating: 0, count: 20) + tcp4)),
      ("nsh with ethernet", ethernet(0x894F, [0, 2, 2, 3] + be32(0) + inner)),
    ]
  }()
}
