internal import Glibc
import VMFenceCore
import VMFenceNftables
import VMFenceProcess

// The packet filter: started by the daemon with a socket and nothing else. It gives up everything but CAP_NET_ADMIN, opens nf_tables and a socket by which resets are sent, and from
// then on changes its table as it is told: measures, ports, flows, in records of bounded size. It reads nothing that a guest wrote.

let name = "vmfence-firewall"
HelperProcessEnd.takeNoWords(
  name,
  "Holds the packet filter (CAP_NET_ADMIN) for vmfence-ref, which starts it with a socket and tells it the measures, ports and flows of its table."
)

func isolate(_ step: () throws(DetectorError) -> Void) {
  do throws(DetectorError) { try step() } catch {
    HelperProcessEnd.end("\(name): \(error.message)", code: DetectorExitCode.sandbox)
  }
}

let owner = HelperProcessEnd(messageLimit: FirewallServer.messageLimit + 1)
guard let first = owner.receive(within: nil) else {
  HelperProcessEnd.end("\(name): it is started by vmfence-ref, not by hand", code: DetectorExitCode.usage)
}
isolate { () throws(DetectorError) in try FirewallSandbox.giveUp() }
var sender: Result<ResetSender, FirewallError>
do throws(FirewallError) { sender = .success(try ResetSender.open()) } catch { sender = .failure(error) }
isolate { () throws(DetectorError) in try FirewallSandbox.keepPacketFilter() }

var server = FirewallServer(sender: sender)
var received: [UInt8]?? = .some(first)
while let message = received {
  if let message {
    // A question that no sound daemon asks: it is of another build, or not itself any more.
    guard
      let answer = server.answer(
        message, isolate: { isolate { () throws(DetectorError) in try FirewallSandbox.filterSystemCalls() } })
    else { _exit(DetectorExitCode.damaged) }
    guard owner.send(answer) else { break }
  }
  received = owner.receive(within: nil)
}
_exit(0)
