import VMFenceCore
import VMFencePackets

/// What heads ask of a packet, taken out of it once: a decoded packet is too long to be handed on for every rule.
struct HeaderKey: BitwiseCopyable {
  let source: IPAddress
  let destination: IPAddress
  let sourcePort: UInt16
  let destinationPort: UInt16
  let network: NetworkLayer
  let transport: TransportLayer
  let ipProtocol: UInt8
  /// Whether the transport header is that of a whole datagram, not of a fragment.
  let hasTransport: Bool
  let hasPorts: Bool

  init(_ match: borrowing PacketMatch) {
    source = match.packet.source
    destination = match.packet.destination
    sourcePort = match.packet.sourcePort
    destinationPort = match.packet.destinationPort
    network = match.packet.network
    transport = match.packet.transport
    ipProtocol = match.packet.ipProtocol
    hasTransport = match.hasTransport
    hasPorts = hasTransport && (transport == .tcp || transport == .udp || transport == .sctp)
  }
}

/// Compares packets with what stands before a rule's parenthesis.
struct HeaderMatcher: BitwiseCopyable {
  let headers: Int
  let addressSets: Int
  let v4Ranges: Int
  let v6Ranges: Int
  let portSets: Int
  let portRanges: Int

  init(_ sections: ImageSections) {
    headers = sections[.headers].offset
    addressSets = sections[.addressSets].offset
    v4Ranges = sections[.v4Ranges].offset
    v6Ranges = sections[.v6Ranges].offset
    portSets = sections[.portSets].offset
    portRanges = sections[.portRanges].offset
  }

  func matches(_ index: Int, _ packet: HeaderKey, _ image: RawSpan) -> Bool {
    let record = headers + index * HeaderRecord.stride
    let hasTransport = packet.hasTransport
    let hasPorts = packet.hasPorts
    if !hasPorts, image.u8(record + HeaderRecord.needsPorts) != 0 { return false }
    switch RuleProtocol(rawValue: image.u8(record + HeaderRecord.ipProtocol)) {
    case .tcp: guard hasTransport, packet.transport == .tcp else { return false }
    case .udp: guard hasTransport, packet.transport == .udp else { return false }
    case .icmp:
      guard hasTransport, packet.transport == .icmp || packet.transport == .icmpv6 else { return false }
    case .ip: guard packet.network == .ipv4 || packet.network == .ipv6 else { return false }
    case .sctp: guard hasTransport, packet.transport == .sctp else { return false }
    case .igmp: guard packet.network == .ipv4, packet.ipProtocol == 2 else { return false }
    case .arp: guard packet.network == .arp else { return false }
    case .ether, .any: break
    case nil: return false
    }
    let (source, destination) = (HeaderRecord.source, HeaderRecord.destination)
    let (sourcePorts, destinationPorts) = (HeaderRecord.sourcePorts, HeaderRecord.destinationPorts)
    // Ports first: they tell apart most, and cost least.
    if !hasPorts
      || hasPort(image.u32le(record + destinationPorts), packet.destinationPort, image)
        && hasPort(image.u32le(record + sourcePorts), packet.sourcePort, image)
    {
      if hasAddress(image.u32le(record + destination), packet.destination, image),
        hasAddress(image.u32le(record + source), packet.source, image)
      {
        return true
      }
    }
    guard image.u8(record + HeaderRecord.isBidirectional) != 0 else { return false }
    if hasPorts {
      guard hasPort(image.u32le(record + destinationPorts), packet.sourcePort, image),
        hasPort(image.u32le(record + sourcePorts), packet.destinationPort, image)
      else { return false }
    }
    return hasAddress(image.u32le(record + destination), packet.source, image)
      && hasAddress(image.u32le(record + source), packet.destination, image)
  }

  func hasPort(_ set: UInt32, _ port: UInt16, _ image: RawSpan) -> Bool {
    if set == noIndex { return true }
    let record = portSets + Int(set) * 8
    let ranges = portRanges + Int(image.u32le(record)) * 4
    var low = 0
    var high = Int(image.u32le(record + 4))
    // The first range that ends at or after the port.
    while low < high {
      let middle = (low + high) / 2
      if image.u16le(ranges + middle * 4 + 2) < port { low = middle + 1 } else { high = middle }
    }
    return low < Int(image.u32le(record + 4)) && image.u16le(ranges + low * 4) <= port
  }

  func hasAddress(_ set: UInt32, _ address: IPAddress, _ image: RawSpan) -> Bool {
    if set == noIndex { return true }
    let record = addressSets + Int(set) * 16
    return address.family == .v4
      ? hasV4(
        UInt32(truncatingIfNeeded: address.low), v4Ranges + Int(image.u32le(record)) * 8,
        Int(image.u32le(record + 4)), image)
      : hasV6(address, v6Ranges + Int(image.u32le(record + 8)) * 32, Int(image.u32le(record + 12)), image)
  }

  private func hasV4(_ address: UInt32, _ ranges: Int, _ count: Int, _ image: RawSpan) -> Bool {
    var low = 0
    var high = count
    while low < high {
      let middle = (low + high) / 2
      if image.u32le(ranges + middle * 8 + 4) < address { low = middle + 1 } else { high = middle }
    }
    return low < count && image.u32le(ranges + low * 8) <= address
  }

  private func hasV6(_ address: IPAddress, _ ranges: Int, _ count: Int, _ image: RawSpan) -> Bool {
    var low = 0
    var high = count
    while low < high {
      let middle = (low + high) / 2
      let end = ranges + middle * 32 + 16
      if (image.u64le(end), image.u64le(end + 8)) < (address.high, address.low) {
        low = middle + 1
      } else {
        high = middle
      }
    }
    guard low < count else { return false }
    let start = ranges + low * 32
    return (image.u64le(start), image.u64le(start + 8)) <= (address.high, address.low)
  }
}
