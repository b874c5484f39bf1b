import VMFenceCore

// The pcap format (draft-ietf-opsawg-pcap). All numbers in the byte order that the magic number shows.
//
//     file header      0 magic   4 major (16) minor (16)   8 reserved   12 reserved   16 snapshot length   20 link type
//     record header    0 seconds   4 micro- or nanoseconds   8 captured length   12 original length   16 bytes…

extension CaptureFile {
  private static let fileHeaderLength = 24
  private static let recordHeaderLength = 16

  /// Recognises the file by its first bytes and reads what comes before the first frame.
  mutating func readHead() throws(PacketSourceError) {
    let there = try available(Self.fileHeaderLength)
    guard there > 0 else {
      throw head(.notACapture, "the file is empty", remedy: "capture again, or check that the capture wrote anything")
    }
    guard there >= 4 else { throw notACapture() }
    switch u32(0) {
    case 0xA1B2_C3D4: format = .pcapMicroseconds
    case 0xA1B2_3C4D: format = .pcapNanoseconds
    case 0xD4C3_B2A1: (format, isBigEndian) = (.pcapMicroseconds, true)
    case 0x4D3C_B2A1: (format, isBigEndian) = (.pcapNanoseconds, true)
    case 0x0A0D_0D0A:
      try readPcapngHead()
      return
    case 0xA1B2_CD34, 0x34CD_B2A1:
      throw head(
        .unsupported, "this is the modified pcap format of old Linux patches (magic a1b2cd34), which is not read",
        remedy: "convert it: editcap -F pcapng OLD NEW")
    default: throw notACapture()
    }
    try readPcapHead(there)
  }

  private mutating func readPcapHead(_ there: Int) throws(PacketSourceError) {
    guard there >= Self.fileHeaderLength else {
      throw head(
        .truncated, "the file ends after \(there) of the file header's \(Self.fileHeaderLength) bytes",
        remedy: "copy the file again")
    }
    let (major, minor) = (u16(4), u16(6))
    guard major == 2, minor == 4 else {
      throw head(
        .unsupported, "this is pcap version \(major).\(minor); version 2.4 is read", remedy: "convert it with editcap")
    }
    // The upper bits of the field say how long a frame check sequence is; decoders go by the lengths in the frame.
    let linkType = LinkType(rawValue: UInt16(truncatingIfNeeded: u32(20)))
    let interface = CaptureInterface(
      index: 0, linkType: linkType, snapshotLength: u32(16),
      timestampResolution: format == .pcapNanoseconds ? .nanoseconds : .microseconds)
    section = 0
    addInterface(interface, offset: 0)
    guard linkType.isReadable else {
      throw head(
        .unsupported, "frames of \(linkType.displayName) are not read",
        remedy: "capture on an Ethernet, IP, PPP, C-HDLC, loopback or cooked interface")
    }
    position += Self.fileHeaderLength
  }

  mutating func addInterface(_ interface: CaptureInterface, offset: Int64) {
    let port = mapping.port(interface)
    interfaces.append(interface)
    decoders.append(
      InterfaceDecoder(
        port: port ?? PortID(0), isSkipped: port == nil, linkType: interface.linkType,
        snapshotLength: interface.snapshotLength, resolution: interface.timestampResolution, offset: offset))
  }

  mutating func advancePcap() throws(PacketSourceError) -> Bool {
    while true {
      beginRecord()
      let there = try available(Self.recordHeaderLength)
      if there == 0 { return false }
      guard there >= Self.recordHeaderLength else {
        throw truncated(there: UInt64(there), of: UInt64(Self.recordHeaderLength))
      }
      let captured = Int(u32(8))
      guard captured <= Self.maximumFrameLength else {
        throw corrupt("a frame of \(captured) bytes is more than the \(Self.maximumFrameLength) that any capture keeps")
      }
      let whole = Self.recordHeaderLength + captured
      let got = try available(whole)
      guard got >= whole else { throw truncated(there: UInt64(got), of: UInt64(whole)) }
      let fraction = Int64(u32(4))
      frame = FrameMetadata(
        timestamp: Timestamp(
          seconds: Int64(u32(0)), nanoseconds: format == .pcapNanoseconds ? fraction : fraction * 1_000),
        port: decoders[0].port, linkType: decoders[0].linkType,
        originalLength: max(u32(12), UInt32(truncatingIfNeeded: captured)))
      frameStart = position + Self.recordHeaderLength
      frameEnd = position + whole
      // The frame's bytes stay where they are until the next record is looked for.
      position = frameEnd
      if !decoders[0].isSkipped { return true }
      counters.skipped &+= 1
    }
  }

  // MARK: What else it may be

  /// An error about the file as a whole.
  func head(_ code: PacketSourceError.Code, _ what: String, remedy: String) -> PacketSourceError {
    PacketSourceError(code, what, at: SourcePlace(file: name), remedy: remedy)
  }

  private func notACapture() -> PacketSourceError {
    let first = Array(buffer[position..<min(filled, position + 8)])
    let known: [(magic: [UInt8], what: String, remedy: String)] = [
      ([0x1F, 0x8B], "gzip-compressed", "decompress it first: gunzip -k FILE"),
      ([0x28, 0xB5, 0x2F, 0xFD], "zstd-compressed", "decompress it first: zstd -d FILE"),
      ([0xFD, 0x37, 0x7A, 0x58, 0x5A], "xz-compressed", "decompress it first: xz -dk FILE"),
      ([0x42, 0x5A, 0x68], "bzip2-compressed", "decompress it first: bunzip2 -k FILE"),
      ([0x04, 0x22, 0x4D, 0x18], "lz4-compressed", "decompress it first: lz4 -d FILE"),
      ([0x50, 0x4B, 0x03, 0x04], "a zip archive", "unpack it first: unzip FILE"),
      (Array("snoop".utf8), "in the snoop format", "convert it: editcap -F pcapng OLD NEW"),
      (Array("GMBU".utf8), "in the Network Monitor format", "convert it: editcap -F pcapng OLD NEW"),
    ]
    for candidate in known where first.starts(with: candidate.magic) {
      return head(.notACapture, "the file is \(candidate.what)", remedy: candidate.remedy)
    }
    let shown = first.map { $0.hexadecimal(width: 2) }.joined(separator: " ")
    return head(
      .notACapture, "the file is neither pcap nor pcapng: it begins with \(shown)",
      remedy: "give a capture as tcpdump or Wireshark writes it")
  }
}
