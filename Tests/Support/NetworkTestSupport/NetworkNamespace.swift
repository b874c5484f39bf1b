public import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing

/// A network namespace of a test's own, made and removed by it. IPv6 is on, without autoconfiguration.
public final class NetworkNamespace: Sendable {
  public let name: String

  private static let count = Atomic(0)

  public init(_ label: String, ipv6: Bool = true) throws {
    let number = Self.count.wrappingAdd(1, ordering: .relaxed).newValue
    name = "vmfence-\(getpid())-\(number)-\(label)"
    let sysctl =
      ipv6
      ? """
      net.ipv6.conf.all.autoconf=0 net.ipv6.conf.default.autoconf=0 net.ipv6.conf.all.accept_ra=0 \
      net.ipv6.conf.default.accept_ra=0 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
      """
      : "net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
    try Self.shell(
      """
      ip netns add \(name)
      ip netns exec \(name) sysctl -qw \(sysctl)
      ip -n \(name) link set lo up
      """)
  }

  deinit {
    // What a test started there and did not end, since it failed, say. One that ends by itself meanwhile cannot be killed.
    _ = try? Self.shell("ip netns pids \(name) | xargs -r kill -9 || true; ip netns del \(name)")
  }

  public struct CommandFailed: Error, CustomStringConvertible {
    public var script: String
    public var status: Int32
    public var output: String
    public var description: String { "\(script): status \(status)\n\(output)" }
  }

  /// Whether this process may make namespaces and interfaces. CI runs these tests as root; elsewhere they are skipped, and
  /// the test run says so.
  public static let isPossible: Bool =
    geteuid() == 0
    && (try? shell("ip netns add vmfence-probe-\(getpid()); ip netns del vmfence-probe-\(getpid())")) != nil
  public static let reason: String = "needs root and ip(8): makes network namespaces of its own"

  /// Runs a shell script in the namespace; throws when it fails.
  ///
  /// - Returns: what it printed.
  @discardableResult
  public func run(_ script: String) throws -> String {
    try Self.shell("exec ip netns exec \(name) sh -e", input: script)
  }

  /// Whether the script succeeds in the namespace.
  public func succeeds(_ script: String) -> Bool { (try? run(script)) != nil }

  @discardableResult
  public static func shell(_ script: String, input: String = "") throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/sh")
    process.arguments = ["-ec", script]
    let (standardInput, output) = (Pipe(), Pipe())
    process.standardInput = standardInput
    process.standardOutput = output
    process.standardError = output
    try process.run()
    try standardInput.fileHandleForWriting.write(contentsOf: Data(input.utf8))
    try standardInput.fileHandleForWriting.close()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    guard process.terminationStatus == 0 else {
      throw CommandFailed(script: script + input, status: process.terminationStatus, output: text)
    }
    return text
  }

  /// Calls `body` with the calling thread in the namespace. Sockets that it opens stay there.
  public func inside<Result: ~Copyable>(_ body: () throws -> Result) throws -> Result {
    // SAFETY: `open` reads the path up to its NUL, which Swift's bridging to a C string adds.
    let before = unsafe open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
    let target = unsafe open("/run/netns/\(name)", O_RDONLY | O_CLOEXEC)
    defer {
      _ = Self.setns(before)
      close(before)
      close(target)
    }
    guard before >= 0, target >= 0, Self.setns(target) == 0 else {
      throw CommandFailed(script: "setns \(name)", status: errno, output: "")
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

extension NetworkNamespace {
  /// Starts a shell command in the namespace and does not wait for it. Whoever starts it ends it.
  public func start(_ command: String) throws -> Process {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/sh")
    process.arguments = ["-c", "exec ip netns exec \(name) \(command)"]
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    return process
  }

  /// Has another process make a table `vmfence` of nf_tables that it owns; the process goes with the namespace.
  public func ownTable(_ family: String) throws {
    _ = try start("sh -c \"(echo 'add table \(family) vmfence { flags owner; }'; exec sleep 600) | nft -i\"")
    try eventually("nft makes a table that it owns") { succeeds("nft list table \(family) vmfence") }
  }
}
