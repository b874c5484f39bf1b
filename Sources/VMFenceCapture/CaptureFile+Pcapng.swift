import VMFenceCore

// The pcapng format (draft-ietf-opsawg-pcapng). A file is a sequence of blocks; numbers are in the byte order of the section, which the
// byte-order magic of its header block shows.
//
//     every block      0 type   4 total length   8 body…   (total length − 4) total length again
//     section header   8 byte-order magic   12 major (16) minor (16)   16 section length (64)   24 options…
//     interface        8 link type (16) reserved (16)   12 snapshot length   16 options…
//     enhanced packet  8 interface   12 ticks, high   16 ticks, low   20 captured   24 original   28 bytes, padded; options…
//     simple packet    8 original   12 bytes, padded
//     packet (obsolete) 8 interface (16) drops (16)   12 ticks, high   16 ticks, low   20 captured   24 original   28 bytes…
//     every option     0 code (16) length (16)   4 value, padded

extension CaptureFile {
  private enum BlockType {
    static let sectionHeader: UInt32 = 0x0A0D_0D0A
    static let interface: UInt32 = 1
    static let obsoletePacket: UInt32 = 2
    static let simplePacket: UInt32 = 3
    static let enhancedPacket: UInt32 = 6
  }

  mutating func readPcapngHead() throws(PacketSourceError) {
    format = .pcapng
    guard try nextBlock() == .other else { return }
    // The interfaces that come before the first frame, so that the caller sees them at once. Whatever is wrong with a
    // later block is an error of the frame that follows.
    while try available(8) >= 8, u32(0) == BlockType.interface { _ = try nextBlock() }
  }

  mutating func advancePcapng() throws(PacketSourceError) -> Bool {
    while true {
      switch try nextBlock() {
      case .frame: return true
      case .end: return false
      case .other: continue
      }
    }
  }

  private enum Found { case frame, other, end }

  private mutating func nextBlock() throws(PacketSourceError) -> Found {
    beginRecord()
    let there = try available(12)
    if there == 0 { return .end }
    guard there >= 12 else { throw truncated(there: UInt64(there), of: 12) }
    let type = u32(0)
    if type == BlockType.sectionHeader {
      switch u32(8) {
      case 0x1A2B_3C4D: break
      case 0x4D3C_2B1A: isBigEndian.toggle()
      default: throw corrupt("a section header without the byte-order magic")
      }
    }
    let length = u32(4)
    guard length >= 12, length % 4 == 0 else {
      throw corrupt("a block of \(length) bytes; blocks have a multiple of 4 and at least 12")
    }
    switch type {
    case BlockType.enhancedPacket, BlockType.obsoletePacket:
      try requireWhole(length, atLeast: 32)
      return try packet(Int(length), isObsolete: type == BlockType.obsoletePacket) ? .frame : .other
    case BlockType.simplePacket:
      try requireWhole(length, atLeast: 16)
      return try simplePacket(Int(length)) ? .frame : .other
    case BlockType.interface:
      try requireWhole(length, atLeast: 20)
      try readInterface(Int(length))
    case BlockType.sectionHeader:
      try requireWhole(length, atLeast: 28)
      try readSectionHeader()
    default:
      try passOver(length)
      return .other
    }
    position += Int(length)
    return .other
  }

  /// Makes sure that a block that is to be interpreted is in the buffer, whole and framed by two equal lengths.
  private mutating func requireWhole(_ length: UInt32, atLeast minimum: Int) throws(PacketSourceError) {
    guard length >= minimum else { throw corrupt("a block of \(length) bytes, of a type that has at least \(minimum)") }
    guard length <= Self.maximumBlockLength else {
      throw corrupt("a block of \(length) bytes is more than the \(Self.maximumBlockLength) that are interpreted")
    }
    let there = try available(Int(length))
    guard there >= length else { throw truncated(there: UInt64(there), of: UInt64(length)) }
    let again = u32(Int(length) - 4)
    guard again == length else { throw corrupt("the block's lengths disagree: \(length) before and \(again) after it") }
  }

  private mutating func passOver(_ length: UInt32) throws(PacketSourceError) {
    let there = try discard(UInt64(length) - 4)
    let last = there == UInt64(length) - 4 ? try available(4) : 0
    guard last >= 4 else { throw truncated(there: there + UInt64(last), of: UInt64(length)) }
    let again = u32(0)
    guard again == length else { throw corrupt("the block's lengths disagree: \(length) before and \(again) after it") }
    position += 4
    counters.skipped &+= 1
  }

  // MARK: Blocks

  private mutating func readSectionHeader() throws(PacketSourceError) {
    let (major, minor) = (u16(12), u16(14))
    // Minor version 2 is written by some and means the same as 0.
    guard major == 1, minor == 0 || minor == 2 else {
      throw error(
        .unsupported, "a section of pcapng version \(major).\(minor); version 1.0 is read",
        remedy: "convert it with editcap")
    }
    section += 1
    interfaces.removeAll(keepingCapacity: true)
    decoders.removeAll(keepingCapacity: true)
  }

  private mutating func readInterface(_ length: Int) throws(PacketSourceError) {
    guard interfaces.count < Self.maximumInterfaces else {
      throw corrupt("more than \(Self.maximumInterfaces) interfaces in one section")
    }
    var interface = CaptureInterface(
      section: section, index: interfaces.count, linkType: LinkType(rawValue: u16(8)), snapshotLength: u32(12))
    var offset: Int64 = 0
    var options = Options(from: 16, to: length - 4)
    while let option = try next(&options) {
      switch (option.code, option.length) {
      case (2, _): interface.name = text(option)
      case (9, 1): interface.timestampResolution = TimestampResolution(rawValue: buffer[position + option.start])
      case (14, 8): offset = Int64(bitPattern: u64(option.start))
      default: break
      }
    }
    addInterface(interface, offset: offset)
  }

  /// An enhanced packet block, or the packet block that it replaced: they differ in how the interface is numbered.
  ///
  /// - Returns: false when the frame's interface is one that the caller left out.
  private mutating func packet(_ length: Int, isObsolete: Bool) throws(PacketSourceError) -> Bool {
    let interface = isObsolete ? Int(u16(8)) : Int(u32(8))
    let captured = Int(u32(20))
    let end = 28 + (captured + 3) & ~3
    guard captured <= Self.maximumFrameLength, end + 4 <= length else {
      throw corrupt("a frame of \(captured) bytes in a block of \(length)")
    }
    let decoder = try decoder(of: interface)
    let ticks = UInt64(u32(12)) << 32 | UInt64(u32(16))
    frame = FrameMetadata(
      timestamp: decoder.resolution.timestamp(ticks: ticks, offset: decoder.offset), port: decoder.port,
      linkType: decoder.linkType, originalLength: max(u32(24), UInt32(truncatingIfNeeded: captured)))
    if isObsolete {
      let drops = u16(10)
      if drops != .max { counters.droppedByKernel &+= UInt64(drops) }
    }
    var options = Options(from: end, to: length - 4)
    while let option = try next(&options) {
      switch (option.code, option.length) {
      case (2, 4): apply(flags: u32(option.start))
      case (4, 8) where !isObsolete: counters.droppedByKernel &+= u64(option.start)
      default: break
      }
    }
    return deliver(from: 28, captured: captured, block: length, decoder)
  }

  /// A simple packet block: interface 0, no time (that of the frame before it is taken), cut at the interface's snapshot length.
  private mutating func simplePacket(_ length: Int) throws(PacketSourceError) -> Bool {
    let decoder = try decoder(of: 0)
    let original = u32(8)
    let kept = decoder.snapshotLength == 0 ? original : min(original, decoder.snapshotLength)
    let captured = Int(kept)
    guard captured <= Self.maximumFrameLength, 12 + (captured + 3) & ~3 + 4 <= length else {
      throw corrupt("a frame of \(captured) bytes in a block of \(length)")
    }
    frame = FrameMetadata(
      timestamp: frame.timestamp, port: decoder.port, linkType: decoder.linkType, originalLength: original)
    return deliver(from: 12, captured: captured, block: length, decoder)
  }

  private mutating func deliver(from start: Int, captured: Int, block: Int, _ decoder: InterfaceDecoder) -> Bool {
    if decoder.isSkipped {
      counters.skipped &+= 1
      position += block
      return false
    }
    frameStart = position + start
    frameEnd = frameStart + captured
    // The frame's bytes stay where they are until the next block is looked for.
    position += block
    return true
  }

  private func decoder(of interface: Int) throws(PacketSourceError) -> InterfaceDecoder {
    guard interface < decoders.count else {
      throw corrupt("a frame of interface \(interface), but the section describes \(decoders.count) interfaces")
    }
    let decoder = decoders[interface]
    guard decoder.isSkipped || decoder.linkType.isReadable else {
      throw error(
        .unsupported, "a frame of \(decoder.linkType.displayName), which is not read",
        remedy:
          "leave interface \(interface) out, or capture on an Ethernet, IP, PPP, C-HDLC, loopback or cooked interface")
    }
    return decoder
  }

  /// The option `epb_flags`: bits 0 and 1 the direction, 9 checksums not yet computed, 10 checksums checked.
  private mutating func apply(flags: UInt32) {
    switch flags & 3 {
    case 1: frame.direction = .fromGuest
    case 2: frame.direction = .toGuest
    default: break
    }
    if flags & 1 << 9 != 0 {
      frame.checksums = .notYetComputed
    } else if flags & 1 << 10 != 0 {
      frame.checksums = .valid
    }
  }

  // MARK: Options

  private struct Options {
    var offset: Int
    let end: Int
    init(from offset: Int, to end: Int) {
      self.offset = offset
      self.end = end
    }
  }

  private struct Option {
    var code: UInt16
    var start: Int
    var length: Int
  }

  /// The next option of the block at `position`; nil after the last. Each takes four bytes at least, so a block bounds their number.
  private func next(_ options: inout Options) throws(PacketSourceError) -> Option? {
    guard options.offset + 4 <= options.end else { return nil }
    let option = Option(
      code: u16(options.offset), start: options.offset + 4, length: Int(u16(options.offset + 2)))
    if option.code == 0 { return nil }
    guard option.start + option.length <= options.end else {
      throw corrupt("option \(option.code) of \(option.length) bytes reaches beyond its block")
    }
    options.offset = option.start + (option.length + 3) & ~3
    return option
  }

  private func text(_ option: Option) -> String {
    let bytes = buffer[position + option.start..<position + option.start + option.length]
    return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
  }

  private func u64(_ offset: Int) -> UInt64 {
    let (first, second) = (UInt64(u32(offset)), UInt64(u32(offset + 4)))
    return isBigEndian ? first << 32 | second : second << 32 | first
  }
}
