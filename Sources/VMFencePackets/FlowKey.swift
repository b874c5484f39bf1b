import VMFenceCore

/// What identifies a flow: addresses, ports, protocol and VLANs, equal for both directions. The end with the lower (address, port)
/// comes first.
///
/// For protocols without ports (ICMP too, whose type and code are no ends of a conversation) and for fragments after the first the
/// ports are 0: all such packets between two addresses are one flow.
public struct FlowKey: Hashable, Sendable, BitwiseCopyable {
  public var firstHigh: UInt64
  public var firstLow: UInt64
  public var secondHigh: UInt64
  public var secondLow: UInt64
  /// From the high bits down: first port, second port, outer and inner VLAN identifiers (16 bits each).
  public var portsAndVLANs: UInt64
  /// From the low bits up: IP protocol (8 bits), address family (4 or 6; 8 bits), tunnel layer (8 bits; 0 outside of tunnels), third
  /// VLAN identifier (12 bits). The rest is zero, and for those who tell more flows apart.
  public var protocolAndFamily: UInt64

  /// - Returns: the key, and whether `source` is the first end of it: the packet's direction within the flow.
  @inlinable @inline(__always)
  public static func make(
    source: IPAddress, sourcePort: UInt16, destination: IPAddress, destinationPort: UInt16, ipProtocol: UInt8,
    outerVLAN: UInt16 = 0, innerVLAN: UInt16 = 0, thirdVLAN: UInt16 = 0
  ) -> (key: FlowKey, isForward: Bool) {
    let isForward: Bool
    if source.high != destination.high {
      isForward = source.high < destination.high
    } else if source.low != destination.low {
      isForward = source.low < destination.low
    } else {
      isForward = sourcePort <= destinationPort
    }
    let (first, second) = isForward ? (source, destination) : (destination, source)
    let (firstPort, secondPort) = isForward ? (sourcePort, destinationPort) : (destinationPort, sourcePort)
    let key = FlowKey(
      firstHigh: first.high, firstLow: first.low, secondHigh: second.high, secondLow: second.low,
      portsAndVLANs: UInt64(firstPort) << 48 | UInt64(secondPort) << 32 | UInt64(outerVLAN & 0xFFF) << 16
        | UInt64(innerVLAN & 0xFFF),
      protocolAndFamily: UInt64(ipProtocol) | UInt64(source.family.rawValue) << 8 | UInt64(thirdVLAN & 0xFFF) << 24)
    return (key, isForward)
  }

  /// The key of a decoded packet. Only for packets whose network layer is IPv4 or IPv6.
  @inlinable @inline(__always)
  public static func make(_ packet: borrowing DecodedPacket) -> (key: FlowKey, isForward: Bool) {
    let transport = packet.transport
    let hasPorts = transport == .tcp || transport == .udp || transport == .sctp
    return make(
      source: packet.source, sourcePort: hasPorts ? packet.sourcePort : 0, destination: packet.destination,
      destinationPort: hasPorts ? packet.destinationPort : 0, ipProtocol: packet.ipProtocol,
      outerVLAN: packet.outerVLAN, innerVLAN: packet.innerVLAN, thirdVLAN: packet.thirdVLAN)
  }

  @inlinable @inline(__always)
  init(
    firstHigh: UInt64, firstLow: UInt64, secondHigh: UInt64, secondLow: UInt64, portsAndVLANs: UInt64,
    protocolAndFamily: UInt64
  ) {
    self.firstHigh = firstHigh
    self.firstLow = firstLow
    self.secondHigh = secondHigh
    self.secondLow = secondLow
    self.portsAndVLANs = portsAndVLANs
    self.protocolAndFamily = protocolAndFamily
  }

  @inlinable
  public static func == (a: FlowKey, b: FlowKey) -> Bool {
    (a.firstHigh ^ b.firstHigh) | (a.firstLow ^ b.firstLow) | (a.secondHigh ^ b.secondHigh)
      | (a.secondLow ^ b.secondLow) | (a.portsAndVLANs ^ b.portsAndVLANs)
      | (a.protocolAndFamily ^ b.protocolAndFamily) == 0
  }

  public var family: IPAddress.Family { protocolAndFamily >> 8 & 0xFF == 6 ? .v6 : .v4 }
  public var ipProtocol: UInt8 { UInt8(truncatingIfNeeded: protocolAndFamily) }
  public var first: IPAddress {
    family == .v4 ? IPAddress(v4: UInt32(truncatingIfNeeded: firstLow)) : IPAddress(v6High: firstHigh, low: firstLow)
  }
  public var second: IPAddress {
    family == .v4 ? IPAddress(v4: UInt32(truncatingIfNeeded: secondLow)) : IPAddress(v6High: secondHigh, low: secondLow)
  }
  public var firstPort: UInt16 { UInt16(truncatingIfNeeded: portsAndVLANs >> 48) }
  public var thirdVLAN: UInt16 { UInt16(truncatingIfNeeded: protocolAndFamily >> 24) & 0xFFF }
  public var secondPort: UInt16 { UInt16(truncatingIfNeeded: portsAndVLANs >> 32) }
}

extension KeyedHash {
  @inlinable @inline(__always)
  public func hash(_ key: FlowKey) -> UInt64 {
    hash(
      key.firstHigh, key.firstLow, key.secondHigh, key.secondLow, key.portsAndVLANs, key.protocolAndFamily)
  }
}
