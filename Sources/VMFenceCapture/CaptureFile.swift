import VMFenceCore

/// Reads a capture file: pcap (both byte orders, micro- and nanoseconds) or pcapng. Streams it in blocks of 256 KiB, so a file
/// of any size takes the same memory, and a pipe can be read too.
///
/// The reader is VMFence's own and not libpcap's, for two reasons. libpcap refuses a pcapng file whose interfaces differ in
/// link type or snapshot length, and what it reads comes without interface number, interface name and the packet flags (direction,
/// checksum state): just what tells the ports of a host apart. And a capture file is hostile input, parsed here without pointer
/// arithmetic.
///
/// Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. What a pcapng frame's flags say becomes its direction (inbound
/// to the host's interface is *from* the guest) and its checksum state; in a pcap file both are unknown.
///
/// Bounds: frames of at most 262,144 bytes, pcapng blocks that are interpreted of at most 1 MiB, 4,096 interfaces a section; other blocks
/// may have any length and are passed over. Allocates nothing per frame. Used by one thread at a time.
///
/// A file that ends inside a record is an error of code `truncated` *after* all whole frames were delivered. Once a call has thrown, each
/// later one throws the same error. `patience` is not used: a file is there or not.
public struct CaptureFile: ~Copyable, Sendable, PacketSource {
  /// The longest frame that is read, in bytes; libpcap's own bound (`MAXIMUM_SNAPLEN`).
  public static let maximumFrameLength = 262_144
  /// The longest pcapng block that is interpreted, in bytes.
  public static let maximumBlockLength = 1 << 20
  static let maximumInterfaces = 4_096
  static let readSize = 256 << 10

  /// The name of the file, as errors give it.
  public let name: String
  /// The interfaces described so far: those of the current section of a pcapng file, the one of a pcap file. After opening, those that
  /// come before the first frame are there.
  public internal(set) var interfaces: [CaptureInterface] = []
  public internal(set) var counters = CaptureCounters()

  let mapping: CapturePortMapping
  var format = CaptureFormat.pcapng
  var isBigEndian = false
  var section = -1
  /// What the loop needs of each interface: `interfaces` without the texts.
  var decoders: [InterfaceDecoder] = []

  private var input: CaptureInput
  @usableFromInline var buffer: [UInt8]
  /// The bytes not yet consumed are `buffer[position..<filled]`.
  var position = 0
  var filled = 0
  /// The offset in the file of `buffer[0]`.
  private var bufferOffset: UInt64 = 0
  /// The number, from 1, and the offset of the record (or block) being read.
  var record: UInt64 = 0
  private var recordOffset: UInt64 = 0
  private var isAtEnd = false
  private var failure: PacketSourceError?

  /// The frame that `advance()` found: `buffer[frameStart..<frameEnd]`, until the next call.
  @usableFromInline var frame = FrameMetadata(timestamp: .zero, port: PortID(0), originalLength: 0)
  @usableFromInline var frameStart = 0
  @usableFromInline var frameEnd = 0

  private init(input: consuming CaptureInput, name: String, mapping: CapturePortMapping, readSize: Int) {
    self.input = input
    self.name = name
    self.mapping = mapping
    buffer = [UInt8](repeating: 0, count: readSize)
  }

  /// Opens a capture file and reads its header.
  ///
  /// - Throws: `inputOutput` or `permissionDenied` when it cannot be read; `notACapture` for anything else than pcap and pcapng, an empty
  ///   file included (compressed files are recognised and named); `unsupported` for variants and link types that are not read.
  public static func open(
    path: String, ports: CapturePortMapping = .numbered(from: PortID(0))
  ) throws(PacketSourceError) -> CaptureFile {
    var file = CaptureFile(
      input: try CaptureInput.open(path: path), name: path, mapping: ports, readSize: readSize)
    try file.readHead()
    return file
  }

  /// Reads a capture from this process's standard input, a pipe as well as a file.
  ///
  /// - Throws: as `open(path:ports:)` does.
  public static func standardInput(
    ports: CapturePortMapping = .numbered(from: PortID(0))
  ) throws(PacketSourceError) -> CaptureFile {
    var file = CaptureFile(
      input: try CaptureInput.standardInput(), name: "(standard input)", mapping: ports, readSize: readSize)
    try file.readHead()
    return file
  }

  /// Reads a capture that is in memory. `name` is what errors call it.
  public static func open(
    bytes: [UInt8], name: String = "(memory)", ports: CapturePortMapping = .numbered(from: PortID(0))
  ) throws(PacketSourceError) -> CaptureFile {
    try open(bytes: bytes, name: name, ports: ports, readSize: readSize)
  }

  /// The same with another size of the blocks that are read, so that tests can put a block's end anywhere.
  package static func open(
    bytes: [UInt8], name: String = "(memory)", ports: CapturePortMapping = .numbered(from: PortID(0)), readSize: Int
  ) throws(PacketSourceError) -> CaptureFile {
    precondition(readSize > 0, "a block has at least one byte")
    var file = CaptureFile(input: CaptureInput(bytes: bytes), name: name, mapping: ports, readSize: readSize)
    try file.readHead()
    return file
  }

  @inlinable
  public mutating func nextBatch(
    limit: Int, patience: Duration = .zero, _ body: (FrameMetadata, RawSpan) -> Void
  ) throws(PacketSourceError) -> BatchOutcome {
    var frames = 0
    while frames < limit {
      guard try advance() else { return BatchOutcome(frames: frames, isAtEnd: true) }
      frames += 1
      // SAFETY: UInt8 has no padding, so every byte of the buffer is initialised.
      body(frame, unsafe buffer.span.bytes.extracting(frameStart..<frameEnd))
    }
    return BatchOutcome(frames: frames, isAtEnd: false)
  }

  /// Finds the next frame and sets `frame`, `frameStart` and `frameEnd`; false at the end.
  @usableFromInline
  mutating func advance() throws(PacketSourceError) -> Bool {
    if isAtEnd { return false }
    if let failure { throw failure }
    do throws(PacketSourceError) {
      let found = format == .pcapng ? try advancePcapng() : try advancePcap()
      if found {
        let captured = UInt32(truncatingIfNeeded: frameEnd - frameStart)
        counters.received &+= 1
        counters.receivedBytes &+= UInt64(captured)
        if frame.originalLength > captured { counters.truncated &+= 1 }
      }
      isAtEnd = !found
      return found
    } catch {
      failure = error
      throw error
    }
  }
}

// MARK: Bytes

extension CaptureFile {
  /// Sees to it that `count` bytes are in the buffer from `position` on, if the file has that many left.
  ///
  /// - Returns: how many bytes there are; fewer than `count` only at the end of the file.
  @inline(__always)
  mutating func available(_ count: Int) throws(PacketSourceError) -> Int {
    filled - position >= count ? filled - position : try refill(count)
  }

  private mutating func refill(_ count: Int) throws(PacketSourceError) -> Int {
    let rest = filled - position
    // SAFETY: source and destination lie inside the buffer; memory that overlaps is what this copy is made for.
    unsafe buffer.withUnsafeMutableBytes { bytes in
      let source = unsafe UnsafeRawBufferPointer(rebasing: bytes[position..<filled])
      unsafe bytes.copyMemory(from: source)
    }
    bufferOffset += UInt64(position)
    position = 0
    filled = rest
    if buffer.count < count {
      // Bounded: no caller asks for more than a frame or an interpreted block with its header.
      buffer.append(contentsOf: repeatElement(0, count: count - buffer.count))
    }
    while filled < count {
      let got = input.read(into: &buffer, from: filled)
      if got == 0 { break }
      guard got > 0 else {
        throw error(.inputOutput, "cannot read on: \(systemErrorText(Int32(-got)))", remedy: "check the file's device")
      }
      filled += got
    }
    return filled
  }

  /// The number at `offset` from `position`, in the file's byte order. The caller has made sure that it is there.
  @inline(__always)
  func u32(_ offset: Int) -> UInt32 {
    // SAFETY: UInt8 has no padding, so every byte of the buffer is initialised.
    let value = unsafe buffer.span.bytes.u32le(position + offset)
    return isBigEndian ? value.byteSwapped : value
  }

  @inline(__always)
  func u16(_ offset: Int) -> UInt16 {
    // SAFETY: as above.
    let value = unsafe buffer.span.bytes.u16le(position + offset)
    return isBigEndian ? value.byteSwapped : value
  }

  /// Passes over `count` bytes, however many.
  ///
  /// - Returns: how many there were.
  mutating func discard(_ count: UInt64) throws(PacketSourceError) -> UInt64 {
    var left = count
    while left > 0 {
      let there = try available(1)
      if there == 0 { break }
      let step = Int(min(UInt64(there), left))
      position += step
      left -= UInt64(step)
    }
    return count - left
  }

  mutating func beginRecord() {
    record += 1
    recordOffset = bufferOffset + UInt64(position)
  }

  // MARK: Errors

  /// An error about the record being read.
  func error(_ code: PacketSourceError.Code, _ what: String, remedy: String) -> PacketSourceError {
    PacketSourceError(
      code, "\(format == .pcapng ? "block" : "record") \(record) at byte offset \(recordOffset): \(what)",
      at: SourcePlace(file: name), remedy: remedy)
  }

  func truncated(there: UInt64, of whole: UInt64) -> PacketSourceError {
    error(
      .truncated, "the file ends after \(there) of its \(whole) bytes; all frames before it were read",
      remedy: "copy the file again, or let the capture finish before reading it")
  }

  func corrupt(_ what: String) -> PacketSourceError {
    error(.corrupt, what, remedy: "the file is damaged from here on: copy or capture it again")
  }
}

/// What the loop needs to know of one interface. A plain value.
struct InterfaceDecoder: BitwiseCopyable {
  var port: PortID
  /// Whether the caller's mapping left this interface out.
  var isSkipped: Bool
  var linkType: LinkType
  var snapshotLength: UInt32
  var resolution: TimestampResolution
  var offset: Int64
}

enum CaptureFormat: UInt8, BitwiseCopyable {
  case pcapMicroseconds
  case pcapNanoseconds
  case pcapng
}
