import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceCore
import VMFenceGuest

let guestUUID = DomainUUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")!

/// A guest with `eth0` (192.0.2.2, 2001:db8::2), and a machine beside it with several addresses: .10 is honest, .66 is not.
final class GuestNetwork {
  let guest: NetworkNamespace
  let outside: NetworkNamespace
  private let folder: URL

  static let honest = "192.0.2.10"
  static let attacker = "192.0.2.66"
  static let honest6 = "2001:db8::10"
  static let attacker6 = "2001:db8:0:0:66::66"

  init() throws {
    guest = try NetworkNamespace("guest")
    outside = try NetworkNamespace("outside")
    folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-guest-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    try NetworkNamespace.shell(
      """
      ip -n \(guest.name) link add eth0 type veth peer name eth0 netns \(outside.name)
      ip -n \(guest.name) addr add 192.0.2.2/24 dev eth0
      ip -n \(guest.name) addr add 2001:db8::2/32 dev eth0 nodad
      for address in \(Self.honest) \(Self.attacker); do ip -n \(outside.name) addr add $address/24 dev eth0; done
      for address in \(Self.honest6) \(Self.attacker6); do
        ip -n \(outside.name) addr add $address/32 dev eth0 nodad
      done
      ip -n \(guest.name) link set eth0 up
      ip -n \(outside.name) link set eth0 up
      """)
  }

  deinit { try? FileManager.default.removeItem(at: folder) }

  func file(_ name: String, _ bytes: [UInt8]) throws -> String {
    let url = folder.appending(path: name)
    try Data(bytes).write(to: url)
    return url.path
  }

  func file(_ policy: GuestPolicy) throws -> String { try file("policy-\(policy.version)", policy.encoded) }

  /// Whether a ping from an address of the machine outside is answered.
  func reaches(from address: String) -> Bool {
    let target = address.contains(":") ? "2001:db8::2" : "192.0.2.2"
    return outside.succeeds("ping -q -n -c 1 -W 1 -I \(address) \(target)")
  }

  /// Whether a ping from there is answered after all: neighbours have to be found first.
  func comesThrough(from address: String) -> Bool { comesTrue { reaches(from: address) } }

  /// Whether the guest's own ping to an address is answered.
  func isReached(_ address: String) -> Bool { guest.succeeds("ping -q -n -c 1 -W 1 \(address)") }

  struct Run {
    var status: Int32
    var output: String
  }

  /// Runs the built vmfence-guest in the guest.
  func vmfenceGuest(_ arguments: String, input: String = "/dev/null") throws -> Run {
    let output = try guest.run(
      "status=0; \(try programPath()) \(arguments) 2>&1 <\(input) || status=$?; echo; echo $status")
    var lines = output.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
    let status = Int32(lines.removeLast()) ?? -1
    return Run(status: status, output: lines.joined(separator: "\n"))
  }

  /// Everything that nf_tables has, without counters' values and what is left of times.
  func ruleset() throws -> String {
    try guest.run("nft -s list ruleset | sed -E 's/ expires [0-9dhms]+//g; s/packets [0-9]+ bytes [0-9]+//'")
  }
}

struct ProgramMissing: Error {}

/// The built vmfence-guest, beside the test runner or the bundle that it was given.
func programPath() throws -> String {
  let beside = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
  let bundles = CommandLine.arguments.filter { $0.hasSuffix(".xctest") }
    .map { URL(filePath: $0).deletingLastPathComponent() }
  for folder in [beside] + bundles {
    let path = folder.appending(path: "vmfence-guest").path
    if FileManager.default.isExecutableFile(atPath: path) { return path }
  }
  throw ProgramMissing()
}

/// A policy for the guest, made now.
func policy(
  _ version: UInt64, _ measures: [(FirewallMeasureKind, seconds: Int64?)], exceptions: QuarantineExceptions = .init()
) throws -> GuestPolicy {
  let now = SystemClock().now
  return try GuestPolicy(
    domain: guestUUID, version: version, issued: now,
    measures: measures.enumerated().map { index, item in
      GuestPolicy.Measure(
        item.0, expires: item.seconds.map { now + .seconds($0) }, decision: UInt64(100 + index),
        comment: "sid 1:1000001")
    }, exceptions: exceptions)
}

func block(_ text: String) -> FirewallMeasureKind { .block(IPNetwork(text)!) }
