internal import Glibc
import VMFenceChannel
import VMFenceCore

/// A page that this guest grants to Dom0, offered in xenstore. Dom0 rings by changing an entry there that it alone writes; it looks at the page by
/// itself, so this side need not ring.
///
/// With an event channel both ring over that. It is for guests that are never saved or migrated: Linux forgets the event channels of
/// programs then, and trips over them when the program ends (drivers/xen/evtchn.c; seen in Tests/Rig with Linux 6.1).
final class XenTransport: ChannelTransport {
  private static let offerPath = "data/vmfence/offer"
  private static let ringPath = "vmfence/ring"

  private(set) var page: SharedPage
  private var grant: Grant
  private let store: XenStoreDevice
  private let events: EventChannel?
  /// What stands in xenstore while the offer holds; empty before it was made.
  private var offered = ""

  init(usesEventChannel: Bool) throws(GuestCommand.Failure) {
    do throws(SystemFailure) {
      store = try XenStoreDevice()
      grant = try Grant()
      page = grant.page
      events = usesEventChannel ? try EventChannel() : nil
      // Each tells after a restore too: then the offer is gone, with the domain that made it.
      try store.watch(Self.offerPath)
      try store.watch(Self.ringPath)
    } catch {
      throw GuestCommand.Failure(
        error.number == EACCES || error.number == EPERM ? 77 : 69, error.description,
        remedy: "it needs a guest of Xen, root, and the kernel's modules xen-gntalloc"
          + (usesEventChannel ? " and xen-evtchn" : "") + "; elsewhere, name a page: --page FILE")
    }
  }

  func offer() {
    let text = "\(grant.reference)" + (events.map { " \($0.port)" } ?? "")
    do throws(SystemFailure) {
      try store.write(Self.offerPath, text)
      offered = text
    } catch { Output.write("vmfence-guest: the page cannot be offered: \(error.description)\n", to: 2) }
    events?.ring()
  }

  func renew() -> Bool {
    do throws(SystemFailure) {
      guard try store.takeNews() || offered.isEmpty, try store.read(Self.offerPath) != offered else { return false }
      // The old page stays granted to whoever maps it still.
      grant = try Grant()
      page = grant.page
      return true
    } catch {
      Output.write("vmfence-guest: \(error.description)\n", to: 2)
      return false
    }
  }

  func withdraw() { try? store.remove(Self.offerPath) }

  func wait(atMost time: Duration) {
    var descriptors = [
      pollfd(fd: store.descriptor, events: Int16(POLLIN), revents: 0),
      pollfd(fd: events?.descriptor ?? -1, events: Int16(POLLIN), revents: 0),
    ]
    // SAFETY: two structures, as is said; a negative descriptor is passed over. A signal ends it.
    _ = unsafe poll(&descriptors, 2, Int32(time.wholeNanoseconds / 1_000_000))
    if descriptors[1].revents != 0 { events?.take() }
  }

  func ring() { events?.ring() }
}

/// One page of this guest's, which Dom0 may map and write (/dev/xen/gntalloc, include/uapi/xen/gntalloc.h of Linux).
@safe private final class Grant {
  private static let device = "/dev/xen/gntalloc"
  /// IOCTL_GNTALLOC_ALLOC_GREF: number 5 of 'G', with a structure of 24 bytes.
  private static let allocate: UInt = 24 << 16 | 0x47 << 8 | 5
  private static let writable: UInt16 = 1

  let page: SharedPage
  let reference: UInt32

  init() throws(SystemFailure) {
    // SAFETY: open(2) reads the path up to its zero.
    let descriptor = unsafe open(Self.device, O_RDWR | O_CLOEXEC)
    guard descriptor >= 0 else { throw SystemFailure(call: "open \(Self.device)", number: errno) }
    // The mapping keeps what it needs of it.
    defer { close(descriptor) }
    // Domain u16 (0: Dom0), flags u16, count u32, index u64 (written), references u32 (written).
    var request: (UInt16, UInt16, UInt32, UInt64, UInt32, UInt32) = (0, Self.writable, 1, 0, 0, 0)
    // SAFETY: the kernel's structure has the layout of this tuple, 24 bytes, and is written in place.
    guard unsafe ioctl(descriptor, Self.allocate, &request) == 0 else {
      throw SystemFailure(call: "grant a page", number: errno)
    }
    // SAFETY: a fresh mapping that replaces none.
    let result = unsafe mmap(
      nil, SharedPage.byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, Int(request.3))
    guard let base = unsafe result, unsafe base != MAP_FAILED else {
      throw SystemFailure(call: "map the granted page", number: errno)
    }
    let address = UInt(bitPattern: base)
    // SAFETY: the mapping above, unmapped once, when nobody refers to it any more.
    let region = unsafe SharedRegion(adopting: base, byteCount: SharedPage.byteCount) {
      unsafe _ = munmap(UnsafeMutableRawPointer(bitPattern: address), SharedPage.byteCount)
    }
    page = SharedPage(region)
    reference = request.4
  }
}

/// This guest's end of an event channel to Dom0 (/dev/xen/evtchn, include/uapi/xen/evtchn.h of Linux).
@safe private final class EventChannel {
  private static let device = "/dev/xen/evtchn"
  /// IOCTL_EVTCHN_BIND_UNBOUND_PORT and IOCTL_EVTCHN_NOTIFY: numbers 2 and 4 of 'E', with a structure of 4 bytes.
  private static let bind: UInt = 4 << 16 | 0x45 << 8 | 2
  private static let notify: UInt = 4 << 16 | 0x45 << 8 | 4

  let descriptor: Int32
  let port: UInt32

  init() throws(SystemFailure) {
    // SAFETY: open(2) reads the path up to its zero.
    descriptor = unsafe open(Self.device, O_RDWR | O_CLOEXEC | O_NONBLOCK)
    guard descriptor >= 0 else { throw SystemFailure(call: "open \(Self.device)", number: errno) }
    var dom0: UInt32 = 0
    // SAFETY: the kernel reads a structure of one such number.
    let result = unsafe ioctl(descriptor, Self.bind, &dom0)
    guard result > 0 else {
      let number = errno
      close(descriptor)
      throw SystemFailure(call: "make an event channel", number: number)
    }
    port = UInt32(result)
  }

  deinit { close(descriptor) }

  func ring() {
    var port = port
    // SAFETY: the kernel reads a structure of one such number.
    _ = unsafe ioctl(descriptor, Self.notify, &port)
  }

  /// Takes the ring, and lets the port ring again.
  func take() {
    var port: UInt32 = 0
    // SAFETY: read(2) writes one number, write(2) reads it.
    if unsafe read(descriptor, &port, 4) == 4 { _ = unsafe write(descriptor, &port, 4) }
  }
}
