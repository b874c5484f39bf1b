internal import Glibc
import Synchronization
import VMFenceCore

/// The memory that the kernel and a packet socket share: a ring of blocks, each filled with frames and then handed over whole
/// (`TPACKET_V3`; linux/if_packet.h and Documentation/networking/packet_mmap.rst).
///
/// Only the kernel writes headers, and not while a block is ours; yet every offset is checked before use, because the bytes between
/// the headers come from guests. Numbers are in the host's order, which is little-endian on the machines Xen runs on.
///
///     block            0 version   4 private   8 status   12 frames   16 first frame's offset   20 length   24 sequence (64)…
///     frame            0 next frame's offset   4 seconds   8 nanoseconds   12 captured   16 original   20 status
///                      24 link header's offset (16)   32 VLAN TCI   48 sockaddr_ll: … 58 packet type (8)
@safe
@usableFromInline
struct PacketRing: ~Copyable, @unchecked Sendable {
  /// The longest frame, a segment of 64 KiB before segmentation, fits whole.
  static let blockSize = 128 << 10
  private static let frameHeaderLength = 68

  private let base: UnsafeMutableRawPointer
  let blockCount: Int

  private init(base: UnsafeMutableRawPointer, blockCount: Int) {
    // SAFETY: only `map`'s mapping is handed in, which nobody else has.
    unsafe self.base = base
    self.blockCount = blockCount
  }

  /// Maps the ring of a socket that was given one of `blockCount` blocks; nil when the kernel refuses (`errno` says why).
  static func map(descriptor: Int32, blockCount: Int) -> PacketRing? {
    // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
    let address = unsafe mmap(nil, blockSize * blockCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
    guard let address = unsafe address, unsafe address != MAP_FAILED else { return nil }
    return unsafe PacketRing(base: address, blockCount: blockCount)
  }

  deinit {
    // SAFETY: the mapping is this value's own, and nobody borrows from it any more.
    _ = unsafe munmap(base, Self.blockSize * blockCount)
  }

  /// The status word of a block, by which kernel and reader hand it to and fro.
  private func withStatus<Result>(of block: Int, _ body: (borrowing Atomic<UInt32>) -> Result) -> Result {
    precondition(block >= 0 && block < blockCount, "a block that is not there")
    let address = unsafe base + (block * Self.blockSize + 8)
    // SAFETY: inside the mapping and aligned to 4; an `Atomic<UInt32>` is laid out as the UInt32 that the kernel uses.
    return unsafe body(address.assumingMemoryBound(to: Atomic<UInt32>.self).pointee)
  }

  /// Whether the kernel has handed the block over. What it wrote before is visible then.
  func isReady(_ block: Int) -> Bool { withStatus(of: block) { $0.load(ordering: .acquiring) & 1 != 0 } }

  func release(_ block: Int) { withStatus(of: block) { $0.store(0, ordering: .releasing) } }

  /// Calls `body` with a block that is ready.
  func withBlock<Result>(_ block: Int, _ body: (RawSpan) -> Result) -> Result {
    precondition(block >= 0 && block < blockCount, "a block that is not there")
    // SAFETY: inside the mapping, which the kernel zeroed when it made it.
    return unsafe body(UnsafeRawBufferPointer(start: base + block * Self.blockSize, count: Self.blockSize).bytes)
  }

  /// Where the bytes of a frame are, for a span that lives as long as the block is ours.
  ///
  /// - Precondition: the frame lies inside the ring, as those that `frame(in:at:)` gives do.
  @usableFromInline
  func bytes(of frame: RingFrame, in block: Int) -> UnsafeRawBufferPointer {
    precondition(block >= 0 && block < blockCount && frame.start >= 0 && frame.length >= 0)
    precondition(frame.start + frame.length <= Self.blockSize, "a frame outside its block")
    // SAFETY: inside the mapping, as just checked.
    return unsafe UnsafeRawBufferPointer(start: base + (block * Self.blockSize + frame.start), count: frame.length)
  }

  /// How many frames a block has, and where the first is.
  func contents(of block: Int) -> (frames: Int, first: Int) {
    withBlock(block) { (Int($0.u32le(12)), Int($0.u32le(16))) }
  }

  /// The frame whose header is at `offset`; nil when it does not lie inside the block.
  func frame(in block: Int, at offset: Int) -> RingFrame? {
    withBlock(block) { bytes in
      guard offset >= 48, offset <= Self.blockSize - Self.frameHeaderLength else { return nil }
      let captured = Int(bytes.u32le(offset + 12))
      let start = offset + Int(bytes.u16le(offset + 24))
      guard captured <= Self.blockSize, start + captured <= Self.blockSize else { return nil }
      let status = bytes.u32le(offset + 20)
      return RingFrame(
        start: start, length: captured, next: offset + Int(bytes.u32le(offset)),
        timestamp: Timestamp(seconds: Int64(bytes.u32le(offset + 4)), nanoseconds: Int64(bytes.u32le(offset + 8))),
        original: bytes.u32le(offset + 16), status: status,
        vlan: status & PacketSocket.Status.vlanValid == 0 ? 0 : UInt16(truncatingIfNeeded: bytes.u32le(offset + 32)),
        packetType: bytes.u8(offset + 58))
    }
  }
}

/// What the ring says of one frame.
@usableFromInline
struct RingFrame: Sendable, BitwiseCopyable {
  /// The frame's bytes, from the start of the block.
  var start: Int
  var length: Int
  /// The next frame's header, from the start of the block.
  var next: Int
  var timestamp: Timestamp
  var original: UInt32
  /// `TP_STATUS_*`.
  var status: UInt32
  /// The VLAN tag (TCI) that is not in the bytes.
  var vlan: UInt16
  /// `PACKET_*`: whether the frame came or went.
  var packetType: UInt8
}
