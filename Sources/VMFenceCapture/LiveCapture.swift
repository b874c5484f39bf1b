internal import Glibc
import VMFenceCore

/// Captures the frames of one interface of this host: a guest's vif, or a bridge as a whole.
///
/// Reads Linux's packet socket with its shared ring (packet(7), `TPACKET_V3`), which is what libpcap reads too. It does so itself because
/// libpcap keeps to itself what VMFence must not guess: for each frame, whether it came or went, and whether its
/// checksums are computed. (libpcap tells the direction only by opening the interface twice, or in the cooked format that loses the destination
/// address; the checksum state it never tells. Its immediate mode moreover needs a slot of full size for every frame.)
///
/// - **Direction**: on a vif, a frame that the host sends out goes *to* the guest, any other comes *from* it. On a bridge it is unknown: the
///   bridge as a whole cannot prove where a frame entered. That is the degraded mode.
/// - **Checksum state**: `notYetComputed` for frames whose checksum was left to hardware (traffic between guests and with
///   the host, segments of up to 64 KiB before segmentation), `valid` where the kernel or the interface has checked, otherwise `unknown`: then
///   the bytes can be judged.
/// - **VLAN**: a tag that the kernel took out of the frame is in the metadata.
/// - **Losses**: frames that did not fit into the ring are counted as `droppedByKernel`, brought up to date with every block and every wait.
///
/// Needs CAP_NET_RAW while it is opened, or a process that has it (`PacketSocketOpener`), and nothing afterwards. Used by one thread at a time. Allocates nothing per frame. An interface
/// that goes down is waited for; one that is gone is an error of code `interfaceGone`, after its last frames were delivered.
public struct LiveCapture: ~Copyable, Sendable, PacketSource {
  /// What the interface is.
  public enum Kind: Hashable, Sendable {
    /// The host's end of one guest's network port.
    case guestPort
    /// A bridge, made promiscuous; which port a frame came from is not known.
    case bridge
  }

  public struct Configuration: Hashable, Sendable {
    /// The ring's size in bytes, in steps of 128 KiB; at least 256 KiB. A block of so many bytes is handed over when it is full or `latency` is over, so a
    /// reader may be away for the blocks' number times the latency, whatever the rate, before frames are lost.
    public var bufferSize: Int
    /// How long the kernel may hold frames back to hand them over together; at least 1 ms. A timer of this period runs in the
    /// kernel for each capture; before Linux 6.18 it counts in the kernel's ticks, of 4 ms where there are 250 a second.
    public var latency: Duration

    public init(bufferSize: Int = 4 << 20, latency: Duration = .milliseconds(2)) {
      self.bufferSize = bufferSize
      self.latency = latency
    }
  }

  /// Readable when there are frames: for waiting on several captures at once. Valid as long as this value.
  public var pollDescriptor: Int32 { socket.descriptor }

  /// The interface's name when the capture was opened.
  public let interface: String
  public private(set) var counters = CaptureCounters()

  private let socket: PacketSocket
  @usableFromInline let ring: PacketRing
  private let index: Int32
  private let port: PortID
  private let kind: Kind
  private let linkType: LinkType
  private let isLoopback: Bool
  private let latency: Duration

  /// The block being read, how many of its frames are left, and where the next is.
  @usableFromInline var block = 0
  private var framesLeft = 0
  private var nextOffset = 0
  private var holdsBlock = false
  private var gone = Gone.no
  /// The interface went down, and the kernel says nothing more should it go for good: it is looked whether it has, until frames come again.
  private var down: (since: ContinuousClock.Instant, nextLook: ContinuousClock.Instant)?
  private var failure: PacketSourceError?

  /// The frame that `advance(patience:)` found, until the next call.
  @usableFromInline var frame = FrameMetadata(timestamp: .zero, port: PortID(0), originalLength: 0)
  @usableFromInline var place = RingFrame(
    start: 0, length: 0, next: 0, timestamp: .zero, original: 0, status: 0, vlan: 0, packetType: 0)

  private enum Gone {
    case no
    /// Its last block is handed over by a timer, before then.
    case draining(until: ContinuousClock.Instant)
    case drained
  }

  private init(
    interface: String, socket: consuming PacketSocket, ring: consuming PacketRing, index: UInt32, port: PortID,
    kind: Kind, linkType: LinkType, isLoopback: Bool, latency: Duration
  ) {
    self.interface = interface
    self.socket = socket
    self.ring = ring
    self.index = Int32(bitPattern: index)
    self.port = port
    self.kind = kind
    self.linkType = linkType
    self.isLoopback = isLoopback
    self.latency = latency
  }

  /// Opens an interface of the calling thread's network namespace. Frames are captured from this moment on.
  ///
  /// - `opener`: what opens the packet socket in the place of this process, in the same network namespace; nil: this process does, with CAP_NET_RAW.
  /// - Throws: `noSuchInterface` (the message lists those that there are), `permissionDenied`, `unsupported` for interfaces whose frames are
  ///   not Ethernet or IP, `inputOutput` when the kernel refuses (a ring that is too large, say), `unavailable` when `opener` has no socket now: to be tried again when its
  ///   `tend` says so.
  public static func open(
    interface: String, port: PortID, kind: Kind = .guestPort, configuration: Configuration = Configuration(),
    through opener: PacketSocketOpener? = nil
  ) throws(PacketSourceError) -> LiveCapture {
    // SAFETY: the function reads the name up to its NUL, which Swift's bridging to a C string adds.
    let index = unsafe if_nametoindex(interface)
    guard index != 0 else {
      throw PacketSourceError(
        .noSuchInterface, "there is no interface \(interface.escapedForDisplay) here; there are: \(interfaceNames())",
        remedy: "name one of these, or start the guest whose port it is")
    }
    let socket = try socket(for: interface, opener)
    let ring = try socket.makeRing(configuration, interface)
    let hardware = try socket.bind(index: index, interface)
    let linkType: LinkType
    switch hardware {
    case PacketSocket.Hardware.ethernet, PacketSocket.Hardware.loopback: linkType = .ethernet
    case PacketSocket.Hardware.rawIP, PacketSocket.Hardware.none: linkType = .raw
    default:
      throw PacketSourceError(
        .unsupported,
        "frames of \(interface.escapedForDisplay) are neither Ethernet nor IP (hardware type \(hardware))",
        remedy: "capture on the vif or the bridge that the guest is connected to")
    }
    if kind == .bridge { try socket.makePromiscuous(index: index, interface) }
    return LiveCapture(
      interface: interface, socket: socket, ring: ring, index: index, port: port, kind: kind, linkType: linkType,
      isLoopback: hardware == PacketSocket.Hardware.loopback, latency: configuration.latency)
  }

  /// The same, as a request says it.
  public static func open(
    _ request: CaptureQueue.Request, through opener: PacketSocketOpener? = nil
  ) throws(PacketSourceError) -> LiveCapture {
    try open(
      interface: request.interface, port: request.port, kind: request.kind, configuration: request.configuration,
      through: opener)
  }

  private static func socket(
    for interface: String, _ opener: PacketSocketOpener?
  ) throws(PacketSourceError) -> PacketSocket {
    if let opener { return try opener.socket(for: interface) }
    do throws(SystemFailure) { return try PacketSocket.open() } catch {
      throw PacketSocket.openingFailure(error.number, interface)
    }
  }

  /// The number of the interface that frames come from; 0: it is gone.
  package var boundIndex: UInt32 {
    let number = socket.boundAddress().index
    return failure == nil && number > 0 ? UInt32(number) : 0
  }

  @inlinable
  public mutating func nextBatch(
    limit: Int, patience: Duration, _ body: (FrameMetadata, RawSpan) -> Void
  ) throws(PacketSourceError) -> BatchOutcome {
    var frames = 0
    while frames < limit {
      // What is there already is handed over without waiting for more.
      guard try advance(patience: frames == 0 ? patience : nil) else { break }
      frames += 1
      // SAFETY: the frame lies inside a block that is ours until the next call of `advance`.
      unsafe body(frame, ring.bytes(of: place, in: block).bytes)
    }
    return BatchOutcome(frames: frames, isAtEnd: false)
  }

  /// Finds the next frame and sets `frame` and `place`; false when there is none now. Waits only when `patience` is given.
  @usableFromInline
  mutating func advance(patience: Duration?) throws(PacketSourceError) -> Bool {
    while true {
      while framesLeft > 0 {
        if try takeFrame() { return true }
      }
      if try takeBlock() { continue }
      if let failure { throw failure }
      guard let patience else { return false }
      guard try waitForBlock(patience) else { return false }
    }
  }

  /// Takes the next frame of the block. False for one that is not to be delivered: a loopback interface shows each frame twice.
  private mutating func takeFrame() throws(PacketSourceError) -> Bool {
    guard let found = ring.frame(in: block, at: nextOffset) else {
      framesLeft = 0
      let error = PacketSourceError(
        .corrupt, "the kernel's ring for \(interface.escapedForDisplay) names a frame outside its block",
        remedy: "open the capture again; report the kernel's version if it happens again")
      failure = error
      throw error
    }
    framesLeft -= 1
    nextOffset = found.next
    let isOutgoing = found.packetType == PacketSocket.outgoing
    if isLoopback && isOutgoing { return false }
    place = found
    frame = FrameMetadata(
      timestamp: found.timestamp, port: port,
      direction: kind == .bridge ? .unknown : isOutgoing ? .toGuest : .fromGuest,
      checksums: found.status & PacketSocket.Status.checksumNotReady != 0
        ? .notYetComputed : found.status & PacketSocket.Status.checksumValid != 0 ? .valid : .unknown,
      linkType: linkType, strippedVLAN: found.vlan,
      originalLength: max(found.original, UInt32(truncatingIfNeeded: found.length)))
    counters.received &+= 1
    counters.receivedBytes &+= UInt64(found.length)
    if Int(found.original) > found.length { counters.truncated &+= 1 }
    return true
  }

  /// Gives the block back that has been read, and takes the next if the kernel has handed it over.
  private mutating func takeBlock() throws(PacketSourceError) -> Bool {
    if holdsBlock {
      ring.release(block)
      block = (block + 1) % ring.blockCount
      holdsBlock = false
      counters.droppedByKernel &+= socket.takeDrops()
    }
    guard failure == nil, ring.isReady(block) else { return false }
    holdsBlock = true
    (framesLeft, nextOffset) = ring.contents(of: block)
    return true
  }

  /// - Returns: whether it is worth looking again.
  private mutating func waitForBlock(_ patience: Duration) throws(PacketSourceError) -> Bool {
    counters.droppedByKernel &+= socket.takeDrops()
    switch gone {
    case .drained:
      let error = PacketSourceError(
        .interfaceGone, "the interface \(interface.escapedForDisplay) is gone",
        remedy: "open it again when the guest is back")
      failure = error
      throw error
    case .draining(let end):
      // Nobody waits longer than was asked: others' frames would wait, too.
      let left = ContinuousClock.now.duration(to: end)
      if left > .zero {
        _ = socket.wait(min(patience, left))
        return ring.isReady(block)
      }
      gone = .drained
      return true
    case .no: break
    }
    switch socket.wait(patience) {
    case .nothing:
      if let down, .now >= down.nextLook { lookWhetherGone() }
      return false
    case .ready:
      // Frames of before it went down have been handed over long since.
      if let down, .now >= down.since + .seconds(10) { self.down = nil }
      return ring.isReady(block)
    case .error:
      // ENETDOWN for an interface that went down, which may come up again, and for one that is gone.
      _ = socket.takeError()
      lookWhetherGone()
      return ring.isReady(block)
    }
  }

  /// An interface that is deleted goes down first. Whoever takes the error between the two sees it there still, and no second one follows.
  private mutating func lookWhetherGone() {
    let now = ContinuousClock.now
    if socket.boundAddress().index != index {
      gone = .draining(until: now + latency * 2 + .milliseconds(20))
      down = nil
    } else {
      down = (down?.since ?? now, now + .milliseconds(20))
    }
  }

  /// The names of the interfaces that there are, for an error message.
  private static func interfaceNames() -> String {
    // SAFETY: the list ends with an entry whose index is 0 and is freed once.
    guard let list = unsafe if_nameindex() else { return "none that can be listed" }
    defer { unsafe if_freenameindex(list) }
    var names: [String] = []
    var position = 0
    while unsafe list[position].if_index != 0 && position < 64 {
      // SAFETY: an entry's name is NUL-terminated.
      names.append(unsafe String(cString: list[position].if_name).escapedForDisplay)
      position += 1
    }
    return names.joined(separator: ", ")
  }
}
