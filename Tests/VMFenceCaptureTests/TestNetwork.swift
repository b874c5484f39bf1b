import Foundation
import Glibc

/// Two network namespaces of a test's own, made and removed by it: `host` with the interface `vif1.0`, and `guest` with `eth0` at the
/// other end. 192.0.2.1 is the host, 192.0.2.2 the guest; IPv6 is off, so that nothing talks unasked.
final class TestNetwork {
  /// Whether this process may make namespaces and interfaces. CI runs these tests as root; elsewhere they are skipped, and
  /// the test run says so.
  static let isPossible: Bool =
    geteuid() == 0
    && (try? shell("ip netns add vmfence-probe-\(getpid()); ip netns del vmfence-probe-\(getpid())")) != nil
  static let reason = "needs root and ip(8): makes network namespaces and captures in them"

  let host: String
  let guest: String

  init(_ name: String) throws {
    host = "vmfence-\(getpid())-\(name)-host"
    guest = "vmfence-\(getpid())-\(name)-guest"
    try Self.shell(
      """
      for n in \(host) \(guest); do
        ip netns add $n
        ip netns exec $n sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
        ip -n $n link set lo up
      done
      ip -n \(host) link add vif1.0 address 02:00:00:00:00:01 type veth peer name eth0 netns \(guest) \
        address 02:00:00:00:00:02
      ip -n \(host) addr add 192.0.2.1/24 dev vif1.0
      ip -n \(guest) addr add 192.0.2.2/24 dev eth0
      ip -n \(host) link set vif1.0 up
      ip -n \(guest) link set eth0 up
      ip -n \(host) neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev vif1.0 nud permanent
      ip -n \(guest) neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
      """)
  }

  deinit {
    for name in [host, guest] { _ = try? Self.shell("ip netns del \(name)") }
  }

  /// Runs a shell script in a namespace; throws when it fails.
  func run(in namespace: String, _ script: String) throws {
    try Self.shell("ip netns exec \(namespace) sh -ec '\(script)'")
  }

  struct CommandFailed: Error {
    var script: String
    var status: Int32
  }

  static func shell(_ script: String) throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/sh")
    process.arguments = ["-ec", script]
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    process.standardInput = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else {
      throw CommandFailed(script: script, status: process.terminationStatus)
    }
  }

  /// Calls `body` with the calling thread in a namespace. Sockets that it opens stay there.
  func inside<Result: ~Copyable>(_ namespace: String, _ body: () throws -> Result) throws -> Result {
    // SAFETY: `open` reads the path up to its NUL, which Swift's bridging to a C string adds.
    let before = unsafe open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
    let target = unsafe open("/run/netns/\(namespace)", O_RDONLY | O_CLOEXEC)
    defer {
      _ = Self.setns(before)
      close(before)
      close(target)
    }
    guard before >= 0, target >= 0, Self.setns(target) == 0 else {
      throw CommandFailed(script: "setns \(namespace)", status: errno)
    }
    return try body()
  }

  /// setns(2), which glibc declares for `_GNU_SOURCE` only.
  private static func setns(_ descriptor: Int32) -> Int32 {
    typealias Function = @convention(c) (Int32, Int32) -> Int32
    // SAFETY: this is the type of glibc's function `setns`, which every glibc since 2.14 has.
    let function = unsafe unsafeBitCast(dlsym(nil, "setns"), to: Function.self)
    let networkNamespace: Int32 = 0x4000_0000
    return function(descriptor, networkNamespace)
  }
}
