import NetworkTestSupport
import TestSupport
import VMFenceCore
import VMFenceNftables

let vm1 = DomainUUID(high: 0x1111_1111_1111_4111, low: 0x8111_1111_1111_1111)
let vm2 = DomainUUID(high: 0x2222_2222_2222_4222, low: 0x8222_2222_2222_2222)

/// The ports of the guests of a `BridgeNetwork`.
let bridgePorts: [DomainUUID: [NetworkPort]] = [vm1: [port("vif1.0", 1)], vm2: [port("vif2.0", 2)]]

func port(_ interface: String, _ number: UInt64) -> NetworkPort {
  NetworkPort(
    interface: interface, bridge: "xenbr0", mac: MACAddress(rawValue: 0x0277_0000_0000 + number),
    addresses: [IPAddress("10.77.0.\(number)")!, IPAddress("fd77::\(number)")!])
}

/// Where the tests' times begin; the kernel's own clock runs beside.
let start = Timestamp(seconds: 1_800_000_000)

func block(
  _ network: String, for domain: DomainUUID? = nil, seconds: Int64? = 600, decision: UInt64 = 1
) -> FirewallMeasure {
  FirewallMeasure(
    scope: domain.map { .domain($0) } ?? .host, kind: .block(IPNetwork(network)!),
    expires: seconds.map { start + .seconds($0) }, decision: decision, comment: "sid 1:1000001")
}

extension NftablesSink {
  /// Applies a change to whatever is in force.
  @discardableResult
  func change(add: [FirewallMeasure] = [], remove: [FirewallMeasure.Key] = []) async throws -> UInt64 {
    let generation = try await readBack(at: start).generation
    return try await apply(FirewallChange(from: generation, time: start, add: add, remove: remove))
  }
}

/// Waits until a number that grew stays the same for half a second: how soon after a flow is cut those who count have seen all that came before is up to the
/// machine.
func stops(_ number: () -> Int) async throws -> Bool {
  try await comesTrueSuspending {
    let before = number()
    try await Task.sleep(for: .milliseconds(500))
    return number() == before
  }
}

/// Runs `body` on this thread without CAP_NET_ADMIN in its effective capabilities.
func withoutNetworkAdministration<Result: ~Copyable>(_ body: () throws -> Result) throws -> Result {
  // struct __user_cap_header_struct (version 3, this thread) and two of __user_cap_data_struct: effective, permitted, inheritable.
  var header: [UInt32] = [0x2008_0522, 0]
  var data = [UInt32](repeating: 0, count: 6)
  // SAFETY: the kernel reads and writes the structures as described.
  guard unsafe capget(&header, &data) == 0 else { throw CapabilityFailure() }
  let before = data
  data[0] &= ~(1 << 12)
  // SAFETY: as above.
  guard unsafe capset(&header, data) == 0 else { throw CapabilityFailure() }
  defer {
    // SAFETY: as above.
    _ = unsafe capset(&header, before)
  }
  return try body()
}

struct CapabilityFailure: Error {}

// SAFETY: glibc's functions of capget(2) and capset(2), which no header declares.
@_silgen_name("capget") private func capget(
  _ header: UnsafeMutablePointer<UInt32>, _ data: UnsafeMutablePointer<UInt32>
) -> Int32
@_silgen_name("capset") private func capset(_ header: UnsafeMutablePointer<UInt32>, _ data: UnsafePointer<UInt32>)
  -> Int32
