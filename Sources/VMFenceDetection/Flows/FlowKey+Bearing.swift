import VMFenceCore
import VMFencePackets

/// What of a frame tells apart flows whose addresses and ports are the same.
///
/// **Sides.** At a guest's port it is known which end of a packet is the guest's: the sender of one that the guest sent, the receiver of one
/// that goes to it. Two packets of one conversation agree on that. A frame that bears the guest's own address and yet
/// arrives at it was forged by somebody outside; one that bears its peer's and comes from the guest, by the guest. It is in a flow of its
/// own, and so can neither change what is known of the real one nor be counted as a word of its end. A guest that forwards packets
/// from one of its ports to another has a flow for each of the two sides.
///
/// **Carriers.** A guest's stack takes a datagram behind an Ethernet header, and behind the VLAN tags that it knows. What comes behind
/// anything else (MPLS, PPPoE, SNAP, ...) goes to something else in the guest, or to nothing. That is told apart only where sides are
/// known: elsewhere, as in a provider's network, the two directions of a conversation may be carried in different ways.
extension FlowKey {
  private static let firstIsGuest: UInt64 = 1 << 36
  private static let secondIsGuest: UInt64 = 1 << 37
  private static let carrierShift: UInt64 = 40
  /// What no key has.
  static let unusedBits = ~(UInt64(1) << 56 - 1) | 1 << 38 | 1 << 39

  /// Says on which side its ends are.
  ///
  /// - `isForward`: the packet's source is the first end.
  @inline(__always)
  mutating func place(_ direction: FrameDirection, isForward: Bool, carrier: UInt16) {
    guard direction != .unknown else { return }
    let isFirst = (direction == .fromGuest) == isForward
    protocolAndFamily |= (isFirst ? Self.firstIsGuest : Self.secondIsGuest) | UInt64(carrier) << Self.carrierShift
  }

  /// Of fragments, whose ends are in the order of the packet.
  mutating func place(_ direction: FrameDirection, carrier: UInt16) {
    place(direction, isForward: true, carrier: carrier)
  }

  /// Whether the first end is the guest's, or the second; nil: nobody knows.
  var guestIsFirst: Bool? {
    switch protocolAndFamily & (Self.firstIsGuest | Self.secondIsGuest) {
    case Self.firstIsGuest: true
    case Self.secondIsGuest: false
    default: nil
    }
  }

  /// The same ends, each on the other side.
  var mirrored: FlowKey {
    var key = self
    key.protocolAndFamily ^= Self.firstIsGuest | Self.secondIsGuest
    return key
  }
}

extension FrameDirection {
  var reversed: FrameDirection {
    switch self {
    case .fromGuest: .toGuest
    case .toGuest: .fromGuest
    case .unknown: .unknown
    }
  }
}

extension PacketContext {
  /// The EtherType in a frame that leads to something else than an IP datagram behind tags of 802.1Q and 802.1ad; the length of an 802.3
  /// frame counts as 1. 0 for what lies directly behind the Ethernet header and those tags.
  @inline(__always)
  static func carrier(_ frame: FrameMetadata, _ bytes: RawSpan) -> UInt16 {
    guard frame.linkType == .ethernet, frame.direction != .unknown, bytes.byteCount >= 14 else { return 0 }
    let type = bytes.u16(12)
    return type == 0x0800 || type == 0x86DD ? 0 : carrier(behindTags: bytes, type)
  }

  private static func carrier(behindTags bytes: RawSpan, _ first: UInt16) -> UInt16 {
    var (type, offset) = (first, 14)
    while type == 0x8100 || type == 0x88A8 {
      guard bytes.byteCount - offset >= 4 else { return 0 }
      type = bytes.u16(offset + 2)
      offset += 4
    }
    switch type {
    case 0x0800, 0x86DD: return 0
    case ..<0x0600: return 1
    default: return type
    }
  }
}
