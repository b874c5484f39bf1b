public import VMFenceCore
import VMFencePackets

/// Two frames that end a TCP connection at both of its ends (RFC 9293 §3.5.2), made from a packet of it that a rule rejected.
///
/// An end takes a reset only with exactly the sequence number that it expects next (RFC 5961 §3.2). The receiver of the packet expects what comes
/// behind it; its sender, what it acknowledged. If an end has received more meanwhile, it ignores the reset, and the flow that was cut starves.
public struct TCPReset: Hashable, Sendable {
  /// Who sent the packet, and to whom.
  let source: Station
  let destination: Station
  /// The packet's whole tag (IEEE 802.1Q).
  let vlan: UInt16?
  /// The sequence number behind the packet: what its receiver expects.
  let next: UInt32
  /// What the packet acknowledged: what its sender expects. nil: nothing.
  let acknowledged: UInt32?

  struct Station: Hashable, Sendable {
    var mac: MACAddress
    var address: IPAddress
    var port: UInt16
  }

  /// Both addresses are of one family.
  init(source: Station, destination: Station, vlan: UInt16?, next: UInt32, acknowledged: UInt32?) {
    self.source = source
    self.destination = destination
    self.vlan = vlan
    self.next = next
    self.acknowledged = acknowledged
  }

  /// nil when the packet is none of a TCP connection over Ethernet, a reset itself, or cut off within its headers.
  public init?(_ packet: RefusedPacket) {
    let made = packet.head.withRawSpan { bytes -> TCPReset? in
      let decoded = DecodedPacket.decode(
        bytes, linkType: packet.frame.linkType, strippedVLAN: packet.frame.strippedVLAN)
      guard packet.frame.linkType == .ethernet, decoded.transport == .tcp, !decoded.tcpFlags.contains(.rst),
        let segment = Self.segmentLength(decoded, bytes)
      else { return nil }
      let flags = decoded.tcpFlags
      return TCPReset(
        source: Station(mac: decoded.sourceMAC, address: decoded.source, port: decoded.sourcePort),
        destination: Station(mac: decoded.destinationMAC, address: decoded.destination, port: decoded.destinationPort),
        vlan: decoded.vlanCount > 0 ? decoded.outerVLAN : nil,
        next: decoded.tcpSequence &+ segment &+ (flags.contains(.syn) ? 1 : 0) &+ (flags.contains(.fin) ? 1 : 0),
        acknowledged: flags.contains(.ack) ? decoded.tcpAcknowledgement : nil)
    }
    guard let made else { return nil }
    self = made
  }

  /// A whole Ethernet frame.
  public var toDestination: [UInt8] {
    ResetFrame(source: source, destination: destination, vlan: vlan, sequence: next, acknowledgement: nil).bytes
  }

  /// A whole Ethernet frame. Without an acknowledgement nothing is known of what the sender expects: it gets one for what it sent, as a closed port answers.
  public var toSource: [UInt8] {
    ResetFrame(
      source: destination, destination: source, vlan: vlan, sequence: acknowledged ?? 0,
      acknowledgement: acknowledged == nil ? next : nil
    ).bytes
  }

  /// The bytes of data by the datagram's own length field: the frame's end may be cut off.
  private static func segmentLength(_ decoded: DecodedPacket, _ bytes: RawSpan) -> UInt32? {
    let network = Int(decoded.networkOffset)
    let end: Int
    switch decoded.network {
    case .ipv4:
      guard network + 20 <= bytes.byteCount else { return nil }
      end = network + Int(bytes.u16(network + 2))
    case .ipv6:
      guard network + 40 <= bytes.byteCount else { return nil }
      end = network + 40 + Int(bytes.u16(network + 4))
    default: return nil
    }
    let length = end - Int(decoded.payloadOffset)
    return length >= 0 ? UInt32(length) : nil
  }
}

/// What a reset says.
private struct ResetFrame {
  var source: TCPReset.Station
  var destination: TCPReset.Station
  var vlan: UInt16?
  var sequence: UInt32
  var acknowledgement: UInt32?

  var bytes: [UInt8] {
    var frame: [UInt8] = []
    put(destination.mac.rawValue, 6, &frame)
    put(source.mac.rawValue, 6, &frame)
    if let vlan {
      put(0x8100, 2, &frame)
      put(UInt64(vlan), 2, &frame)
    }
    put(source.address.family == .v4 ? 0x0800 : 0x86DD, 2, &frame)
    let segment = segment
    if source.address.family == .v4 {
      var header: [UInt8] = [0x45, 0]
      put(UInt64(20 + segment.count), 2, &header)
      header += [0, 0, 0x40, 0, 64, 6, 0, 0]
      put(source.address.low, 4, &header)
      put(destination.address.low, 4, &header)
      let sum = header.withRawSpan { Checksum.internet($0) }
      header[10] = UInt8(sum >> 8)
      header[11] = UInt8(sum & 0xFF)
      frame += header
    } else {
      frame += [0x60, 0, 0, 0]
      put(UInt64(segment.count), 2, &frame)
      frame += [6, 64] + addresses
    }
    return frame + segment
  }

  private var addresses: [UInt8] {
    var bytes: [UInt8] = []
    for address in [source.address, destination.address] {
      if address.family == .v6 { put(address.high, 8, &bytes) }
      put(address.low, address.family == .v4 ? 4 : 8, &bytes)
    }
    return bytes
  }

  /// The TCP header (RFC 9293 §3.1), with its checksum over the pseudo-header.
  private var segment: [UInt8] {
    var header: [UInt8] = []
    put(UInt64(source.port), 2, &header)
    put(UInt64(destination.port), 2, &header)
    put(UInt64(sequence), 4, &header)
    put(UInt64(acknowledgement ?? 0), 4, &header)
    // Five words long; RST, and ACK where it acknowledges.
    header += [0x50, acknowledgement == nil ? 0x04 : 0x14, 0, 0, 0, 0, 0, 0]
    let pseudo = addresses + [0, 6, 0, UInt8(header.count)]
    let sum = (pseudo + header).withRawSpan { Checksum.internet($0) }
    header[16] = UInt8(sum >> 8)
    header[17] = UInt8(sum & 0xFF)
    return header
  }

  private func put(_ value: UInt64, _ count: Int, _ bytes: inout [UInt8]) {
    for index in (0..<count).reversed() { bytes.append(UInt8(truncatingIfNeeded: value >> UInt64(8 * index))) }
  }
}
