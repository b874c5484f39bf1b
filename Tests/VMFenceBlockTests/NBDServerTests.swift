import CLinux
import Foundation
import Synchronization
import TestSupport
import Testing
import VMFenceConformance
import VMFenceCore
import VMFenceIntegrity
import VMFenceTestKit

@testable import VMFenceBlock

@Suite struct NBDServerTests {
  @Test func whatIsWrittenIsOnTheDiskAndIsReadBack() throws {
    let disk = try ServedDisk()
    let client = try RawClient(disk.socketPath)
    try client.enter()
    let data = (0..<70_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    #expect(try client.ask(1, 12_345, 70_000, data: data).error == 0)
    #expect(try client.ask(0, 12_345, 70_000).data == data)
    #expect(try client.ask(1, 0, 3, flags: 1, data: [1, 2, 3]).error == 0)
    #expect(try client.ask(3).error == 0)
    #expect(try client.ask(6, 12_345, 4096, flags: 2).error == 0)
    #expect(try client.ask(4, 20_000, 4096).error == 0)
    #expect(try client.ask(5, 0, 4096).error == 0)
    let statistics = try disk.stop()
    let image = try disk.image()
    #expect(image[0..<3] == [1, 2, 3] && image[12_345..<16_441].allSatisfy { $0 == 0 })
    #expect(image[16_441..<20_000] == data[4096..<7655] && image[20_000..<24_096].allSatisfy { $0 == 0 })
    #expect(disk.entries.map(\.request.operation) == [.write, .read, .write, .flush, .writeZeroes, .discard])
    #expect(disk.entries.map(\.request.sequence) == [0, 1, 2, 3, 4, 5])
    #expect(disk.entries[0].data == data && disk.entries[2].request.isForcedUnitAccess)
    #expect(statistics.writes == 2 && statistics.reads == 1 && statistics.bytesWritten == 70_003)
  }

  @Test func aDeniedRequestFailsAndDoesNotReachTheDisk() throws {
    let disk = try ServedDisk { request, _ in request.operation != .flush && request.offset == 4096 ? .deny : .allow }
    let client = try RawClient(disk.socketPath)
    try client.enter()
    #expect(try client.ask(1, 4096, 2, data: [1, 1]).error == 5)
    #expect(try client.ask(1, 8192, 2, data: [2, 2]).error == 0)
    #expect(try client.ask(1, 4096, 2, flags: 1, data: [3, 3]).error == 5)
    #expect(try client.ask(6, 4096, 2).error == 5)
    #expect(try client.ask(0, 4096, 2).error == 5)
    #expect(try disk.stop().denied == 4)
    let image = try disk.image()
    #expect(image[4096..<4098] == [0, 0] && image[8192..<8194] == [2, 2])
  }

  struct BadRequest: Sendable {
    var type: UInt16
    var offset: UInt64 = 0
    var length: UInt32 = 0
    var flags: UInt16 = 0
    var error: UInt32
  }

  static let size: UInt64 = 1 << 20
  static let badRequests = [
    BadRequest(type: 0, offset: size, length: 1, error: 22), BadRequest(type: 0, error: 22),
    BadRequest(type: 0, offset: .max, length: 4096, error: 22),
    BadRequest(type: 0, length: (32 << 20) + 1, error: 75), BadRequest(type: 1, offset: size - 1, length: 2, error: 28),
    BadRequest(type: 4, length: .max, error: 28), BadRequest(type: 6, offset: .max - 1, length: .max, error: 28),
    BadRequest(type: 7, length: 4096, error: 22), BadRequest(type: 8, length: 1, error: 22),
    BadRequest(type: 0, length: 1, flags: 0x8000, error: 22), BadRequest(type: 3, flags: 2, error: 22),
    BadRequest(type: 65_535, error: 22), BadRequest(type: 5, offset: size, length: 1, error: 22),
  ]

  @Test(arguments: badRequests) func whatNoDiskWouldTakeIsAnsweredAndChangesNothing(bad: BadRequest) throws {
    let disk = try ServedDisk()
    let client = try RawClient(disk.socketPath)
    try client.enter()
    let data = bad.type == 1 ? [UInt8](repeating: 9, count: Int(bad.length)) : []
    #expect(try client.ask(bad.type, bad.offset, bad.length, flags: bad.flags, data: data).error == bad.error)
    #expect(try client.ask(0, 0, 512).error == 0, "and the connection goes on")
    #expect(try disk.stop().refusedRequests == 1)
    let image = try disk.image()
    #expect(disk.entries.count == 1 && image.allSatisfy { $0 == 0 })
  }

  /// The two fields are reserved in a flush: no range is checked there, and none may be made of them beside requests in flight.
  @Test func whatAFlushSaysOfAPlaceMeansNothing() throws {
    let disk = try ServedDisk()
    let client = try RawClient(disk.socketPath)
    try client.enter()
    var batch: [UInt8] = []
    for round in 0..<100 {
      batch += RawClient.request(1, UInt64(round) * 512, 512, flags: 1) + [UInt8](repeating: 7, count: 512)
      batch += RawClient.request(3, .max, .max)
    }
    let sender = Thread { [batch] in try? client.send(batch) }
    sender.start()
    for _ in 0..<200 {
      let answer = try client.receive(16)
      try #require(answer.count == 16 && answer[4..<8] == [0, 0, 0, 0])
    }
    _ = try disk.stop()
    let flushes = disk.entries.filter { $0.request.operation == .flush }
    #expect(flushes.count == 100 && flushes.allSatisfy { $0.request.offset == 0 && $0.request.length == 0 })
    #expect(try disk.image()[..<51_200].allSatisfy { $0 == 7 })
  }

  @Test func aDiskThatIsOnlyReadRefusesChanges() throws {
    let disk = try ServedDisk(isReadOnly: true)
    let client = try RawClient(disk.socketPath)
    try client.enter()
    for type: UInt16 in [1, 4, 6] {
      #expect(try client.ask(type, 0, 4, data: type == 1 ? [1, 2, 3, 4] : []).error == 1)
    }
    #expect(try client.ask(0, 0, 4).data == [0, 0, 0, 0])
    _ = try disk.stop()
  }

  @Test func overlappingRequestsReachTheDiskInTheOrderOfTheirVerdicts() throws {
    let disk = try ServedDisk()
    let client = try RawClient(disk.socketPath)
    try client.enter()
    // Durable writes go through workers, plain ones do not: without the order, the last would often lose.
    var batch: [UInt8] = []
    for round in 0..<200 {
      let block = [UInt8](repeating: UInt8(round), count: 512)
      batch += RawClient.request(1, 1024, 512, flags: UInt16(round % 2), cookie: UInt64(round)) + block
      if round % 8 == 7 { batch += RawClient.request(6, 1024, 512, cookie: 1000) }
      batch += RawClient.request(1, 1024, 512, flags: 1, cookie: UInt64(round)) + block
      batch += RawClient.request(0, 1024, 512, cookie: UInt64(2000 + round))
    }
    let sender = Thread { [batch] in try? client.send(batch) }
    sender.start()
    var reads = 0
    var answers = 0
    while answers < 200 * 3 + 25 {
      let header = try client.receive(16)
      try #require(header.count == 16 && header[4..<8] == [0, 0, 0, 0])
      let cookie = header[8...].reduce(0) { $0 << 8 | UInt64($1) }
      if cookie >= 2000 {
        #expect(try client.receive(512).allSatisfy { $0 == UInt8(cookie - 2000) }, "read \(cookie)")
        reads += 1
      }
      answers += 1
    }
    #expect(reads == 200)
    _ = try disk.stop()
    #expect(try disk.image()[1024..<1536].allSatisfy { $0 == 199 })
  }

  @Test(arguments: [4095, 131_100, 500_000])
  func largeWritesThatComeOneBehindTheOtherArriveWholeHoweverTheyAreCut(part: Int) throws {
    // Of 300,000 bytes the second part is refused, so the first is on the disk.
    let refused = 300_000 - Self.part
    let disk = try ServedDisk(byteCount: 4 << 20) { request, _ in request.length == refused ? .deny : .allow }
    let client = try RawClient(disk.socketPath)
    try client.enter()
    var expected = [UInt8](repeating: 0, count: 4 << 20)
    var batch: [UInt8] = []
    // Around the size from which on writes count as large, and the sizes of blocks of memory; what follows a large one is small, too.
    let lengths = [1, 512, 16_384, 16_385, 131_072, 131_072, 131_072, 300_000, 4096, 262_144, 1 << 20, 1 << 20, 20_000]
    for (index, length) in lengths.enumerated() {
      let offset = (index * 777_777) % (expected.count - length)
      let data = (0..<length).map { UInt8(truncatingIfNeeded: ($0 &+ index) &* 31 >> 3) }
      let written = length == 300_000 ? Self.part : length
      expected.replaceSubrange(offset..<offset + written, with: data[..<written])
      batch += RawClient.request(1, UInt64(offset), UInt32(length), cookie: UInt64(index)) + data
    }
    let sender = Thread { [batch] in
      var start = 0
      while start < batch.count, (try? client.send(Array(batch[start..<min(batch.count, start + part)]))) != nil {
        start += part
      }
    }
    sender.start()
    for index in lengths.indices {
      let answer = try client.receive(16)
      #expect(Array(answer[8...]) == (0..<8).map { $0 == 7 ? UInt8(index) : 0 })
      #expect(Array(answer[4..<8]) == [0, 0, 0, lengths[index] == 300_000 ? 5 : 0])
    }
    #expect(try disk.stop().writes == UInt64(lengths.count))
    let image = try disk.image()
    #expect(image == expected)
  }

  /// The size of the parts in which larger writes are taken, in bytes.
  static let part = 256 << 10

  @Test(arguments: [0, 1] as [UInt16]) func aLargeWriteIsJudgedInPartsAndAnsweredOnce(flags: UInt16) throws {
    let disk = try ServedDisk(byteCount: 4 << 20)
    let client = try RawClient(disk.socketPath)
    try client.enter()
    let lengths = [Self.part, Self.part + 1, 2 * Self.part, 3 * Self.part + 77]
    for (index, length) in lengths.enumerated() {
      let data = (0..<length).map { UInt8(truncatingIfNeeded: ($0 &+ index) &* 31 >> 3) }
      #expect(try client.ask(1, 4096, UInt32(length), flags: flags, data: data).error == 0)
      let seen = disk.observer.entries.withLock { entries in
        defer { entries.removeAll() }
        return entries.filter { $0.request.operation == .write }
      }
      #expect(seen.count == (length + Self.part - 1) / Self.part && seen.flatMap(\.data) == data)
      var position: UInt64 = 4096
      for entry in seen {
        #expect(entry.request.offset == position && entry.request.length == UInt64(entry.data.count))
        #expect(entry.request.isForcedUnitAccess == (flags == 1) && entry.data.count <= Self.part)
        position += entry.request.length
      }
      #expect(try client.ask(0, 4096, UInt32(length)).data == data)
    }
    let statistics = try disk.stop()
    #expect(statistics.writes == 4 && statistics.bytesWritten == UInt64(lengths.reduce(0, +)))
  }

  @Test(arguments: [0, 1] as [UInt16]) func behindARefusedPartNothingOfAWriteIsDone(flags: UInt16) throws {
    let disk = try ServedDisk(byteCount: 4 << 20) { request, _ in
      request.operation == .write && request.offset == UInt64(Self.part) ? .deny : .allow
    }
    let client = try RawClient(disk.socketPath)
    try client.enter()
    let data = [UInt8](repeating: 7, count: 4 * Self.part + 5)
    #expect(try client.ask(1, 0, UInt32(data.count), flags: flags, data: data).error == 5)
    #expect(disk.entries.map(\.request.offset) == [0, UInt64(Self.part)], "nobody is asked about what is skipped")
    #expect(try client.ask(1, 3 << 20, 3, data: [1, 2, 3]).error == 0, "the next request is understood")
    let statistics = try disk.stop()
    #expect(statistics.denied == 1 && statistics.writes == 2 && statistics.refusedRequests == 0)
    let image = try disk.image()
    #expect(image[..<Self.part].allSatisfy { $0 == 7 } && image[Self.part..<3 << 20].allSatisfy { $0 == 0 })
    #expect(image[(3 << 20)...].prefix(4) == [1, 2, 3, 0])
  }

  @Test(arguments: [(1 << 20) - 1, .max, .max - 300_000] as [UInt64])
  func aLargeWriteThatEndsBehindTheDiskIsSkippedWhole(offset: UInt64) throws {
    let disk = try ServedDisk()
    let client = try RawClient(disk.socketPath)
    try client.enter()
    let data = [UInt8](repeating: 7, count: 3 * Self.part + 1)
    #expect(try client.ask(1, offset, UInt32(data.count), data: data).error == 28)
    #expect(try client.ask(1, (1 << 20) - UInt64(data.count) + 1, UInt32(data.count), data: data).error == 28)
    #expect(try client.ask(0, 0, 512).error == 0, "and the connection goes on")
    #expect(try disk.stop().refusedRequests == 2)
    #expect(disk.entries.count == 1)
    let image = try disk.image()
    #expect(image.allSatisfy { $0 == 0 })
  }

  @Test func aClientThatLeavesInTheMiddleLeavesTheOthersAlone() throws {
    let disk = try ServedDisk(byteCount: 64 << 20)
    for cut in [1, 27, 28, 29, 4000] {
      let client = try RawClient(disk.socketPath)
      try client.enter()
      let bytes = RawClient.request(1, 0, 4096) + [UInt8](repeating: 0xEE, count: 4096)
      try client.send(Array(bytes[..<cut]))
    }
    // Leaves with many answers on their way.
    do {
      let client = try RawClient(disk.socketPath)
      try client.enter()
      for index in 0..<64 { try client.send(RawClient.request(0, UInt64(index) << 20, 1 << 20)) }
      for _ in 0..<64 { try client.send(RawClient.request(3)) }
    }
    let client = try RawClient(disk.socketPath)
    try client.enter()
    #expect(try client.ask(0, 0, 4096).data.allSatisfy { $0 == 0 }, "half a write is none")
    _ = try disk.stop()
  }

  /// The signal comes also when a part was sent before the client left: then sendfile(2) returns no error. An embedding
  /// program would be ended by it, and so would these tests. It takes a client that leaves between two pieces, so many do.
  @Test func aClientThatLeavesWithinAFileRaisesNoSignal() throws {
    let folder = try TemporaryFolder()
    let byteCount = 1 << 20
    try folder.write([UInt8](repeating: 1, count: byteCount), to: "file")
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    let file = unsafe open(folder.path + "/file", O_RDONLY)
    try #require(file >= 0)
    defer { close(file) }
    for round in 0..<500 {
      var ends: [CInt] = [0, 0]
      // SAFETY: socketpair(2) writes two numbers.
      let made = unsafe socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends)
      try #require(made == 0)
      let (sender, reader) = (ends[0], ends[1])
      let closed = DispatchSemaphore(value: 0)
      Thread {
        var rest = (round + 1) * byteCount / 1000
        var buffer = [UInt8](repeating: 0, count: 1 << 12)
        while rest > 0 {
          // SAFETY: recv(2) writes into the array, at most its length.
          let count = unsafe buffer.withUnsafeMutableBytes { unsafe recv(reader, $0.baseAddress, $0.count, 0) }
          if count <= 0 { break }
          rest -= count
        }
        // Not only closed: a process that another test is starting has a copy for an instant.
        shutdown(reader, CInt(SHUT_RDWR))
        close(reader)
        closed.signal()
      }.start()
      #expect(vmfence_send_file(sender, file, 0, byteCount) < byteCount)
      closed.wait()
      let again = vmfence_send_file(sender, file, 0, byteCount)
      #expect(again == -1 && (errno == EPIPE || errno == ECONNRESET))
      close(sender)
    }
  }

  @Test func aClientThatDoesNotReadDoesNotStopTheOthers() throws {
    let disk = try ServedDisk(byteCount: 64 << 20)
    let deaf = try RawClient(disk.socketPath)
    try deaf.enter()
    for index in 0..<200 { try deaf.send(RawClient.request(0, UInt64(index % 32) << 20, 1 << 20)) }
    let half = try RawClient(disk.socketPath)
    try half.enter()
    try half.send(RawClient.request(1, 0, 1 << 20) + [1, 2, 3])
    let client = try RawClient(disk.socketPath)
    try client.enter()
    for _ in 0..<10 { #expect(try client.ask(1, 0, 4, data: [1, 2, 3, 4]).error == 0) }
    // What it did not read it gets when it does.
    var total = 0
    while total < 200 * ((1 << 20) + 16) {
      let part = try deaf.receive(min(1 << 20, 200 * ((1 << 20) + 16) - total))
      try #require(!part.isEmpty)
      total += part.count
    }
    _ = try disk.stop()
  }

  /// Large reads of what the page cache has are sent without a copy, and those that the client does not take in time with one.
  @Test func aSlowClientGetsTheSameAsAFastOne() throws {
    let size = 256 << 10
    let disk = try ServedDisk(byteCount: 16 << 20)
    let slow = try RawClient(disk.socketPath)
    try slow.enter()
    let pattern = (0..<size).map { UInt8(truncatingIfNeeded: ($0 &* 2_654_435_761) >> 11) }
    let content = (0..<64).map { Array(pattern[$0...] + pattern[..<$0]) }
    for part in 0..<64 { #expect(try slow.ask(1, UInt64(part * size), UInt32(size), data: content[part]).error == 0) }
    // 16 MiB of answers, which no socket holds; none is read before all are asked for, and a second client was served.
    for part in 0..<64 { try slow.send(RawClient.request(0, UInt64(part * size), UInt32(size), cookie: UInt64(part))) }
    let fast = try RawClient(disk.socketPath)
    try fast.enter()
    for part in 0..<64 { #expect(try fast.ask(0, UInt64(part * size), UInt32(size)).data == content[part]) }
    for part in 0..<64 {
      #expect(
        try slow.receive(16) == RawClient.big(0x6744_6698, 4) + RawClient.big(0, 4) + RawClient.big(UInt64(part), 8))
      #expect(try slow.receive(size) == content[part], "part \(part)")
    }
    // One that leaves with answers under way costs the others nothing, and raises no signal.
    do {
      let leaving = try RawClient(disk.socketPath)
      try leaving.enter()
      for part in 0..<64 { try leaving.send(RawClient.request(0, UInt64(part * size), UInt32(size))) }
    }
    #expect(try fast.ask(0, 0, UInt32(size)).data == content[0])
    _ = try disk.stop()
  }

  @Test func moreClientsThanAllowedAreHungUpOn() throws {
    let disk = try ServedDisk(clientLimit: 2)
    let first = try RawClient(disk.socketPath)
    let second = try RawClient(disk.socketPath)
    try first.enter()
    try second.enter()
    #expect(try RawClient(disk.socketPath).isHungUp())
    #expect(try second.ask(0, 0, 1).error == 0)
    #expect(try disk.stop().refusedClients == 1)
  }

  @Test func aClientThatDoesNotFinishItsHandshakeIsHungUpOn() throws {
    let disk = try ServedDisk(handshakeLimit: .milliseconds(50))
    let silent = try RawClient(disk.socketPath)
    let slow = try RawClient(disk.socketPath)
    // On a busy machine its time may be over before.
    try? slow.send(RawClient.big(3, 4) + Array("IHAVE".utf8))
    #expect(try silent.isHungUp() && slow.isHungUp())
    #expect(try disk.stop().refusedClients == 2)
  }

  @Test func whatIsNoRequestEndsTheConnection() throws {
    let disk = try ServedDisk()
    for bytes in [
      [UInt8](repeating: 0, count: 28), RawClient.request(1, 0, .max), RawClient.request(1, 0, (32 << 20) + 1),
    ] {
      let client = try RawClient(disk.socketPath)
      try client.enter()
      try client.send(bytes)
      #expect(try client.isHungUp())
    }
    #expect(try disk.stop().protocolErrors == 3)
  }

  @Test func aFailureOfTheDiskIsToldToTheObserver() throws {
    let disk = try ServedDisk()
    let client = try RawClient(disk.socketPath)
    try client.enter()
    // A file that was cut short while it is served: reads beyond its end fail.
    try FileHandle(forWritingTo: URL(fileURLWithPath: disk.imagePath)).truncate(atOffset: 4096)
    #expect(try client.ask(0, 8192, 512).error == 5)
    #expect(try client.ask(0, 0, 512).error == 0)
    #expect(try disk.stop().diskFailures == 1)
  }

  @Test func aSecondServerOfTheSameDiskOrSocketIsRefused() throws {
    let disk = try ServedDisk()
    do throws(BlockSourceError) {
      _ = try DiskFile(path: disk.imagePath)
      Issue.record("the disk was not locked")
    } catch { #expect(error.code == .inUse && !error.remedy.isEmpty) }
    let other = try DiskFile(path: disk.imagePath, isReadOnly: true)
    do throws(BlockSourceError) {
      _ = try NBDServer(disk: other, listener: NBDListener(path: disk.socketPath), clock: SystemClock())
      Issue.record("the socket was taken")
    } catch { #expect(error.code == .inUse) }
    _ = try disk.stop()
    // A socket that nobody listens on any more is replaced.
    _ = try NBDServer(disk: other, listener: NBDListener(path: disk.socketPath), clock: SystemClock())
  }

  /// As a process has one that is being started: until it is another program.
  @Test func aListenerThatEndedIsNotInTheWayThoughThereIsACopyOfItsDescriptor() throws {
    let folder = try TemporaryFolder()
    try folder.write([UInt8](repeating: 0, count: 4096), to: "disk.img")
    let path = folder.path + "/sock"
    var copies: [CInt] = []
    defer { copies.forEach { close($0) } }
    do {
      let unused = try NBDListener(path: path)
      copies.append(dup(unused.descriptor))
    }
    let listener = try NBDListener(path: path)
    copies.append(dup(listener.descriptor))
    var server = try NBDServer(
      disk: DiskFile(path: folder.path + "/disk.img"), listener: listener, clock: SystemClock())
    server.stopper.stop()
    var observer = AskingObserver(shared: SharedObserver { _, _ in .allow })
    while try !server.deliver(limit: 1, until: nil, to: &observer).isAtEnd {}
    _ = try NBDListener(path: path)
  }
}

/// A live source that ends: one client that sends a fixed list of requests, each after the answer to the one before.
private final class ScriptedClient: TimeSource, Sendable {
  let step = Atomic<Int64>(0)
  var now: Timestamp { Timestamp(nanoseconds: step.load(ordering: .acquiring) * 1_000_000) }

  func run(_ path: String) throws {
    let client = try RawClient(path)
    try client.enter()
    let script: [(UInt16, UInt64, UInt32, UInt16)] = [
      (1, 0, 512, 0), (0, 0, 512, 0), (1, 512, 3, 1), (3, 0, 0, 0), (4, 4096, 4096, 0), (6, 8192, 4096, 0),
      (0, 1, 1, 0),
    ]
    for (type, offset, length, flags) in script {
      step.add(1, ordering: .releasing)
      _ = try client.ask(
        type, offset, length, flags: flags, data: type == 1 ? .init(repeating: 7, count: Int(length)) : [])
    }
    // Time goes on, so that a deadline behind the last request passes.
    step.add(1000, ordering: .releasing)
    try client.send(RawClient.request(2))
  }
}

@Suite struct NBDConformanceTests {
  @Test func theServerIsABlockSource() throws {
    let folder = try TemporaryFolder()
    var count = 0
    try BlockSourceConformance(expectedRequests: 7).check {
      count += 1
      let image = folder.path + "/\(count).img"
      try folder.write([UInt8](repeating: 0, count: 65_536), to: "\(count).img")
      let client = ScriptedClient()
      let socket = folder.path + "/\(count).sock"
      let server = try NBDServer(
        disk: DiskFile(path: image), listener: NBDListener(path: socket),
        configuration: .init(handshakeLimit: waitLimit, endsWithLastClient: true), clock: client)
      Thread { try? client.run(socket) }.start()
      return server
    }
  }

  @Test func aMonitorOverAServedDiskIsABlockObserver() throws {
    let folder = try TemporaryFolder()
    try folder.write([UInt8](repeating: 0, count: 1 << 20), to: "disk.img")
    let server = try NBDServer(
      disk: DiskFile(path: folder.path + "/disk.img"), listener: NBDListener(path: folder.path + "/sock"),
      clock: SystemClock())
    let policy = try ProtectionPolicy([.init("/etc/**", action: .denyData)])
    BlockObserverConformance(diskSize: 1 << 20).check {
      IntegrityMonitor(
        server.reader,
        configuration: .init(
          incarnation: Incarnation(uuid: DomainUUID(high: 1, low: 1), domainID: DomainID(1)), disk: "xvda",
          policy: policy), at: .zero)
    }
  }
}
