import Foundation
import Glibc
import NetworkTestSupport
import Testing
import VMFenceCapture
import VMFenceConformance
import VMFenceCore

/// Real frames over real interfaces. Skipped, and reported as skipped, where the process may not make network namespaces.
@Suite("Live captures", .enabled(if: TestNetwork.isPossible, Comment(rawValue: TestNetwork.reason)))
struct LiveCaptureTests {
  /// Delivers what comes until `isEnough` says so, or a minute has passed.
  private func collect(
    _ capture: inout LiveCapture, until isEnough: ([Delivery], CaptureCounters) -> Bool
  ) throws(PacketSourceError) -> [Delivery] {
    var frames: [Delivery] = []
    let deadline = ContinuousClock.now + .seconds(60)
    while !isEnough(frames, capture.counters) && ContinuousClock.now < deadline {
      _ = try capture.nextBatch(limit: 64, patience: .milliseconds(100)) {
        frames.append(Delivery($0, $1.copiedBytes()))
      }
    }
    return frames
  }

  private func source(_ frame: Delivery) -> [UInt8] { Array(frame.bytes[26..<30]) }

  @Test("say for each frame whether it came from the guest or went to it")
  func direction() throws {
    let network = try TestNetwork("direction")
    var capture = try network.inside(network.host) { try LiveCapture.open(interface: "vif1.0", port: PortID(7)) }
    let before = time(nil)
    // Each is answered before the next one goes.
    try network.run(in: network.host, "for n in 1 2 3; do ping -q -c 1 -W 60 192.0.2.2; done")
    let frames = try collect(&capture) { frames, _ in frames.count >= 6 }
    try #require(frames.count == 6)
    for (index, frame) in frames.enumerated() {
      let isRequest = index % 2 == 0
      #expect(frame.bytes[34] == (isRequest ? 8 : 0), "the ICMP type")
      #expect(source(frame) == [192, 0, 2, isRequest ? 1 : 2])
      #expect(frame.metadata.direction == (isRequest ? .toGuest : .fromGuest))
      #expect(frame.metadata.port == PortID(7))
      #expect(frame.metadata.linkType == .ethernet)
      #expect(frame.metadata.originalLength == 98)
      #expect(abs(frame.metadata.timestamp.nanoseconds / 1_000_000_000 - Int64(before)) < 60)
    }
    #expect(zip(frames, frames.dropFirst()).allSatisfy { $0.metadata.timestamp <= $1.metadata.timestamp })
    #expect(capture.counters.received == 6)
    #expect(capture.counters.receivedBytes == 6 * 98)
    #expect(capture.counters.droppedByKernel == 0)
  }

  @Test("give frames of 64 KiB whole, and know that their checksums are not computed yet")
  func offload() throws {
    let network = try TestNetwork("offload")
    var capture = try network.inside(network.host) { try LiveCapture.open(interface: "vif1.0", port: PortID(1)) }
    try network.run(
      in: network.guest,
      """
      python3 -c "import socket; s = socket.create_server((\\"192.0.2.2\\", 80)); c = s.accept()[0]
      while c.recv(65536): pass" &
      server=$!
      ip netns exec \(network.host) python3 -c "import socket, time
      for attempt in range(3000):
        try: c = socket.create_connection((\\"192.0.2.2\\", 80)); break
        except OSError: time.sleep(0.02)
      c.sendall(bytes(1000000)); c.close()"
      wait $server
      """)
    var carried = 0
    let frames = try collect(&capture) { frames, _ in
      carried = frames.filter { $0.metadata.direction == .toGuest }.reduce(0) { $0 + max(0, $1.bytes.count - 66) }
      return carried >= 1_000_000
    }
    #expect(carried >= 1_000_000)
    #expect(frames.map(\.bytes.count).max()! > 20_000)
    #expect(frames.allSatisfy { Int($0.metadata.originalLength) == $0.bytes.count })
    let data = frames.filter { $0.bytes.count > 100 }
    #expect(data.allSatisfy { $0.metadata.checksums == .notYetComputed }, "veth leaves checksums to the receiver")
  }

  @Test("leave the checksum state open where the checksum is in the frame")
  func computedChecksum() throws {
    let network = try TestNetwork("checksum")
    var capture = try network.inside(network.host) { try LiveCapture.open(interface: "vif1.0", port: PortID(1)) }
    // ICMP checksums are always computed by the sender.
    try network.run(in: network.guest, "ping -q -c 1 192.0.2.1")
    let frames = try collect(&capture) { frames, _ in frames.count >= 2 }
    #expect(frames.count == 2)
    #expect(frames.allSatisfy { $0.metadata.checksums != .notYetComputed })
  }

  @Test("keep the VLAN tag that the kernel takes out of a frame")
  func vlan() throws {
    let network = try TestNetwork("vlan")
    var capture = try network.inside(network.host) { try LiveCapture.open(interface: "vif1.0", port: PortID(1)) }
    try network.run(
      in: network.guest,
      """
      python3 -c "import socket
      s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
      s.bind((\\"eth0\\", 0))
      s.send(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0xA0, 42, 0x88, 0xB5]) + bytes(60))"
      """)
    let frames = try collect(&capture) { frames, _ in !frames.isEmpty }
    let frame = try #require(frames.first)
    #expect(frame.metadata.strippedVLAN == 0xA02A, "priority 5, VLAN 42")
    #expect(frame.bytes[12..<14] == [0x88, 0xB5], "the tag is not in the bytes")
  }

  @Test("count every frame that a slow reader lost")
  func drops() throws {
    let network = try TestNetwork("drops")
    var capture = try network.inside(network.host) {
      try LiveCapture.open(interface: "vif1.0", port: PortID(1), configuration: .init(bufferSize: 1 << 20))
    }
    let sent: UInt64 = 5_000
    try network.run(
      in: network.guest,
      """
      python3 -c "import socket
      s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
      s.bind((\\"eth0\\", 0))
      frame = bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xB5]) + bytes(1000)
      for i in range(\(sent)): s.send(frame)"
      """)
    let frames = try collect(&capture) { UInt64($0.count) + $1.droppedByKernel >= sent }
    #expect(frames.count > 500)
    #expect(capture.counters.droppedByKernel > 1_000)
    #expect(capture.counters.received + capture.counters.droppedByKernel == sent)
  }

  @Test("wait for an interface that is down and go on when it is up")
  func downAndUp() throws {
    let network = try TestNetwork("down")
    var capture = try network.inside(network.host) { try LiveCapture.open(interface: "vif1.0", port: PortID(1)) }
    try network.run(in: network.host, "ip link set vif1.0 down")
    for _ in 0..<3 { #expect(try capture.nextBatch(limit: 1, patience: .milliseconds(1)) { _, _ in }.frames == 0) }
    try network.run(
      in: network.host,
      """
      ip link set vif1.0 up
      ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev vif1.0 nud permanent
      until ping -q -c 1 -W 1 192.0.2.2; do :; done
      """)
    #expect(try collect(&capture) { frames, _ in frames.count >= 2 }.count >= 2)
  }

  /// A capture that has 200 frames to deliver, numbered in their fifteenth byte, and whose interface went after them.
  private func goneAfterFrames(_ network: TestNetwork) throws -> LiveCapture {
    let capture = try network.inside(network.host) { try LiveCapture.open(interface: "vif1.0", port: PortID(1)) }
    try network.run(
      in: network.guest,
      """
      python3 -c "import socket
      s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
      s.bind((\\"eth0\\", 0))
      for i in range(200): s.send(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xB5, i]) + bytes(60 + i))"
      """)
    try network.run(in: network.host, "ip link del vif1.0")
    return capture
  }

  @Test("are packet sources: they end with an error once the interface is gone and its last frames were delivered")
  func conformance() throws {
    var round = 0
    var networks: [TestNetwork] = []
    let run = try PacketSourceConformance(expectedFailure: .interfaceGone, comparesTimestamps: false).check {
      round += 1
      let network = try TestNetwork("gone\(round)")
      networks.append(network)
      return try goneAfterFrames(network)
    }
    #expect(run.frames.map { Int($0.bytes[14]) } == Array(0..<200))
    #expect(run.failure?.message.contains("vif1.0 is gone") == true)
  }

  @Test("learn that their interface is gone, also when they had learnt already that it went down")
  func goneAfterDown() throws {
    let network = try TestNetwork("downgone")
    var capture = try network.inside(network.host) { try LiveCapture.open(interface: "vif1.0", port: PortID(1)) }
    try network.run(in: network.host, "ip link set vif1.0 down")
    // Takes the only error that the kernel gives.
    #expect(try capture.nextBatch(limit: 64, patience: .milliseconds(50)) { _, _ in }.frames == 0)
    try network.run(in: network.host, "ip link del vif1.0")
    var end: PacketSourceError?
    let deadline = ContinuousClock.now + .seconds(60)
    while end == nil, ContinuousClock.now < deadline {
      do throws(PacketSourceError) {
        _ = try capture.nextBatch(limit: 64, patience: .milliseconds(5)) { _, _ in }
      } catch { end = error }
    }
    #expect(end?.code == .interfaceGone)
  }

  @Test("that lose their interfaces keep nobody waiting who does not wait, and deliver their last frames")
  func goneWithoutWaiting() throws {
    // How often this thread has gone to sleep. That the machine takes its processor away is another matter.
    func sleeps() -> Int {
      var usage = rusage()
      // SAFETY: one structure, which lives across the call.
      _ = unsafe getrusage(1, &usage)
      return usage.ru_nvcsw
    }
    // The best of a few: a lock in the kernel may be somebody else's for a moment.
    var longest: [Duration] = []
    while longest.count < 5, !longest.contains(where: { $0 < .milliseconds(15) }) {
      let network = try TestNetwork("nowait\(longest.count)")
      var capture = try goneAfterFrames(network)
      var (frames, calls, end): ([UInt8], [Duration], PacketSourceError?) = ([], [], nil)
      let deadline = ContinuousClock.now + .seconds(60)
      while end == nil, ContinuousClock.now < deadline {
        let (began, before) = (ContinuousClock.now, sleeps())
        do throws(PacketSourceError) {
          _ = try capture.nextBatch(limit: 64, patience: .zero) { frames.append($1.copiedBytes()[14]) }
        } catch { end = error }
        calls.append(sleeps() == before ? .zero : ContinuousClock.now - began)
        usleep(500)
      }
      #expect(end?.code == .interfaceGone)
      #expect(frames == Array(0..<200))
      longest.append(calls.max() ?? .seconds(60))
    }
    #expect(longest.contains { $0 < .milliseconds(15) }, "\(longest)")
  }

  @Test("of a bridge see what passes between its ports, without knowing where it entered")
  func bridge() throws {
    let network = try TestNetwork("bridge")
    let other = try TestNetwork("bridge2")
    try NetworkNamespace.shell(
      """
      ip -n \(other.host) link set vif1.0 name vif2.0 netns \(network.host)
      ip -n \(network.host) link add xenbr0 type bridge
      for i in vif1.0 vif2.0; do
        ip -n \(network.host) addr flush dev $i
        ip -n \(network.host) link set $i master xenbr0 up
      done
      ip -n \(network.host) link set xenbr0 up
      ip -n \(other.guest) link set eth0 address 02:00:00:00:00:03
      ip -n \(other.guest) addr flush dev eth0
      ip -n \(other.guest) addr add 192.0.2.3/24 dev eth0
      """)
    // The first may come before the bridge forwards.
    try network.run(in: network.guest, "until ping -q -c 1 -W 1 192.0.2.3; do :; done")
    var capture = try network.inside(network.host) {
      try LiveCapture.open(interface: "xenbr0", port: PortID(9), kind: .bridge)
    }
    try network.run(in: network.guest, "ping -q -c 1 -W 60 192.0.2.3")
    func isEcho(_ frame: Delivery) -> Bool { frame.bytes[12..<14] == [8, 0] && frame.bytes[23] == 1 }
    let frames = try collect(&capture) { frames, _ in frames.count(where: isEcho) >= 2 }.filter(isEcho)
    #expect(frames.map(source) == [[192, 0, 2, 2], [192, 0, 2, 3]])
    #expect(frames.allSatisfy { $0.metadata.direction == .unknown && $0.metadata.port == PortID(9) })
  }

  @Test("of an interface that is not there name those that are")
  func noSuchInterface() throws {
    let network = try TestNetwork("none")
    for name in ["vif2.0", "", "a name that is longer than any interface's", "vif\u{1B}[2J"] {
      do {
        _ = try network.inside(network.host) { try LiveCapture.open(interface: name, port: PortID(1)) }
        Issue.record("opened \(name)")
      } catch let error as PacketSourceError {
        #expect(error.code == .noSuchInterface)
        #expect(error.message.contains("there are: lo, vif1.0"), "\(error)")
        #expect(!error.message.contains("\u{1B}"))
      }
    }
  }

  @Test("with a ring that is too large are refused")
  func tooLarge() throws {
    let network = try TestNetwork("large")
    do {
      _ = try network.inside(network.host) {
        try LiveCapture.open(interface: "vif1.0", port: PortID(1), configuration: .init(bufferSize: 1 << 50))
      }
      Issue.record("opened")
    } catch let error as PacketSourceError {
      #expect(error.code == .inputOutput)
      #expect(!error.remedy.isEmpty)
    }
  }

  @Test("without the right to capture name the capability")
  func permission() async {
    await #expect(processExitsWith: .success) {
      seteuid(65_534)
      do throws(PacketSourceError) {
        _ = try LiveCapture.open(interface: "lo", port: PortID(1))
        exit(1)
      } catch {
        exit(error.code == .permissionDenied && error.description.contains("CAP_NET_RAW") ? 0 : 2)
      }
    }
  }
}
