internal import Glibc
import VMFenceCore
import VMFenceProcess
import VMFenceXen

// The hypervisor's handle: started by the daemon with a socket and nothing else. It opens libxenctrl, gives up everything besides, and then lists domains, and pauses,
// resumes, stops and destroys the one that is named by number and UUID. It reads nothing that a guest wrote.

let name = "vmfence-hypervisor"
HelperProcessEnd.takeNoWords(
  name,
  "Holds the hypervisor's handle (/dev/xen/privcmd) for vmfence-ref, which starts it with a socket and asks it to list, pause, resume, stop and destroy domains."
)
// A longer message than a question is none.
let owner = HelperProcessEnd(messageLimit: XenQuestion.byteCount + 1)
var server = XenServer()
var isFirst = true
while let received = owner.receive(within: nil) {
  guard let message = received else { continue }
  let answer = server.answer(message) { host throws(XenOpeningFailure) in
    try XenInterface.opening(on: host)
  } isolate: {
    do throws(DetectorError) { try HypervisorSandbox.enter() } catch {
      HelperProcessEnd.end("\(name): \(error.message)", code: DetectorExitCode.sandbox)
    }
  }
  isFirst = false
  // A question that no sound daemon asks: it is of another build, or not itself any more.
  guard let answer else { _exit(DetectorExitCode.damaged) }
  guard owner.send(answer) else { break }
}
if isFirst { HelperProcessEnd.end("\(name): it is started by vmfence-ref, not by hand", code: DetectorExitCode.usage) }
_exit(0)
