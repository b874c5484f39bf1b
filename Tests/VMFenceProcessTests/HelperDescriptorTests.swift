import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing
import VMFenceCore
import VMFenceProcess

private final class Runs: Sendable {
  let count = Atomic<Int>(0)
}

@Suite("Descriptors from a process")
struct HelperDescriptorTests {
  /// Sends messages with several copies of a pipe's end, and says of each whether a copy is open still when its owner has taken the message.
  private static let script = """
    #!/usr/bin/env python3
    import os, select, socket
    owner = socket.socket(fileno=3)
    for number in (0, 1, 2, 3, 7):
        end, other = os.pipe()
        socket.send_fds(owner, [b"x"], [other] * number)
        owner.recv(1)
        os.close(other)
        # A process that the owner is starting for another test has a copy for an instant.
        is_open = select.select([end], [], [], 60)[0] == [] or os.read(end, 1) != b""
        owner.send(b"o" if is_open else b"c")
        owner.recv(1)
    """

  @Test("one is taken, of several none, and none of those is left open")
  func several() throws {
    let path = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    try writeProgram(Self.script, to: path)
    for takes in [true, false] {
      let process = try HelperProcess(executable: path)
      for number in [0, 1, 2, 3, 7] {
        var descriptor: Int32?
        let message =
          takes
          ? process.receive(within: waitLimit, descriptor: &descriptor) : process.receive(within: waitLimit)
        #expect(message == .message(Array("x".utf8)))
        #expect((descriptor != nil) == (takes && number == 1), "\(number) at once")
        if let descriptor {
          #expect(fcntl(descriptor, F_GETFD) & FD_CLOEXEC != 0)
          close(descriptor)
        }
        #expect(process.send([1]))
        #expect(process.receive(within: waitLimit) == .message(Array("c".utf8)), "\(number) at once")
        #expect(process.send([1]))
      }
    }
  }

  @Test(
    "threads of a disk's process that have been made and have not run when the filter is put in force run all the same",
    .enabled(if: getuid() == 0, "needs root, to filter without giving anything up"))
  func threadsBeforeFilter() async {
    await #expect(processExitsWith: .exitCode(0)) {
      let runs = Runs()
      for _ in 0..<200 where DetachedThread.start({ runs.count.add(1, ordering: .releasing) }) != 0 { _exit(100) }
      do throws(DetectorError) { try DiskSandbox.filterSystemCalls() } catch { _exit(101) }
      while runs.count.load(ordering: .acquiring) < 200 { sched_yield() }
      _exit(0)
    }
  }

  @Test(
    "what opens packet sockets can make these, and can neither bind nor read them, nor do anything else",
    .enabled(if: getuid() == 0, "needs root, to give it up"))
  func captureSandbox() async {
    await #expect(processExitsWith: .exitCode(0)) {
      let raw = Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
      func isRefused(_ result: Int) -> Bool { result == -1 && errno == EPERM }
      do throws(DetectorError) { try CaptureSandbox.enter() } catch { _exit(100) }
      // What it may read from is descriptor 3. Threads of the test's process open and close files, so that number may be free by now: a socket that gets it is left aside.
      var made = socket(AF_PACKET, raw, 0)
      if made == 3 { made = socket(AF_PACKET, raw, 0) }
      if made < 0 { _exit(1) }
      if !isRefused(Int(socket(AF_PACKET, raw, Int32(UInt16(3).bigEndian)))) { _exit(2) }
      if !isRefused(Int(socket(AF_PACKET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0))) { _exit(3) }
      if !isRefused(Int(socket(AF_INET, raw, 1))) { _exit(4) }
      if !isRefused(Int(socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0))) { _exit(5) }
      var byte: UInt8 = 0
      var address = sockaddr()
      // SAFETY: each call gets one structure or byte, and its size; the message is empty.
      var message = unsafe msghdr()
      if !isRefused(Int(unsafe bind(made, &address, 16))) { _exit(6) }
      if !isRefused(Int(unsafe setsockopt(made, 263, 5, &byte, 1))) { _exit(7) }
      if !isRefused(unsafe recv(made, &byte, 1, Int32(MSG_DONTWAIT))) { _exit(8) }
      if !isRefused(unsafe recvmsg(made, &message, Int32(MSG_DONTWAIT))) { _exit(9) }
      if !isRefused(unsafe read(made, &byte, 1)) { _exit(10) }
      if !isRefused(unsafe send(made, &byte, 1, 0)) { _exit(11) }
      if !isRefused(unsafe sendmsg(made, &message, 0)) { _exit(12) }
      if !isRefused(unsafe write(2, &byte, 1)) { _exit(13) }
      if !isRefused(Int(unsafe open("/dev/null", O_RDONLY))) { _exit(14) }
      if !isRefused(Int(kill(getpid(), 0))) { _exit(15) }
      if close(made) != 0 { _exit(16) }
      _exit(0)
    }
  }
}
