internal import Glibc
import VMFenceCapture
import VMFenceCore
import VMFenceProcess

// What opens packet sockets: started by the daemon with a socket and nothing else. It keeps the right to that, gives up everything besides, and hands a packet socket that
// receives nothing yet to the daemon whenever it asks. It reads no frame, and nothing that a guest wrote.

let name = "vmfence-capture"
HelperProcessEnd.takeNoWords(
  name,
  "Opens packet sockets (CAP_NET_RAW) for vmfence-ref, which starts it with a socket and asks it for one at each card that comes."
)
guard HelperProcessEnd.isThere else {
  HelperProcessEnd.end("\(name): it is started by vmfence-ref, not by hand", code: DetectorExitCode.usage)
}
do throws(DetectorError) { try CaptureSandbox.enter() } catch {
  HelperProcessEnd.end("\(name): \(error.message)", code: DetectorExitCode.sandbox)
}
// A longer message than a question is none.
let owner = HelperProcessEnd(messageLimit: PacketSocketMessage.byteCount + 1)
var server = PacketSocketServer()
while let received = owner.receive(within: nil) {
  guard let message = received else { continue }
  // A question that no sound daemon asks: it is of another build, or not itself any more.
  guard let (answer, descriptor) = server.answer(message) else { _exit(DetectorExitCode.damaged) }
  let isSent = owner.send(answer, descriptor: descriptor)
  if let descriptor { _ = close(descriptor) }
  guard isSent else { break }
}
_exit(0)
