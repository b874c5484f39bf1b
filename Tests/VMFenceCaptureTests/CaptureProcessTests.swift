import Foundation
import Glibc
import NetworkTestSupport
import Synchronization
import TestSupport
import Testing
import VMFenceCapture
import VMFenceCore
import VMFenceProcess

/// `vmfence-capture` itself, in the host's network namespace.
private final class CaptureProcess {
  let network: TestNetwork
  private let folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)")
  private let running = Running()
  private(set) var opener: PacketSocketOpener?
  var processIDs: [Int32] { running.processes.withLock { $0 } }

  private final class Running: Sendable {
    let processes = Mutex<[Int32]>([])
  }

  /// - `prefix`: a command that starts it.
  init(_ name: String, prefix: String = "", _ patience: PacketSocketOpener.Patience = .init()) throws {
    network = try TestNetwork(name)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    let script = folder.appending(path: "capture").path
    // Both commands become the program, so the process is that.
    try "#!/bin/sh\nexec ip netns exec \(network.host) \(prefix) '\(try besideThisProgram("vmfence-capture"))'\n"
      .write(toFile: script, atomically: true, encoding: .utf8)
    try NetworkNamespace.shell("chmod +x '\(script)'")
    let running = running
    opener = try PacketSocketOpener(patience: patience) { () throws(DetectorError) in
      let process = try HelperProcess(executable: script)
      running.processes.withLock { $0.append(process.processID) }
      return process
    }
  }

  func close() { opener = nil }

  func open(_ kind: LiveCapture.Kind = .guestPort) throws -> LiveCapture {
    try network.inside(network.host) {
      try LiveCapture.open(interface: "vif1.0", port: PortID(7), kind: kind, through: opener)
    }
  }

  /// Whether something comes true while the opener is looked after.
  func tended(_ isSo: (PacketSocketOpener) -> Bool) throws -> Bool {
    let opener = try #require(opener)
    return comesTrue {
      _ = opener.tend()
      return isSo(opener)
    }
  }

  /// Stops the process that runs, when the one socket that is kept in advance is there, and takes that.
  func stop() throws -> Int32 {
    #expect(try tended { !$0.isOwed }, "the next socket is not there")
    let running = try #require(processIDs.last)
    kill(running, SIGSTOP)
    _ = try open()
    return running
  }

  deinit { try? FileManager.default.removeItem(at: folder) }
}

@Suite("vmfence-capture", .enabled(if: TestNetwork.isPossible, Comment(rawValue: TestNetwork.reason)), .serialized)
struct CaptureProcessTests {
  /// What came, until there were `count` frames, or a minute has passed. Two sockets may note other times of one frame.
  private func collect(
    _ capture: inout LiveCapture, _ count: Int
  ) throws(PacketSourceError) -> [(FrameMetadata, [UInt8])] {
    var frames: [(FrameMetadata, [UInt8])] = []
    let deadline = ContinuousClock.now + .seconds(60)
    while frames.count < count && ContinuousClock.now < deadline {
      _ = try capture.nextBatch(limit: 64, patience: .milliseconds(100)) { metadata, bytes in
        var metadata = metadata
        metadata.timestamp = .zero
        frames.append((metadata, bytes.copiedBytes()))
      }
    }
    return frames
  }

  private func failure(_ body: () throws -> Void) -> PacketSourceError? {
    do {
      try body()
      return nil
    } catch { return error as? PacketSourceError }
  }

  /// For what works: on a busy machine an answer may be late.
  private static let patient: PacketSocketOpener.Patience = {
    var patience = PacketSocketOpener.Patience()
    (patience.first, patience.answer, patience.late) = (.seconds(60), .seconds(60), .seconds(120))
    patience.restart = .milliseconds(50)
    return patience
  }()

  /// For what does not answer.
  private static let short: PacketSocketOpener.Patience = {
    var patience = patient
    (patience.answer, patience.late) = (.milliseconds(50), .seconds(10))
    return patience
  }()

  @Test(
    "a socket that was taken from it sees the same frames as one that was opened here",
    arguments: [LiveCapture.Kind.guestPort, .bridge])
  func sameFrames(kind: LiveCapture.Kind) throws {
    let process = try CaptureProcess("same", Self.patient)
    let network = process.network
    var opened = try network.inside(network.host) {
      try LiveCapture.open(interface: "vif1.0", port: PortID(7), kind: kind)
    }
    var adopted = try process.open(kind)
    let link = try NetworkNamespace.shell("ip -d -n \(network.host) link show vif1.0")
    #expect(link.contains("promiscuity \(kind == .bridge ? 2 : 0) "), "\(link)")
    try network.run(in: network.guest, "ping -q -c 20 -i 0.01 -s 1000 192.0.2.1")
    try network.run(
      in: network.guest,
      """
      python3 -c "import socket
      s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
      s.bind((\\"eth0\\", 0))
      for i in range(50):
        s.send(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0xA0, 42, 0x88, 0xB5, i]) + bytes(60 + i))"
      """)
    let (frames, others) = try (collect(&opened, 90), collect(&adopted, 90))
    #expect(frames.count == 90 && others.count == 90)
    for (frame, other) in zip(frames, others) { #expect(frame.0 == other.0 && frame.1 == other.1) }
    #expect(frames.contains { $0.0.strippedVLAN == 0xA02A })
    #expect(frames.contains { $0.0.direction == (kind == .bridge ? .unknown : .fromGuest) })
    #expect(adopted.counters.received == 90 && adopted.counters.droppedByKernel == 0)
  }

  private final class Count: Sendable {
    let value = Atomic<Int>(0)
  }

  @Test(
    "captures that are asked for beside are waited for by nobody, come in order, and see what came since they were opened"
  )
  func beside() throws {
    let process = try CaptureProcess("beside", Self.patient)
    let network = process.network
    let (told, child) = (Count(), process.processIDs[0])
    let queue = CaptureQueue(through: process.opener) { told.value.add(1, ordering: .releasing) }
    // One socket may be there already; of the second the answer does not come.
    kill(child, SIGSTOP)
    let names = ["vif1.0", "vif1.0", "nothing"]
    try network.inside(network.host) {
      for (number, name) in names.enumerated() {
        queue.open(.init(interface: name, port: PortID(UInt32(number)), kind: .guestPort))
      }
    }
    let first = queue.takeResults()
    #expect(queue.isBusy && first.count < names.count)
    kill(child, SIGCONT)
    #expect(comesTrue { told.value.load(ordering: .acquiring) == names.count && !queue.isBusy })
    let results = first + queue.takeResults()
    #expect(results.map(\.request.interface) == names)
    #expect(results.map(\.error?.code) == [nil, nil, .noSuchInterface])
    try network.run(in: network.guest, "ping -q -c 3 -i 0.01 192.0.2.1")
    for result in results.prefix(2) {
      guard var capture = result.take() else {
        Issue.record("it was opened")
        continue
      }
      let isTaken = result.take() == nil
      #expect(isTaken && result.request.port == PortID(result === results[0] ? 0 : 1))
      #expect(try collect(&capture, 6).count >= 6)
    }
    // Another thread begins where the last one has ended.
    try network.inside(network.host) { queue.open(.init(interface: "vif1.0", port: PortID(9))) }
    #expect(comesTrue { told.value.load(ordering: .acquiring) == names.count + 1 })
    #expect(queue.takeResults().map { $0.take() != nil } == [true])
  }

  @Test("whoever takes a socket from it needs no capability for it, a ring, an interface or promiscuity")
  func unprivileged() async {
    await #expect(processExitsWith: .success) {
      do {
        let opener = try PacketSocketOpener(patience: CaptureProcessTests.patient) { () throws(DetectorError) in
          try HelperProcess("vmfence-capture")
        }
        seteuid(65_534)
        do throws(PacketSourceError) {
          _ = try LiveCapture.open(interface: "lo", port: PortID(1))
          exit(1)
        } catch { if error.code != .permissionDenied { exit(2) } }
        for kind in [LiveCapture.Kind.guestPort, .bridge] {
          var capture = try LiveCapture.open(interface: "lo", port: PortID(1), kind: kind, through: opener)
          _ = try capture.nextBatch(limit: 1, patience: .zero) { _, _ in }
        }
      } catch { exit(3) }
      exit(0)
    }
  }

  @Test("it is nobody with one capability and no file but its socket, behind a filter")
  func holdsOne() throws {
    let process = try CaptureProcess("holds", Self.patient)
    // Its first answer: it has given up the rest before.
    _ = try process.open()
    let id = try #require(process.processIDs.first)
    let status = try String(contentsOfFile: "/proc/\(id)/status", encoding: .utf8)
    // CAP_NET_RAW is the 13th.
    for line in [
      "Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534", "CapEff:\t0000000000002000",
      "CapPrm:\t0000000000002000", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1",
      "Seccomp:\t2", "Threads:\t1",
    ] {
      #expect(status.contains(line), "\(status)")
    }
    let limits = try String(contentsOfFile: "/proc/\(id)/limits", encoding: .utf8).split(separator: " ")
      .joined(separator: " ")
    #expect(limits.contains("core file size 0 0 ") && limits.contains("open files 16 16 "), "\(limits)")
    let hasHandedOver = comesTrue {
      (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(id)/fd")).map(Set.init) == ["0", "1", "2", "3"]
    }
    #expect(hasHandedOver, "what it handed over is its own still")
  }

  @Test("without the capability it says so, and captures fail as without the process")
  func noCapability() throws {
    let process = try CaptureProcess(
      "nocap", prefix: "setpriv --bounding-set -net_raw --inh-caps -net_raw", Self.patient)
    for _ in 0..<3 {
      let failure = failure { _ = try process.open() }
      #expect(failure?.code == .permissionDenied && failure?.message.contains("CAP_NET_RAW") == true)
    }
    #expect(process.processIDs.count == 1 && process.opener?.problem == nil)
  }

  @Test("killed: what is captured goes on, it is told, and another is started")
  func killed() throws {
    let process = try CaptureProcess("killed", Self.patient)
    let network = process.network
    let opener = try #require(process.opener)
    var capture = try process.open()
    kill(try #require(process.processIDs.first), SIGKILL)
    try network.run(in: network.guest, "ping -q -c 3 -i 0.01 192.0.2.1")
    #expect(try collect(&capture, 6).count == 6)
    #expect(try process.tended { $0.troubles.count > 0 }, "its death is not noticed")
    #expect(opener.troubles.last.contains("killed by signal 9"), "\(opener.troubles)")
    #expect(try process.tended { $0.problem == nil && process.processIDs.count == 2 }, "no other is started")
    var second = try process.open()
    var third = try process.open()
    try network.run(in: network.guest, "ping -q -c 3 -i 0.01 192.0.2.1")
    #expect(try collect(&second, 6).count == 6 && collect(&third, 6).count == 6 && collect(&capture, 6).count == 6)
  }

  @Test("stopped: nobody waits for it for long, and it is ended when it is late, but not when it goes on in time")
  func stopped() throws {
    let process = try CaptureProcess("stopped", Self.short)
    let opener = try #require(process.opener)
    _ = try process.open()
    let first = try process.stop()
    // It is waited for once, however many want a socket. In some other calls the machine may stand still for as long.
    var longOnes = 0
    for _ in 0..<100 {
      let begun = ContinuousClock.now
      defer { longOnes += ContinuousClock.now - begun >= Self.short.answer ? 1 : 0 }
      let failure = failure { _ = try LiveCapture.open(interface: "lo", port: PortID(1), through: opener) }
      #expect(
        failure?.code == .unavailable && failure?.message.contains("does not answer") == true, "\(failure as Any)")
    }
    #expect(longOnes < 80, "so many of a hundred waited")
    #expect(opener.problem?.contains("does not answer") == true)
    #expect(comesTrue { opener.tend() }, "no other has a socket")
    #expect(process.processIDs.count == 2 && kill(first, 0) == -1, "the stopped one is gone")
    #expect(opener.troubles.last.contains("did not answer within"), "\(opener.troubles)")
    _ = try process.open()

    let second = try process.stop()
    #expect(self.failure { _ = try process.open() }?.code == .unavailable)
    kill(second, SIGCONT)
    #expect(comesTrue { opener.tend() }, "it does not go on")
    _ = try process.open()
    #expect(process.processIDs.count == 2)
  }

  @Test("it ends with its owner")
  func owner() throws {
    let process = try CaptureProcess("owner", Self.patient)
    _ = try process.open()
    let id = try #require(process.processIDs.first)
    process.close()
    #expect(kill(id, 0) == -1)
  }

  @Test("a question that no sound daemon asks ends it, and nothing is handed over")
  func garbage() throws {
    let sound = PacketSocketMessage(sequence: 5).encoded
    var otherVersion = sound
    otherVersion[0] ^= 1
    let garbage: [[[UInt8]]] = [
      [Array(sound.dropLast())], [sound + [0]], [otherVersion], [PacketSocketMessage(sequence: 5, error: 1).encoded],
      [[UInt8](repeating: 0xFF, count: 60_000)], [[0]], [sound, sound],
      [sound, PacketSocketMessage(sequence: 4).encoded],
    ]
    for messages in garbage {
      let process = try HelperProcess("vmfence-capture")
      for message in messages { #expect(process.send(message)) }
      var descriptor: Int32?
      for _ in messages.dropLast() {
        #expect(process.receive(within: .seconds(60), descriptor: &descriptor) == .message(sound))
        close(try #require(descriptor))
      }
      #expect(process.receive(within: .seconds(60), descriptor: &descriptor) == .ended && descriptor == nil)
      process.end(patience: .seconds(60))
      #expect(process.status == .exited(code: DetectorExitCode.damaged), "\(messages)")
    }
  }

  @Test("by hand it says what it is for")
  func byHand() throws {
    let program = try besideThisProgram("vmfence-capture")
    #expect(try NetworkNamespace.shell("'\(program)' --help 3<&-").contains("vmfence-ref"))
    #expect(try NetworkNamespace.shell("'\(program)' 3<&- || echo $?").contains("64"))
    #expect(try NetworkNamespace.shell("'\(program)' --interface eth0 3<&- || echo $?").contains("64"))
  }
}
