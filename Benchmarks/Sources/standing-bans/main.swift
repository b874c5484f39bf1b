// Writes a decision log with many blocks in force, as a daemon that has run for long leaves it: half of them IPv4 addresses for a domain, half
// IPv6 networks of 64 bits.
//
//   standing-bans FILE COUNT DOMAIN-UUID [DOMID]

import VMFenceCore

#if canImport(Glibc)
import Glibc
#endif

let arguments = CommandLine.arguments
guard arguments.count >= 4, let count = Int(arguments[2]), let uuid = DomainUUID(arguments[3]) else {
  print("usage: standing-bans FILE COUNT DOMAIN-UUID [DOMID]")
  exit(64)
}
let domain = Incarnation(uuid: uuid, domainID: DomainID(arguments.count > 4 ? UInt32(arguments[4]) ?? 1 : 1))
let now = Timestamp(seconds: Int64(time(nil)))

func decision(_ number: Int) -> Decision {
  let network =
    number % 2 == 0
    ? IPNetwork(IPAddress(v4: 0x0B00_0000 + UInt32(number)))
    : IPNetwork(IPAddress(v6High: 0x2001_0DB8_0000_0000 + UInt64(number), low: 0), prefix: 64)
  return Decision(
    id: UInt64(number + 1), time: now, incarnation: domain, measure: .block(network), status: .enforced,
    policy: "attacks", reason: "3 alerts within 60 s", step: 0, expires: now + .seconds(86_400),
    trigger: "1:1000001", source: network)
}

do {
  let (log, _) = try FileDecisionLog.open(path: arguments[1])
  try log.append((0..<count).map(decision))
  try log.sync()
} catch {
  print("standing-bans: \(error)")
  exit(1)
}
