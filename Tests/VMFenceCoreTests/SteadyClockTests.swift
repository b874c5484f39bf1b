import Synchronization
import Testing
import VMFenceCore

private final class Hands: Sendable {
  let system = Mutex(Timestamp(seconds: 1_000))
  let monotonic = Mutex<Int64>(5)
  func clock() -> SteadyClock {
    SteadyClock(system: { self.system.withLock { $0 } }, monotonic: { self.monotonic.withLock { $0 } })
  }
  func pass(_ duration: Duration) {
    system.withLock { $0 = $0 + duration }
    monotonic.withLock { $0 += duration.wholeNanoseconds }
  }
}

@Suite("A clock that does not jump")
struct SteadyClockTests {
  @Test("goes on at the pace of the monotonic clock, whatever is done to the system's")
  func steady() {
    let hands = Hands()
    let clock = hands.clock()
    #expect(clock.now == Timestamp(seconds: 1_000) && clock.offset == .zero && clock.look() == nil)
    hands.pass(.seconds(7))
    #expect(clock.now == Timestamp(seconds: 1_007) && clock.look() == nil)
    hands.system.withLock { $0 = $0 + .seconds(3_600) }
    #expect(clock.look() == .seconds(3_600))
    #expect(clock.look() == nil, "a jump is told once")
    #expect(clock.now == Timestamp(seconds: 1_007) && clock.offset == .seconds(3_600))
    hands.pass(.seconds(1))
    hands.system.withLock { $0 = Timestamp(seconds: 0) }
    #expect(clock.look() == .seconds(-4_608))
    #expect(clock.now == Timestamp(seconds: 1_008) && clock.now + clock.offset == Timestamp(seconds: 0))
  }

  @Test("what NTP does by and by is no jump")
  func slew() {
    let hands = Hands()
    let clock = hands.clock()
    hands.system.withLock { $0 = $0 + .milliseconds(99) }
    #expect(clock.look() == nil && clock.offset == .zero)
  }

  @Test("a pause between the readings of both clocks is no jump")
  func paused() {
    let monotonic = Mutex<Int64>(0)
    let isSlow = Mutex(false)
    let clock = SteadyClock(
      system: {
        monotonic.withLock { Timestamp(seconds: 1_000, nanoseconds: $0) }
      },
      monotonic: {
        monotonic.withLock { time in
          if isSlow.withLock({ $0 }) { time += 500_000_000 }
          return time
        }
      })
    isSlow.withLock { $0 = true }
    for _ in 0..<10 { #expect(clock.look() == nil) }
    isSlow.withLock { $0 = false }
    #expect(clock.look() == nil && clock.offset == .zero)
  }

  @Test("a log keeps the system's time, and moves along with it when it is compacted")
  func log() throws {
    let hands = Hands()
    let clock = hands.clock()
    let memory = MemoryDecisionLog()
    let log = SystemTimeDecisionLog(memory, clock: clock)
    let decision = Decision(
      id: 1, time: clock.now, incarnation: nil, measure: .blockOnHost(IPNetwork("203.0.113.7")!), status: .enforced,
      policy: "p", reason: "r", step: 0, expires: clock.now + .seconds(60), trigger: "t")
    try log.append([decision])
    #expect(memory.decisions == [decision])
    hands.system.withLock { $0 = $0 + .seconds(86_400) }
    _ = clock.look()
    try log.compact(to: [decision])
    #expect(memory.decisions.map(\.expires) == [Timestamp(seconds: 1_060 + 86_400)])
    #expect(memory.decisions.map(\.time) == [Timestamp(seconds: 1_000 + 86_400)])
  }

  @Test("all times of an event move")
  func shifted() {
    let platform = Event.platform(PlatformAlert(time: .zero, incarnation: nil, kind: .clockJump, message: ""))
    #expect(platform.shifted(by: .seconds(5)).time == Timestamp(seconds: 5))
    #expect(platform.shifted(by: .zero) == platform)
  }
}

@Suite("What a host never blocks")
struct HostAddressesTests {
  @Test("name servers, as resolv.conf(5) has them")
  func nameServers() {
    var found = HostAddresses()
    found.addNameServers(
      "# nameserver 192.0.2.9\n nameserver\t192.0.2.1 \nnameserver 2001:db8::53\nnameserver fe80::1%eth0\nnameserver x\noptions a\n"
    )
    #expect(found.nameServers == [IPAddress("192.0.2.1")!, IPAddress("2001:db8::53")!, IPAddress("fe80::1")!])
    var other = HostAddresses()
    other.addNameServers("nameserver 192.0.2.1\r\nnameserver 192.0.2.2\r\n")
    #expect(other.nameServers == [IPAddress("192.0.2.1")!, IPAddress("192.0.2.2")!])
  }

  @Test("gateways, as the kernel's tables have them")
  func gateways() {
    var found = HostAddresses()
    found.addRoutes(
      "Iface\tDestination\tGateway\tFlags\neth0\t00000000\t010200C0\t0003\neth0\t000200C0\t00000000\t0001\nbad\n")
    found.addIPv6Routes(
      "00000000000000000000000000000000 00 00000000000000000000000000000000 00 20010db8000000000000000000000001 0 eth0\nshort\n"
    )
    #expect(found.gateways == [IPAddress("192.0.2.1")!, IPAddress("2001:db8::1")!])
  }

  @Test("this machine's own addresses: loopback is always there")
  func own() {
    let found = HostAddresses.read(nameServers: "/nonexistent")
    #expect(found.own.contains(IPAddress("127.0.0.1")!) && found.nameServers.isEmpty)
    #expect(found.networks.contains(IPNetwork("127.0.0.1")!))
  }
}
