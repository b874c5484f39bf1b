internal import Glibc
import VMFenceChannel
import VMFenceCore
import VMFenceProcess
import VMFenceXen

// One guest's policy channel in Dom0: started by the daemon with a socket and nothing else. It maps the guest's page, gives up everything, and only then
// reads the first word of it.

HelperProcessEnd.takeNoWords(
  "vmfence-channel",
  "Serves one guest's policy channel for vmfence-ref, which starts it with a socket and tells it whose page to map.")
guard HelperProcessEnd.isThere else {
  HelperProcessEnd.end("vmfence-channel: it is started by vmfence-ref, not by hand", code: DetectorExitCode.usage)
}
let owner = HelperProcessEnd()

func tell(_ report: SessionReport) { if !owner.send(report.encoded) { _exit(0) } }

func fail(_ message: String) -> Never {
  tell(.failed(message))
  _exit(1)
}

func next(within patience: Duration?) -> SessionOrder? {
  guard let message = owner.receive(within: patience) else { _exit(0) }
  guard let bytes = message else { return nil }
  guard let order = SessionOrder(bytes) else { fail("the daemon is of another version: install both from one build") }
  return order
}

func page(_ grant: SessionOrder.Grant?) -> SharedPage {
  guard let grant else {
    do throws(ChannelViolation) { return try SharedPage.mapping(descriptor: HelperProcessEnd.descriptor) } catch {
      fail(error.message)
    }
  }
  let grants: XenGrants
  do throws(ProbeError) { grants = try XenGrants.open() } catch { fail(error.message) }
  do throws(SystemFailure) {
    return SharedPage(try grants.map(grant.reference, of: DomainID(grant.domain)))
  } catch { fail("its page cannot be used: \(error.description)") }
}

/// The system's clock: what measures' times are counted on.
func now() -> Timestamp {
  var time = timespec()
  // SAFETY: one structure is written.
  unsafe clock_gettime(CLOCK_REALTIME, &time)
  return Timestamp(nanoseconds: Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec))
}

guard case .begin(let epoch, let grant, let looks)? = next(within: nil), epoch != 0 else {
  fail("it is started by the daemon, not by hand")
}
let shared = page(grant)
do throws(DetectorError) { try ChannelSandbox.enter() } catch { fail(error.message) }
tell(.mapped)
var waiting: [SessionOrder] = []
// Whose page it is, the daemon looks at once it is mapped: as long as it is, the domain's number is nobody else's.
while let order = next(within: nil), order != .look {
  if order == .close { _exit(0) }
  waiting.append(order)
}
do throws(ChannelViolation) {
  var worker = try SessionWorker(shared, epoch: epoch, at: now())
  for order in waiting { worker.take(order) }
  while !worker.isOver {
    for report in worker.step(at: now()) { tell(report) }
    // What a guest whose bell works does not ring for waits a second at the most.
    if let order = next(within: looks ? .milliseconds(100) : .seconds(1)) { worker.take(order) }
  }
  for report in worker.step(at: now()) { tell(report) }
} catch { tell(.closed(error)) }
_exit(0)
