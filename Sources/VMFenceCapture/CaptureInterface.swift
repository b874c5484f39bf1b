import VMFenceCore

/// An interface that a capture file describes. A pcap file has one without a name; a pcapng file has any number, in
/// sections (draft-ietf-opsawg-pcapng §4.2).
public struct CaptureInterface: Hashable, Sendable {
  /// The section of the file that describes it, from 0.
  public var section: Int
  /// Its number within the section, from 0, by which frames name it.
  public var index: Int
  /// Its name on the host that captured (`if_name`). From the file, so hostile: show it with `escapedForDisplay`.
  public var name: String?
  public var linkType: LinkType
  /// How many bytes of each frame were kept at the most; 0 for no limit.
  public var snapshotLength: UInt32
  public var timestampResolution: TimestampResolution

  public init(
    section: Int = 0, index: Int, name: String? = nil, linkType: LinkType, snapshotLength: UInt32 = 0,
    timestampResolution: TimestampResolution = .microseconds
  ) {
    self.section = section
    self.index = index
    self.name = name
    self.linkType = linkType
    self.snapshotLength = snapshotLength
    self.timestampResolution = timestampResolution
  }
}

/// Which port the frames of each interface of a capture file are said to come from.
public struct CapturePortMapping: Sendable {
  let port: @Sendable (CaptureInterface) -> PortID?

  /// Asked once for each interface when the file describes it; frames of an interface for which it says nil are passed over
  /// and counted as skipped.
  public init(_ port: @escaping @Sendable (CaptureInterface) -> PortID?) { self.port = port }

  /// Every interface is the same port.
  public static func all(_ port: PortID) -> CapturePortMapping { CapturePortMapping { _ in port } }

  /// Interface 0 is `base`, the next one the number after it, in each section anew.
  public static func numbered(from base: PortID) -> CapturePortMapping {
    CapturePortMapping { PortID(base.rawValue &+ UInt32(truncatingIfNeeded: $0.index)) }
  }
}

/// The unit of a capture's timestamps, as the pcapng option `if_tsresol` encodes it: 10⁻ⁿ seconds, or 2⁻ⁿ when the highest
/// bit is set.
public struct TimestampResolution: RawRepresentable, Hashable, Sendable, BitwiseCopyable {
  public var rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  public static let microseconds = TimestampResolution(rawValue: 6)
  public static let nanoseconds = TimestampResolution(rawValue: 9)

  /// `ticks` of this unit since the epoch plus `offset` seconds (`if_tsoffset`), saturating: all of it is hostile.
  func timestamp(ticks: UInt64, offset: Int64) -> Timestamp {
    let exponent = Int(rawValue & 0x7F)
    let sinceEpoch =
      rawValue & 0x80 == 0 ? Self.decimal(ticks, exponent) : Self.binary(ticks, exponent)
    return offset == 0 ? sinceEpoch : Timestamp(seconds: offset, nanoseconds: sinceEpoch.nanoseconds)
  }

  private static func decimal(_ ticks: UInt64, _ exponent: Int) -> Timestamp {
    if exponent <= 9 {
      let (product, overflow) = ticks.multipliedReportingOverflow(by: powerOfTen(9 - exponent))
      return Timestamp(nanoseconds: overflow ? .max : Int64(clamping: product))
    }
    // 10²⁰ and more is beyond every UInt64.
    return Timestamp(nanoseconds: exponent > 28 ? 0 : Int64(clamping: ticks / powerOfTen(exponent - 9)))
  }

  private static func binary(_ ticks: UInt64, _ exponent: Int) -> Timestamp {
    guard exponent > 0 else { return Timestamp(seconds: Int64(clamping: ticks)) }
    if exponent >= 64 {
      let (high, _) = ticks.multipliedFullWidth(by: 1_000_000_000)
      return Timestamp(nanoseconds: Int64(clamping: high >> UInt64(exponent - 64)))
    }
    let fraction = ticks & (1 << UInt64(exponent) - 1)
    let (high, low) = fraction.multipliedFullWidth(by: 1_000_000_000)
    let nanoseconds = high << UInt64(64 - exponent) | low >> UInt64(exponent)
    return Timestamp(seconds: Int64(clamping: ticks >> UInt64(exponent)), nanoseconds: Int64(clamping: nanoseconds))
  }

  /// - Precondition: `exponent` is in 0 ... 19.
  private static func powerOfTen(_ exponent: Int) -> UInt64 {
    var result: UInt64 = 1
    for _ in 0..<exponent { result *= 10 }
    return result
  }
}

extension LinkType {
  /// Whether frames of this type are read. The types are those that the packet decoder knows.
  var isReadable: Bool {
    switch self {
    case .null, .ethernet, .ppp, .rawBSD, .rawOpenBSD, .raw, .ciscoHDLC, .loop, .linuxSLL, .ipv4, .ipv6, .linuxSLL2:
      true
    default: false
    }
  }

  /// The name in <https://www.tcpdump.org/linktypes.html> of types that people meet and that are not read, with the number.
  var displayName: String {
    let names: [UInt16: String] = [
      6: "LINKTYPE_IEEE802_5", 8: "LINKTYPE_SLIP", 10: "LINKTYPE_FDDI", 50: "LINKTYPE_PPP_HDLC",
      51: "LINKTYPE_PPP_ETHER", 100: "LINKTYPE_ATM_RFC1483", 105: "LINKTYPE_IEEE802_11", 107: "LINKTYPE_FRELAY",
      117: "LINKTYPE_PFLOG", 119: "LINKTYPE_IEEE802_11_PRISM", 127: "LINKTYPE_IEEE802_11_RADIOTAP",
      147: "LINKTYPE_USER0", 187: "LINKTYPE_BLUETOOTH_HCI_H4", 189: "LINKTYPE_USB_LINUX", 192: "LINKTYPE_PPI",
      195: "LINKTYPE_IEEE802_15_4_WITHFCS", 201: "LINKTYPE_BLUETOOTH_HCI_H4_WITH_PHDR",
      220: "LINKTYPE_USB_LINUX_MMAPPED", 227: "LINKTYPE_CAN_SOCKETCAN", 239: "LINKTYPE_NFLOG",
      249: "LINKTYPE_USBPCAP", 253: "LINKTYPE_NETLINK",
    ]
    guard let name = names[rawValue] else { return "link type \(rawValue)" }
    return "\(name) (link type \(rawValue))"
  }
}
