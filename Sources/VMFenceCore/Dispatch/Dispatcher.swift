/// Says which domains each captured frame concerns, and from which side. Used by one thread; allocates nothing and takes no
/// lock per frame.
///
/// At a domain's own port the port says whose the frame is, whatever its addresses claim. On a captured bridge the
/// addresses of both ends are looked up, so a frame from one guest to another is handed over once for each of them, with
/// the direction as that guest sees it.
public struct Dispatcher: ~Copyable {
  private let publisher: DispatchTablePublisher
  private var generation: UInt64
  @usableFromInline var table: DispatchTable
  /// The frames of a batch mostly come from one port.
  @usableFromInline var lastPort: PortID?
  @usableFromInline var lastPortIndex = -1
  /// By slot: it was seen to send under a MAC address that is not its own, and so receives under it too.
  @usableFromInline var usesOtherMACs: [Bool]
  @usableFromInline var count = DispatchCounters()
  private var events: SourceEvents

  public init(_ publisher: DispatchTablePublisher) {
    self.publisher = publisher
    generation = publisher.generation
    table = publisher.table
    usesOtherMACs = Array(repeating: false, count: table.slotCount)
    events = SourceEvents(slotCount: table.slotCount)
  }

  public var counters: DispatchCounters { count }

  /// Takes up the newest table, if there is another one: call it between batches.
  ///
  /// - Returns: what `drainAlerts` would have given before, as slots may mean other domains from now on. Mostly empty.
  public mutating func refresh(at time: Timestamp) -> [PlatformAlert] {
    // The number is read before the table: a table that comes in between is taken up again, which does no harm.
    let latest = publisher.generation
    guard latest != generation else { return [] }
    let alerts = drainAlerts(at: time)
    let marked = Set(table.identities.indices.filter { usesOtherMACs[$0] }.compactMap { table.identities[$0] })
    generation = latest
    table = publisher.table
    lastPort = nil
    usesOtherMACs = table.identities.map { $0.map(marked.contains) ?? false }
    events = SourceEvents(slotCount: table.slotCount)
    return alerts
  }

  /// What was noticed about source addresses since the last time: each address once, with a count.
  public mutating func drainAlerts(at time: Timestamp) -> [PlatformAlert] {
    events.drain(at: time, table.identities)
  }

  /// Hands a frame to those it concerns.
  ///
  /// `deliver`: is called with the slot of each domain concerned, and the frame's direction as that domain sees it;
  ///   `unknown` only at a domain's own port, where neither the capture nor the addresses tell it.
  @inlinable
  public mutating func dispatch(
    _ frame: FrameMetadata, _ bytes: RawSpan, to deliver: (_ slot: Int, _ direction: FrameDirection) -> Void
  ) {
    count.frames &+= 1
    if lastPort != frame.port {
      lastPort = frame.port
      lastPortIndex = table.portIndex(frame.port)
    }
    let port = lastPortIndex
    guard port >= 0 else {
      count.unknownPort &+= 1
      return
    }
    let owner = Int(table.owners[port])
    guard frame.linkType == .ethernet, bytes.byteCount >= 14 else {
      dispatchWithoutAddresses(frame, owner: owner, to: deliver)
      return
    }
    let destination = bytes.macAddress(0)
    let source = bytes.macAddress(6)
    if owner >= 0 {
      dispatchAtPort(port, owner, frame, bytes, source: source, destination: destination, to: deliver)
    } else {
      dispatchOnBridge(port, bytes, source: source, destination: destination, to: deliver)
    }
  }

  /// Other link types, and frames too short to have addresses: only a domain's own port says whose they are.
  @usableFromInline
  mutating func dispatchWithoutAddresses(
    _ frame: FrameMetadata, owner: Int, to deliver: (_ slot: Int, _ direction: FrameDirection) -> Void
  ) {
    if frame.linkType == .ethernet { count.malformed &+= 1 }
    guard owner >= 0 else {
      count.unknown &+= 1
      return
    }
    if frame.direction == .unknown { count.undirected &+= 1 }
    count.delivered &+= 1
    deliver(owner, frame.direction)
  }

  @inlinable @inline(__always)
  mutating func dispatchAtPort(
    _ port: Int, _ owner: Int, _ frame: FrameMetadata, _ bytes: RawSpan, source: MACAddress, destination: MACAddress,
    to deliver: (_ slot: Int, _ direction: FrameDirection) -> Void
  ) {
    var direction = frame.direction
    let isOwnSource = direction != .toGuest && table.slot(port: port, mac: source) == owner
    let isForGuest =
      direction != .fromGuest && !isOwnSource
      && (destination.isMulticast || table.slot(port: port, mac: destination) == owner)
    if direction == .unknown {
      if isOwnSource {
        direction = .fromGuest
      } else if isForGuest {
        direction = .toGuest
      } else {
        count.undirected &+= 1
      }
    }
    switch direction {
    case .fromGuest:
      if !isOwnSource { recordForgedMAC(slot: owner, source) }
      checkSource(bytes, slot: owner, port: port)
    case .toGuest:
      guard isForGuest || usesOtherMACs[owner] else {
        count.notForGuest &+= 1
        return
      }
    case .unknown: break
    }
    count.delivered &+= 1
    deliver(owner, direction)
  }

  @inlinable @inline(__always)
  mutating func dispatchOnBridge(
    _ port: Int, _ bytes: RawSpan, source: MACAddress, destination: MACAddress,
    to deliver: (_ slot: Int, _ direction: FrameDirection) -> Void
  ) {
    let before = count.delivered
    let sender = table.slot(port: port, mac: source)
    if sender >= 0 {
      checkSource(bytes, slot: sender, port: port)
      count.delivered &+= 1
      deliver(sender, .fromGuest)
    }
    if destination.isMulticast {
      for index in Int(table.memberStarts[port])..<Int(table.memberStarts[port + 1]) {
        let member = Int(table.members[index])
        guard member != sender else { continue }
        count.delivered &+= 1
        deliver(member, .toGuest)
      }
    } else {
      let receiver = table.slot(port: port, mac: destination)
      if receiver >= 0 {
        count.delivered &+= 1
        deliver(receiver, .toGuest)
      }
    }
    if count.delivered == before { recordUnknown(source) }
  }

  // MARK: Sources

  /// Looks at the network layer's source address where something can be said of it.
  @inlinable @inline(__always)
  mutating func checkSource(_ bytes: RawSpan, slot: Int, port: Int) {
    let type = bytes.u16(12)
    if table.checkedFamilies[slot] != 0 || type != 0x0800 && type != 0x86DD {
      checkNetworkSource(bytes, slot: slot, port: port)
    }
  }

  /// IPv4, IPv6 and ARP, behind at most eight VLAN tags, and in 802.3 (LLC and SNAP, RFC 1042; 00-00-F8 is bridge tunnels'). A frame that is cut off or anything else says nothing.
  @usableFromInline
  mutating func checkNetworkSource(_ bytes: RawSpan, slot: Int, port: Int) {
    var type = bytes.u16(12)
    var offset = 14
    while type == 0x8100 || type == 0x88A8 || type == 0x9100 {
      guard offset < 14 + 8 * 4, bytes.byteCount - offset >= 4 else { return }
      type = bytes.u16(offset + 2)
      offset += 4
    }
    if type < 0x0600, bytes.byteCount - offset >= 8, bytes.u32(offset) == 0xAAAA_0300,
      bytes.u16(offset + 4) & 0xFF07 == 0
    {
      type = bytes.u16(offset + 6)
      offset += 8
    }
    let available = bytes.byteCount - offset
    switch type {
    case 0x0800 where available >= 20:
      check(IPAddress(v4: bytes.u32(offset + 12)), slot: slot)
    case 0x86DD where available >= 40:
      check(IPAddress(v6High: bytes.u64(offset + 8), low: bytes.u64(offset + 16)), slot: slot)
    case 0x0806 where available >= 28 && bytes.u32(offset) == 0x0001_0800 && bytes.u16(offset + 4) == 0x0604:
      let sender = bytes.macAddress(offset + 8)
      if table.slot(port: port, mac: sender) != slot { recordForgedMAC(slot: slot, sender) }
      check(IPAddress(v4: bytes.u32(offset + 14)), slot: slot)
    default: break
    }
  }

  /// The unspecified address (DHCP, duplicate address detection) and IPv6 link-local addresses, which nobody assigns, are everybody's.
  private mutating func check(_ address: IPAddress, slot: Int) {
    let isChecked = table.checkedFamilies[slot] & (address.family == .v4 ? 1 : 2) != 0
    let isUnspecified = address.high == 0 && address.low == 0
    guard isChecked, !isUnspecified, !address.isV6LinkLocal, !table.addresses.contains(address, of: slot) else {
      return
    }
    count.forgedAddresses &+= 1
    events.record(.forgedAddress, slot: slot, address: address)
  }

  @usableFromInline
  mutating func recordForgedMAC(slot: Int, _ mac: MACAddress) {
    count.forgedMACs &+= 1
    usesOtherMACs[slot] = true
    events.record(.forgedMAC, slot: slot, mac: mac)
  }

  @usableFromInline
  mutating func recordUnknown(_ source: MACAddress) {
    count.unknown &+= 1
    events.record(.unknownMAC, slot: nil, mac: source)
  }
}

/// What a dispatcher did so far, in frames.
public struct DispatchCounters: Hashable, Sendable, BitwiseCopyable {
  /// Taken in.
  public var frames: UInt64 = 0
  /// Handed over, once for each domain concerned.
  public var delivered: UInt64 = 0
  /// Seen at a domain's port on the way to it, but addressed to somebody else (flooded by the bridge).
  public var notForGuest: UInt64 = 0
  /// Seen on a bridge, concerning no known domain.
  public var unknown: UInt64 = 0
  /// Captured at a port that the table does not have.
  public var unknownPort: UInt64 = 0
  /// Too short to have addresses.
  public var malformed: UInt64 = 0
  /// Handed over without a direction.
  public var undirected: UInt64 = 0
  /// Sent under a MAC address that is not the domain's own (an ARP packet's sender included).
  public var forgedMACs: UInt64 = 0
  /// Sent under an IP address that is not the domain's own.
  public var forgedAddresses: UInt64 = 0
  public init() {}
}
