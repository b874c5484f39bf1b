import VMFenceCapture
import VMFenceConformance
import VMFenceCore

/// Writes captures byte by byte, in either byte order, right or wrong as the test wants.
struct CaptureBytes {
  var bytes: [UInt8] = []
  var isBigEndian = false

  mutating func u8(_ value: UInt8) { bytes.append(value) }
  mutating func u16(_ value: UInt16) { number(UInt64(value), 2) }
  mutating func u32(_ value: UInt32) { number(UInt64(value), 4) }
  mutating func u64(_ value: UInt64) { number(value, 8) }

  private mutating func number(_ value: UInt64, _ count: Int) {
    let little = (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }
    bytes += isBigEndian ? little.reversed() : little
  }

  mutating func padded(_ data: [UInt8]) {
    bytes += data
    while bytes.count % 4 != 0 { bytes.append(0) }
  }

  // MARK: pcap

  mutating func pcapHeader(magic: UInt32 = 0xA1B2_C3D4, linkType: UInt32 = 1, version: (UInt16, UInt16) = (2, 4)) {
    u32(magic)
    u16(version.0)
    u16(version.1)
    u32(0)
    u32(0)
    u32(262_144)
    u32(linkType)
  }

  mutating func pcapRecord(_ data: [UInt8], seconds: UInt32, fraction: UInt32 = 0, original: Int? = nil) {
    u32(seconds)
    u32(fraction)
    u32(UInt32(data.count))
    u32(UInt32(original ?? data.count))
    bytes += data
  }

  // MARK: pcapng

  mutating func block(_ type: UInt32, _ fill: (inout CaptureBytes) -> Void) {
    var body = CaptureBytes(isBigEndian: isBigEndian)
    fill(&body)
    body.padded([])
    let length = UInt32(body.bytes.count + 12)
    u32(type)
    u32(length)
    bytes += body.bytes
    u32(length)
  }

  mutating func option(_ code: UInt16, _ value: [UInt8]) {
    u16(code)
    u16(UInt16(value.count))
    padded(value)
  }

  mutating func section(version: (UInt16, UInt16) = (1, 0)) {
    block(0x0A0D_0D0A) {
      $0.u32(0x1A2B_3C4D)
      $0.u16(version.0)
      $0.u16(version.1)
      $0.u64(.max)
    }
  }

  mutating func interface(
    _ linkType: UInt16 = 1, name: String? = nil, snapshotLength: UInt32 = 0, resolution: UInt8? = nil,
    offset: Int64? = nil
  ) {
    block(1) {
      $0.u16(linkType)
      $0.u16(0)
      $0.u32(snapshotLength)
      if let name { $0.option(2, Array(name.utf8)) }
      if let resolution { $0.option(9, [resolution]) }
      if let offset {
        $0.u16(14)
        $0.u16(8)
        $0.u64(UInt64(bitPattern: offset))
      }
      $0.option(0, [])
    }
  }

  mutating func enhancedPacket(
    _ data: [UInt8], interface: UInt32 = 0, ticks: UInt64, original: Int? = nil,
    options: (inout CaptureBytes) -> Void = { _ in }
  ) {
    block(6) {
      $0.u32(interface)
      $0.u32(UInt32(ticks >> 32))
      $0.u32(UInt32(truncatingIfNeeded: ticks))
      $0.u32(UInt32(data.count))
      $0.u32(UInt32(original ?? data.count))
      $0.padded(data)
      options(&$0)
    }
  }
}

typealias Delivery = PacketSourceConformance.Delivery

/// A frame as a reader is to deliver it.
func delivery(
  _ bytes: [UInt8], nanoseconds: Int64, port: UInt32 = 0, direction: FrameDirection = .unknown,
  checksums: ChecksumState = .unknown, linkType: LinkType = .ethernet, original: Int? = nil
) -> Delivery {
  Delivery(
    FrameMetadata(
      timestamp: Timestamp(nanoseconds: nanoseconds), port: PortID(port), direction: direction, checksums: checksums,
      linkType: linkType, originalLength: UInt32(original ?? bytes.count)), bytes)
}

/// All that a capture holds.
func readAll(_ bytes: [UInt8], readSize: Int = 1 << 18) throws(PacketSourceError) -> [Delivery] {
  var file = try CaptureFile.open(bytes: bytes, readSize: readSize)
  var frames: [Delivery] = []
  while true {
    let outcome = try file.nextBatch(limit: 100) { frames.append(Delivery($0, $1.copiedBytes())) }
    if outcome.isAtEnd { return frames }
  }
}

/// The error with which a capture ends, and how many frames came before it.
func failure(_ bytes: [UInt8], readSize: Int = 1 << 18) -> (error: PacketSourceError?, frames: Int) {
  var frames = 0
  do throws(PacketSourceError) {
    var file = try CaptureFile.open(bytes: bytes, name: "test.pcap", readSize: readSize)
    while try !file.nextBatch(limit: 100, { _, _ in frames += 1 }).isAtEnd {}
    return (nil, frames)
  } catch {
    return (error, frames)
  }
}
