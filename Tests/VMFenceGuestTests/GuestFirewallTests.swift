import Foundation
import NetworkTestSupport
import TestSupport
import Testing
import VMFenceCore
import VMFenceGuest

/// Policies in the kernel's packet filter, and real packets.
@Suite("A policy in a guest", .enabled(if: NetworkNamespace.isPossible, "\(NetworkNamespace.reason)"))
struct GuestFirewallTests {
  private let network: GuestNetwork
  init() throws { network = try GuestNetwork() }

  private func firewall() throws -> GuestFirewall { try network.guest.inside { try GuestFirewall() } }

  @Test("blocked sources reach nothing and are not reached, others go on; a later policy takes the place of the first")
  func blocks() throws {
    var firewall = try firewall()
    #expect(try firewall.inForce() == nil)
    for address in [GuestNetwork.honest, GuestNetwork.attacker, GuestNetwork.honest6, GuestNetwork.attacker6] {
      #expect(network.comesThrough(from: address), "\(address) before")
    }
    let first = try policy(
      1, [(block("192.0.2.64/28"), 600), (block("2001:db8:0:0:66::/80"), nil), (block("203.0.113.9"), 600)])
    let result = try firewall.apply(first, at: SystemClock().now)
    #expect(result.standing == 3 && result.over == 0)
    #expect(!network.reaches(from: GuestNetwork.attacker) && !network.reaches(from: GuestNetwork.attacker6))
    #expect(!network.isReached(GuestNetwork.attacker) && !network.isReached(GuestNetwork.attacker6))
    #expect(network.comesThrough(from: GuestNetwork.honest) && network.comesThrough(from: GuestNetwork.honest6))
    let seen = try #require(try firewall.inForce())
    #expect(seen.version == 1 && seen.digest == first.digest && seen.domain == guestUUID && seen.issued == first.issued)
    #expect(seen.measures.map(\.kind) == first.measures.map(\.kind))
    #expect(seen.measures.map(\.decision) == first.measures.map(\.decision))
    #expect(seen.measures.allSatisfy { $0.comment == "sid 1:1000001" })
    #expect(seen.measures.map { $0.left == nil } == first.measures.map { $0.expires == nil })
    #expect(seen.droppedFrom.packets >= 2 && seen.droppedTo.packets >= 2 && seen.droppedFrom.bytes > 0)

    try firewall.apply(try policy(2, [(block(GuestNetwork.honest), 600)]), at: SystemClock().now)
    #expect(network.comesThrough(from: GuestNetwork.attacker) && network.comesThrough(from: GuestNetwork.attacker6))
    #expect(!network.reaches(from: GuestNetwork.honest) && network.comesThrough(from: GuestNetwork.honest6))
    #expect(try firewall.inForce()?.version == 2)

    #expect(try firewall.remove())
    #expect(network.comesThrough(from: GuestNetwork.honest))
    #expect(try firewall.remove() == false)
    #expect(try network.ruleset() == "")
  }

  @Test("an open connection of a blocked source is cut at once")
  func establishedConnection() throws {
    let script = """
      import socket, sys
      server = socket.create_server(("192.0.2.2", 7007))
      connection, _ = server.accept()
      while True:
          data = connection.recv(64)
          if not data: break
          connection.sendall(data)
      """
    let server = try network.guest.start("python3 -c '\(script)'")
    defer { server.terminate() }
    #expect(comesTrue { network.guest.succeeds("ss -ltn | grep -q :7007") })
    let client = """
      import socket, sys
      connection = socket.create_connection(("192.0.2.2", 7007), source_address=("\(GuestNetwork.attacker)", 0))
      connection.settimeout(60)
      connection.sendall(b"one"); assert connection.recv(64) == b"one"
      print("open", flush=True)
      sys.stdin.readline()
      connection.settimeout(1)
      connection.sendall(b"two")
      try:
          connection.recv(64); print("answered")
      except TimeoutError:
          print("cut")
      """
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = ["ip", "netns", "exec", network.outside.name, "python3", "-c", client]
    let (input, output) = (Pipe(), Pipe())
    process.standardInput = input
    process.standardOutput = output
    try process.run()
    var said = ""
    while !said.contains("\n") {
      let data = output.fileHandleForReading.availableData
      try #require(!data.isEmpty, "the client ended: \(said)")
      said += String(decoding: data, as: UTF8.self)
    }
    var firewall = try firewall()
    try firewall.apply(try policy(1, [(block(GuestNetwork.attacker), 600)]), at: SystemClock().now)
    try input.fileHandleForWriting.write(contentsOf: Data("\n".utf8))
    process.waitUntilExit()
    said += String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    #expect(said == "open\ncut\n")
  }

  @Test("blocks and quarantine end by themselves")
  func timeouts() throws {
    var firewall = try firewall()
    let policy = try policy(1, [(block(GuestNetwork.attacker), 15), (block("203.0.113.9"), nil), (.quarantine, 15)])
    try firewall.apply(policy, at: SystemClock().now)
    for address in [GuestNetwork.attacker, GuestNetwork.honest] {
      // What comes through once the time is over says nothing, if the machine stood still for so long.
      #expect(
        !network.reaches(from: address) || SystemClock().now - policy.issued >= .seconds(15),
        "\(address) comes through")
    }
    #expect(network.guest.succeeds("ping -q -n -c 1 -W 60 127.0.0.1"), "the guest itself goes on in quarantine")
    #expect(network.comesThrough(from: GuestNetwork.attacker))
    let seen = try #require(try firewall.inForce())
    #expect(seen.measures.map(\.kind) == [block("203.0.113.9")] && seen.measureCount == 3)
    #expect(seen.droppedInQuarantine.packets > 0)
    // A policy that comes late has only what is left.
    let late = try firewall.apply(policy, at: policy.issued + .seconds(20))
    #expect(late.standing == 1 && late.over == 2)
  }

  @Test("in quarantine the guest speaks with exceptions only, in both directions")
  func quarantine() throws {
    var firewall = try firewall()
    let exceptions = QuarantineExceptions(
      networks: [IPNetwork(GuestNetwork.honest)!, IPNetwork("\(GuestNetwork.honest6)/128")!], allowsDHCP: true)
    try firewall.apply(try policy(1, [(.quarantine, nil)], exceptions: exceptions), at: SystemClock().now)
    #expect(network.comesThrough(from: GuestNetwork.honest) && network.comesThrough(from: GuestNetwork.honest6))
    #expect(comesTrue { network.isReached(GuestNetwork.honest) })
    #expect(!network.reaches(from: GuestNetwork.attacker) && !network.reaches(from: GuestNetwork.attacker6))
    #expect(!network.isReached(GuestNetwork.attacker))
    let rules = try network.guest.run("nft list chain inet vmfence_guest isolated")
    #expect(rules.contains("udp dport 67") || rules.contains("DHCP to port 67"))
  }

  @Test("what the guest sends above its limit is dropped and counted")
  func rateLimit() throws {
    var firewall = try firewall()
    try firewall.apply(try policy(1, [(.rateLimit(packetsPerSecond: 5), nil)]), at: SystemClock().now)
    _ = network.guest.succeeds("ping -q -n -c 200 -i 0.002 -W 1 \(GuestNetwork.honest)")
    let seen = try #require(try firewall.inForce())
    #expect(seen.measures.map(\.kind) == [.rateLimit(packetsPerSecond: 5)])
    #expect(seen.droppedByLimit.packets >= 100)
  }

  @Test("other people's tables stay as they are, whatever they are called")
  func others() throws {
    let theirs = """
      table inet filter {
        set s { type ipv4_addr; elements = { 203.0.113.1 } }
        chain input { type filter hook input priority 0; policy accept; ip saddr @s drop; ct state established accept; }
      }
      table ip vmfence_guest {
        chain c { counter; }
      }
      table inet vmfence {
        chain c { }
      }
      """
    try network.guest.run("nft -f - <<'E'\n\(theirs)\nE")
    let before = try network.ruleset()
    var firewall = try firewall()
    for version in 1...3 {
      try firewall.apply(try policy(UInt64(version), [(block(GuestNetwork.attacker), 600)]), at: SystemClock().now)
    }
    #expect(try network.ruleset().contains(before.trimmingCharacters(in: .whitespacesAndNewlines)))
    _ = try firewall.remove()
    #expect(try network.ruleset() == before)
  }

  @Test("a table of our name that is not ours is left alone; one of ours that somebody emptied is made anew")
  func foreignTable() throws {
    try network.guest.run("nft add table inet vmfence_guest; nft add chain inet vmfence_guest input")
    let before = try network.ruleset()
    var firewall = try firewall()
    let policy = try policy(1, [(block(GuestNetwork.attacker), 600)])
    #expect("somebody else's table") {
      try firewall.apply(policy, at: policy.issued)
    } throws: { ($0 as? GuestFirewallError)?.code == .foreign }
    #expect(throws: GuestFirewallError.self) { try firewall.inForce() }
    #expect(throws: GuestFirewallError.self) { try firewall.remove() }
    #expect(try network.ruleset() == before)
    try network.guest.run("nft delete table inet vmfence_guest")
    try firewall.apply(policy, at: policy.issued)
    try network.guest.run("nft flush table inet vmfence_guest")
    #expect(try firewall.inForce() == nil && network.comesThrough(from: GuestNetwork.attacker))
    try firewall.apply(policy, at: policy.issued)
    #expect(try firewall.inForce()?.version == 1 && !network.reaches(from: GuestNetwork.attacker))
  }

  @Test("an older policy, another with the same version, and another guest's are refused unless asked for")
  func stale() throws {
    var firewall = try firewall()
    let second = try policy(2, [(block(GuestNetwork.attacker), 600)])
    try firewall.apply(second, at: second.issued)
    let before = try network.ruleset()
    let strange = try GuestPolicy(domain: DomainUUID(high: 1, low: 2), version: 9, issued: second.issued, measures: [])
    for policy in [try policy(1, []), try policy(2, []), strange] {
      #expect("version \(policy.version)") {
        try firewall.apply(policy, at: policy.issued)
      } throws: { ($0 as? GuestFirewallError)?.code == .stale }
      #expect(try network.ruleset() == before)
    }
    try firewall.apply(second, at: second.issued)
    try firewall.apply(try policy(1, []), at: second.issued, allowsOlder: true)
    #expect(try firewall.inForce()?.version == 1)
  }

  @Test("the largest policy is put in force as a whole")
  func largest() throws {
    // Of every prefix length that may be, and of addresses as many as fit.
    var kinds: [FirewallMeasureKind] = (8...32).map { .block(IPNetwork(IPAddress(v4: 0x0BFF_FFFF), prefix: $0)) }
    kinds += (16...128).map { .block(IPNetwork(IPAddress(v6High: 0x2001_0DB9_FFFF_FFFF, low: .max), prefix: $0)) }
    kinds += [.quarantine, .rateLimit(packetsPerSecond: 1_000_000)]
    while kinds.count < GuestPolicy.measureLimit {
      kinds.append(.block(IPNetwork(IPAddress(v6High: 0xFD00_0000_0000_0000, low: UInt64(kinds.count)))))
    }
    let exceptions = (0..<GuestPolicy.exceptionLimit).map {
      IPNetwork(IPAddress(v6High: 0xFC00 << 48, low: UInt64($0)))
    }
    var firewall = try firewall()
    let whole = try policy(
      1, kinds.map { ($0, 3_600) }, exceptions: .init(networks: exceptions, allowsDHCP: true))
    #expect(whole.measures.count == GuestPolicy.measureLimit && whole.encoded.count == GuestPolicy.byteLimit)
    try firewall.apply(whole, at: whole.issued)
    let seen = try #require(try firewall.inForce())
    #expect(seen.measures.map(\.kind) == whole.measures.map(\.kind))
    try firewall.apply(try policy(2, []), at: whole.issued)
    #expect(try firewall.inForce()?.measures == [])
  }
}
