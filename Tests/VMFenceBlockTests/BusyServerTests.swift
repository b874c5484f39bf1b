import CLinux
import Foundation
import Synchronization
import TestSupport
import Testing
import VMFenceBlock
import VMFenceCore
import VMFenceTestKit

/// Who comes while the server has no time for requests.
@Suite struct BusyServerTests {
  /// A monitor that reads a file system with many names does nothing else for a long time.
  @Test func whoComesWhileTheServerIsBusyIsGreetedAndItsRequestsWait() throws {
    let folder = try TemporaryFolder()
    try folder.write([UInt8](repeating: 7, count: 4096), to: "disk.img")
    let path = folder.path + "/sock"
    var server = try NBDServer(
      disk: DiskFile(path: folder.path + "/disk.img"), listener: NBDListener(path: path),
      configuration: .init(handshakeLimit: waitLimit), clock: SystemClock())
    let stage = Atomic<Int>(0)
    let answer = Mutex<[UInt8]?>(nil)
    let client = Thread {
      if let client = try? RawClient(path), (try? client.enter()) != nil {
        try? client.send(RawClient.request(0, 0, 512, cookie: 9))
        stage.store(1, ordering: .releasing)
        let bytes = try? client.receive(16 + 512)
        answer.withLock { $0 = bytes }
      }
      stage.store(2, ordering: .releasing)
    }
    client.start()
    // Nothing is delivered as long as the observer is busy.
    _ = comesTrue {
      server.reader.attend()
      return stage.load(ordering: .acquiring) != 0
    }
    #expect(stage.load(ordering: .acquiring) == 1, "it was greeted, and has no answer yet")
    var observer = AskingObserver(shared: SharedObserver { _, _ in .allow })
    _ = try comesTrue {
      _ = try server.deliver(limit: 1, until: SystemClock().now + .milliseconds(20), to: &observer)
      return stage.load(ordering: .acquiring) != 1
    }
    #expect(answer.withLock { $0 }?.dropFirst(16) == [UInt8](repeating: 7, count: 512)[...])
    #expect(server.statistics.clients == 1 && server.statistics.reads == 1)
  }

  /// What is held waits for people, and whoever looks after the server comes each minute to see whether it lives.
  @Test func whoComesWhileARequestIsHeldIsGreeted() throws {
    let isDecided = Atomic<Bool>(false)
    let disk = try ServedDisk(clientLimit: 4) { request, _ in
      request.operation == .write && !isDecided.load(ordering: .acquiring) ? .hold : .allow
    }
    let writer = try RawClient(disk.socketPath)
    try writer.enter()
    try writer.send(RawClient.request(1, 0, 1, cookie: 5) + [9])
    try eventually("the request is held") { !disk.entries.isEmpty }
    // More of them, one after the other, than have a place at once; every other leaves within its handshake.
    for _ in 0..<6 {
      try RawClient(disk.socketPath).enter()
      #expect(try RawClient(disk.socketPath).receive(18).count == 18)
    }
    let silent = try RawClient(disk.socketPath)
    try silent.enter()
    try silent.send(RawClient.request(0, 0, 1, cookie: 6))
    isDecided.store(true, ordering: .releasing)
    #expect(try writer.receive(16) == RawClient.big(0x6744_6698, 4) + [0, 0, 0, 0] + RawClient.big(5, 8))
    #expect(try silent.receive(17).last == 9, "a request that waited meanwhile is done behind the one that was held")
    #expect(try disk.stop().refusedClients == 0)
  }

  @Test func whoIsSilentWhileARequestIsHeldIsHungUpOn() throws {
    let isDecided = Atomic<Bool>(false)
    let disk = try ServedDisk(handshakeLimit: .milliseconds(50)) { request, _ in
      request.operation == .write && !isDecided.load(ordering: .acquiring) ? .hold : .allow
    }
    // On a busy machine it may be hung up on, too, until it comes in time.
    var writer = try RawClient(disk.socketPath)
    var refused: UInt64 = 0
    try eventually("one comes in time") {
      if (try? writer.enter()) != nil { return true }
      refused += 1
      writer = try RawClient(disk.socketPath)
      return false
    }
    try writer.send(RawClient.request(1, 0, 1) + [9])
    try eventually("the request is held") { !disk.entries.isEmpty }
    #expect(try RawClient(disk.socketPath).isHungUp())
    isDecided.store(true, ordering: .releasing)
    #expect(try writer.receive(16).count == 16)
    #expect(try disk.stop().refusedClients == refused + 1)
  }
}
