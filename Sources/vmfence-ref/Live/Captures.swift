#if Daemon
import Foundation
import Logging
import VMFenceCapture
import VMFenceCore

/// The interfaces that are captured: opened when they are there, closed when they go with their guest.
final class Captures {
  struct Wanted: Hashable {
    var interface: String
    var isBridge: Bool
  }

  /// Used by the loop alone, and after that by the queue that closes it.
  private final class Open: @unchecked Sendable {
    let wanted: Wanted
    /// nil: it is closed.
    var source: LiveCapture?
    /// Of the kernel's drops, those that were told of.
    var toldDrops: UInt64 = 0
    init(_ wanted: Wanted, _ source: consuming LiveCapture) {
      self.wanted = wanted
      self.source = consume source
    }
  }

  /// How old a frame may be when it is read; older or younger times are not believed, since the system's clock may have been set meanwhile.
  private static var ageMaximum: Duration { .seconds(5) }

  /// How often it is told that no packet socket is to be had.
  private static var troublePace: Duration { .seconds(10) }

  private let logger: Logger
  private let opener: PacketSocketOpener
  /// What opens cards that come while others are read.
  private let opening: CaptureQueue
  /// Asked of it and not answered yet.
  private var pending: Set<Wanted> = []
  private var wanted: Set<Wanted> = []
  private var isFirst = true
  private let closing = DispatchQueue(label: "vmfence-closing")
  private var open: [Open] = []
  private var hasOpened = false
  private var missing: Set<Wanted> = []
  /// Frames that the kernel dropped, of captures that are closed.
  private var pastDrops: UInt64 = 0
  private(set) var ports = HostPorts()
  private var lastProblem: String?
  /// Why the last one that came was not permitted; nil: it was.
  private var refusal: String?
  private var toldTroubles: UInt64 = 0
  private var lastTold: Timestamp?

  /// - `opener`: what opens packet sockets: this process has not the right to.
  /// - `notify`: called, in another thread, when something was opened that `takeOpened` takes.
  init(_ opener: PacketSocketOpener, logger: Logger, notify: @escaping @Sendable () -> Void) {
    self.opener = opener
    self.logger = logger
    opening = CaptureQueue(through: opener, notify: notify)
  }

  /// Looks after what opens packet sockets, without waiting.
  ///
  /// - Returns: whether something can be opened now that could not before.
  func tend() -> Bool {
    // Meanwhile another thread may wait for it.
    opening.isBusy ? false : opener.tend()
  }

  /// Opens what is wanted and there, and closes what is not wanted any more.
  ///
  /// What is wanted the first time is opened when this returns. Later, frames of other cards would wait for it: what comes then is opened beside, and taken by `takeOpened`.
  ///
  /// - Throws: the first time, when permission is missing. Later that is waited for as everything else is.
  func update(_ wanted: [Wanted]) throws(PacketSourceError) {
    defer { isFirst = false }
    self.wanted = Set(wanted)
    for capture in open where !self.wanted.contains(capture.wanted) {
      close(capture, because: "nobody has it any more")
    }
    missing.formIntersection(self.wanted)
    for item in wanted where !pending.contains(item) && !open.contains(where: { $0.wanted == item }) {
      let request = CaptureQueue.Request(
        interface: item.interface, port: ports.number(item.interface, isBridge: item.isBridge),
        kind: item.isBridge ? .bridge : .guestPort,
        configuration: Self.configuration(captures: self.wanted.count))
      guard isFirst else {
        pending.insert(item)
        logger.trace("opening \(item.interface)")
        opening.open(request)
        continue
      }
      do throws(PacketSourceError) { take(item, try LiveCapture.open(request, through: opener)) } catch {
        if error.code == .permissionDenied, !hasOpened { throw error }
        take(item, error)
      }
    }
  }

  /// Goes on with what was opened beside. Does not wait.
  ///
  /// - Returns: whether there is something that `update` opens: see `follow`.
  func takeOpened() -> Bool {
    var opened: Set<String> = []
    for result in opening.takeResults() {
      let item = Wanted(interface: result.request.interface, isBridge: result.request.kind == .bridge)
      pending.remove(item)
      if result.error == nil || result.error?.code == .noSuchInterface { opened.insert(item.interface) }
      if let error = result.error {
        if wanted.contains(item) { take(item, error) }
      } else if wanted.contains(item), let capture = result.take() {
        take(item, capture)
      } else {
        // It went meanwhile. Closing it takes its time, too.
        closing.async { _ = result.take() }
      }
    }
    // Of a name that became another interface's meanwhile the news have been taken already.
    return follow(opened)
  }

  private func take(_ item: Wanted, _ capture: consuming LiveCapture) {
    open.append(Open(item, capture))
    hasOpened = true
    refusal = nil
    missing.remove(item)
    logger.notice("capturing on \(item.interface)")
  }

  private func take(_ item: Wanted, _ error: PacketSourceError) {
    if error.code == .permissionDenied { refusal = error.message }
    if missing.insert(item).inserted { logger.warning("waiting for \(item.interface): \(error.message)") }
  }

  /// Of one capture among so many. The kernel's timers tick the more often the fewer they are: 1 ms for up to 31 captures, 8 ms from 128 on, so that
  /// a host with a thousand guests does not spend a processor on them. The daemon may be away for 64 ms all the same before a frame is lost.
  private static func configuration(captures: Int) -> LiveCapture.Configuration {
    let milliseconds = min(8, max(1, captures / 16))
    let size = max(4 << 20, 64 / milliseconds * (128 << 10))
    return LiveCapture.Configuration(bufferSize: size, latency: .milliseconds(milliseconds))
  }

  private func close(_ capture: Open, because reason: String) {
    logger.notice("the capture on \(capture.wanted.interface) ended: \(reason)")
    pastDrops &+= capture.source?.counters.droppedByKernel ?? 0
    open.removeAll { $0 === capture }
    // For tens of milliseconds the kernel waits for its own readers of each, and frames of others would wait with it.
    closing.async { capture.source = nil }
  }

  /// Whether frames of a port are captured: there, or on the bridge that it is plugged into.
  func isOpen(at port: String, bridge: String?) -> Bool {
    open.contains { capture in
      guard capture.wanted.interface == (capture.wanted.isBridge ? bridge : port) else { return false }
      let number = capture.source?.boundIndex ?? 0
      return number != 0 && number == Self.number(of: capture.wanted.interface)
    }
  }

  /// Closes those whose names are other interfaces' now, or nobody's. One whose interface is gone is read to its end first.
  ///
  /// - Returns: whether one of these names is wanted, and an interface's now that is not captured: `update` opens it.
  func follow(_ changed: Set<String>) -> Bool {
    guard !changed.isEmpty else { return false }
    for capture in open where changed.contains(capture.wanted.interface) {
      let number = capture.source?.boundIndex ?? 0
      if number != 0, number != Self.number(of: capture.wanted.interface) {
        close(capture, because: "its interface has another name now")
      }
    }
    let captured = pending.union(open.map(\.wanted))
    return wanted.contains { item in
      changed.contains(item.interface) && !captured.contains(item) && Self.number(of: item.interface) != 0
    }
  }

  /// 0 when there is none of this name now.
  static func number(of interface: String) -> UInt32 {
    // SAFETY: the function reads the name up to its NUL.
    unsafe if_nametoindex(interface)
  }

  /// Hands over what has come in. Capture times become those of `clock`.
  ///
  /// - Returns: how many frames there were.
  func read(limit: Int, _ clock: SteadyClock, _ body: (FrameMetadata, RawSpan) -> Void) -> Int {
    var frames = 0
    let now = clock.now
    let (offset, earliest) = (clock.offset, now + (.zero - Self.ageMaximum))
    for capture in open {
      do throws(PacketSourceError) {
        frames +=
          try capture.source?.nextBatch(limit: limit, patience: .zero) { frame, bytes in
            var frame = frame
            frame.timestamp = frame.timestamp + (.zero - offset)
            if frame.timestamp > now || frame.timestamp < earliest { frame.timestamp = now }
            body(frame, bytes)
          }.frames ?? 0
      } catch { close(capture, because: error.message) }
    }
    return frames
  }

  /// Captures that lost frames since the last call, and how many.
  func newDrops() -> [(interface: String, count: UInt64)] {
    open.compactMap { capture in
      let dropped = capture.source?.counters.droppedByKernel ?? 0
      guard dropped > capture.toldDrops else { return nil }
      defer { capture.toldDrops = dropped }
      return (capture.wanted.interface, dropped - capture.toldDrops)
    }
  }

  /// Why no interface can be captured that comes now; nil when nothing is known to stand against it.
  var problem: String? {
    // Meanwhile another thread may wait for it.
    if !opening.isBusy { lastProblem = opener.problem }
    return (lastProblem ?? refusal).map { "cards that come cannot be captured: \($0)" }
  }

  /// What is to be told of that, not too often.
  func newTrouble(at now: Timestamp) -> PlatformAlert? {
    guard !opening.isBusy else { return nil }
    let troubles = opener.troubles
    guard troubles.count > toldTroubles, lastTold.map({ now - $0 >= Self.troublePace }) ?? true else { return nil }
    defer { (toldTroubles, lastTold) = (troubles.count, now) }
    return PlatformAlert(
      time: now, incarnation: nil, kind: .captureGap,
      message: "cards that come cannot be captured: \(troubles.last.escapedForDisplay)", severity: 2,
      count: troubles.count - toldTroubles)
  }

  /// Frames that the kernel dropped since the start.
  var drops: UInt64 { open.reduce(pastDrops) { $0 &+ ($1.source?.counters.droppedByKernel ?? 0) } }
  var received: UInt64 { open.reduce(0) { $0 &+ ($1.source?.counters.received ?? 0) } }
  var descriptors: [Int32] { open.compactMap { $0.source?.pollDescriptor } }
}
#endif
