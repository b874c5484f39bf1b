import Foundation
import Synchronization
import Testing
import VMFenceCore

@testable import VMFenceChannel

/// What a guest may do to its page, and what it costs Dom0: that channel.
@Suite("A hostile guest")
struct HostileGuestTests {
  private static let epoch: UInt64 = 0x1234

  private func open() throws -> (HostChannel, ForgingGuest) {
    var pair = try Pair(epoch: Self.epoch)
    _ = pair.settle()
    return (pair.host, ForgingGuest(pair.page, epoch: Self.epoch))
  }

  private func expectClosed(
    _ code: ChannelViolation.Code, _ what: String, sourceLocation: SourceLocation = #_sourceLocation,
    _ attack: (inout ForgingGuest) -> Void
  ) throws {
    var (host, guest) = try open()
    attack(&guest)
    let events = host.step(at: start)
    guard case .closed(let violation)? = events.last else {
      Issue.record("\(what): \(events)", sourceLocation: sourceLocation)
      return
    }
    #expect(violation.code == code, "\(what): \(violation)", sourceLocation: sourceLocation)
    #expect(host.state == .closed && host.step(at: start) == [], "nothing more is read", sourceLocation: sourceLocation)
    // The guest is told, in the page.
    #expect(guest.page.load(ChannelLayout.Host.epoch) == 0, sourceLocation: sourceLocation)
    #expect(guest.page.load(ChannelLayout.Host.state) >> 32 == UInt64(code.rawValue), sourceLocation: sourceLocation)
  }

  @Test("indices that cannot be close the channel")
  func indices() throws {
    for value: UInt64 in [1, 7, 8, 24, 1921, 1928, 4096, 1 << 32, 1 << 63, .max, .max - 7] {
      try expectClosed(.index, "tail \(value)") { $0.page.release(value, at: Lane.up.tail) }
    }
    try expectClosed(.index, "going back") { guest in
      guest.send(MessageType.inForce, InForceReport(policy: nil).encoded)
      guest.page.release(guest.tail + 2000, at: Lane.up.tail)
    }
    for value: UInt64 in [1, 8, 1 << 40, .max] {
      var (host, guest) = try open()
      host.query()
      guest.page.release(value, at: Lane.down.head)
      guard case .closed(let violation)? = host.step(at: start).last else {
        Issue.record("head \(value)")
        continue
      }
      #expect(violation.code == .index)
    }
  }

  @Test("every field of a header, changed, closes the channel")
  func headers() throws {
    let report = InForceReport(policy: nil).encoded
    for position in 0..<FrameHeader.byteCount {
      for value in [UInt8(0), 1, 0x7F, 0xFF] {
        var (host, guest) = try open()
        var isChanged = false
        guest.send(MessageType.inForce, report) { bytes in
          isChanged = bytes[position] != value
          bytes[position] = value
        }
        guard isChanged else { continue }
        guard case .closed? = host.step(at: start).last else {
          Issue.record("byte \(position) = \(value)")
          continue
        }
      }
    }
  }

  @Test("with a right checksum, wrong lengths, sessions, orders, types and paddings close it too")
  func forged() throws {
    let report = InForceReport(policy: nil).encoded
    try expectClosed(.order, "another session") { guest in
      guest.epoch += 1
      guest.send(MessageType.inForce, report)
    }
    try expectClosed(.order, "a message that was skipped") { guest in
      guest.sequence += 1
      guest.send(MessageType.inForce, report)
    }
    try expectClosed(.order, "a message that came already") { guest in
      guest.send(MessageType.inForce, report)
      guest.sequence -= 1
      guest.send(MessageType.inForce, report)
    }
    try expectClosed(.message, "an unknown type") { $0.send(99, []) }
    try expectClosed(.message, "a type of Dom0's") { $0.send(MessageType.policy, []) }
    try expectClosed(.checksum, "padding") { guest in
      guest.send(MessageType.inForce, report) { bytes in bytes[bytes.count - 1] = 1 }
    }
    try expectClosed(.index, "half a message") { guest in
      guest.send(MessageType.inForce, report) { bytes in bytes.removeLast(8) }
    }
    try expectClosed(.header, "longer than any") { guest in
      guest.send(MessageType.inForce, report) { bytes in bytes.replaceSubrange(8..<12, with: [0xFF, 0xFF, 0xFF, 0xFF]) }
    }
  }

  @Test("every truncation and every changed byte of every message is taken or closes the channel")
  func payloads() throws {
    let acknowledgement = PolicyAcknowledgement(
      version: 1, digest: [UInt8](repeating: 1, count: 32), status: .failed, reason: "no kernel")
    let part = DeclarationPart(generation: 1, index: 0, count: 1, item: DeclarationItem(kind: .path, text: "/etc/**"))
    let report = InForceReport(policy: .init(version: 1, digest: [UInt8](repeating: 2, count: 32)))
    let messages: [(UInt8, [UInt8])] = [
      (MessageType.acknowledgement, acknowledgement.encoded), (MessageType.inForce, report.encoded),
      (MessageType.declaration, part.encoded),
    ]
    for (type, payload) in messages {
      var tries = (0..<payload.count).map { Array(payload[..<$0]) } + [payload + [0]]
      for position in payload.indices {
        for value in [UInt8(0), 1, 0x1B, 0x80, 0xFF] {
          var changed = payload
          changed[position] = value
          tries.append(changed)
        }
      }
      for payload in tries {
        var (host, guest) = try open()
        guest.send(type, payload)
        let events = host.step(at: start)
        #expect(events.count <= 1)
        if case .closed? = events.first { continue }
        // The first of several items is no declaration yet.
        #expect(events.count == 1 || type == MessageType.declaration)
        #expect(type != MessageType.acknowledgement, "nothing was sent that could be answered")
      }
    }
  }

  @Test("an acknowledgement of what was never sent closes it")
  func falseAcknowledgement() throws {
    var pair = try Pair.open()
    let first = try policy(1)
    pair.host.offer(first)
    #expect(pair.settle().host.count == 1)
    pair.guest.acknowledge(
      PolicyAcknowledgement(version: 2, digest: first.digest, status: .applied))
    guard case .closed(let violation)? = pair.settle().host.last else {
      Issue.record("not closed")
      return
    }
    #expect(violation.code == .unexpected)
  }

  @Test("a message of an optional type is passed over and counted")
  func optional() throws {
    var (host, guest) = try open()
    guest.send(200, [1, 2, 3])
    #expect(host.step(at: start) == [] && host.passedOver == 1 && host.state == .open)
  }

  @Test("declarations out of order, without end or with two service types close it")
  func declarations() throws {
    func part(_ generation: UInt32, _ index: Int, _ count: Int, _ kind: DeclarationItem.Kind, _ text: String) -> [UInt8]
    {
      DeclarationPart(generation: generation, index: index, count: count, item: DeclarationItem(kind: kind, text: text))
        .encoded
    }
    let wrong: [[[UInt8]]] = [
      [part(1, 1, 2, .path, "/a")], [part(1, 0, 2, .path, "/a"), part(1, 0, 2, .path, "/b")],
      [part(1, 0, 2, .path, "/a"), part(2, 1, 2, .path, "/b")],
      [part(1, 0, 2, .path, "/a"), part(1, 1, 3, .path, "/b")],
      [part(1, 0, 2, .service, "a"), part(1, 1, 2, .service, "b")],
      [part(1, 0, 2, .path, "/a"), part(1, 1, 2, .path, "/a")],
      [part(1, 0, 1, .path, "/a"), part(1, 0, 1, .path, "/a")], [part(0, 0, 1, .path, "/a")],
      [part(1, 0, 2, .nothing, ""), part(1, 1, 2, .path, "/a")],
    ]
    for (index, parts) in wrong.enumerated() {
      var (host, guest) = try open()
      for part in parts { guest.send(MessageType.declaration, part) }
      guard case .closed? = host.step(at: start).last else {
        Issue.record("\(index)")
        continue
      }
    }
  }

  /// Two threads: Dom0's side works while the guest's rewrites every word that is the guest's, and those that are not.
  @Test("a guest that rewrites everything between any two reads costs its channel, and nothing else", arguments: 0..<4)
  func flipping(kind: Int) throws {
    let page = try SharedPage.anonymous()
    let isDone = Atomic(false)
    let endings = Mutex<[String: Int]>([:])
    let whole = try policy(1, measures: 30)
    let (started, ended) = (DispatchSemaphore(value: 0), DispatchSemaphore(value: 0))
    // A thread of its own: a task would wait for one that is free.
    let flipper = Thread {
      var random = SystemRandomNumberGenerator()
      var guest = GuestChannel(preparing: page, session: 5)
      var count = 0
      while !isDone.load(ordering: .relaxed) {
        count += 1
        switch kind {
        case 0:
          // An honest frontend whose lengths and indices change while they are read.
          _ = guest.step()
          guest.report(InForceReport(policy: nil))
          let word = [Lane.up.tail, Lane.down.head, Lane.up.offset + 8][count % 3]
          page.store(page.load(word) &+ UInt64.random(in: 0...64, using: &random), at: word)
        case 1:
          page.store(UInt64.random(in: 0...(.max), using: &random), at: Int.random(in: 0..<512, using: &random) * 8)
        case 2:
          // The same, but the session stays what it was, and indices are often possible.
          let offset = Int.random(in: 3..<512, using: &random) * 8
          page.store(UInt64.random(in: 0..<240, using: &random) * 8, at: offset)
        default:
          guest = GuestChannel(preparing: page, session: UInt64.random(in: 0..<4, using: &random))
          _ = guest.step()
        }
        if count == 1 { started.signal() }
      }
      ended.signal()
    }
    flipper.start()
    started.wait()
    var epoch: UInt64 = 0
    for round in 0..<400 {
      epoch += 1
      if round % 2 == 0 { _ = GuestChannel(preparing: page, session: 5) }
      let now = start + .seconds(Int64(round))
      guard var host = try? HostChannel(page, epoch: epoch, at: now) else {
        endings.withLock { $0["refused", default: 0] += 1 }
        continue
      }
      host.offer(whole)
      host.query()
      for step in 0..<20 {
        let events = host.step(at: now + .milliseconds(Int64(step)))
        #expect(events.count <= HostChannel.messageBurst + 2)
        if host.state == .closed { break }
      }
      endings.withLock { $0["\(host.state)", default: 0] += 1 }
    }
    isDone.store(true, ordering: .relaxed)
    ended.wait()
    let seen = endings.withLock { $0 }
    #expect(seen.values.reduce(0, +) == 400)
  }

  @Test("the guest's own side takes whatever lies in the page, too")
  func guestSide() throws {
    var random = SystemRandomNumberGenerator()
    let page = try SharedPage.anonymous()
    var broken = 0
    for round in 0..<1_500 {
      var guest = GuestChannel(preparing: page, session: UInt64(round))
      for _ in 0..<4 {
        page.store(UInt64(round + 1), at: ChannelLayout.Host.epoch)
        page.store(1, at: ChannelLayout.Host.state)
        page.store(0, at: ChannelLayout.Host.tail)
        _ = guest.step()
        for _ in 0..<8 {
          page.store(UInt64.random(in: 0...(.max), using: &random), at: Int.random(in: 32..<272, using: &random) * 8)
        }
        page.store(UInt64.random(in: 0...300, using: &random) * 8, at: ChannelLayout.Host.tail)
        for case .broken in guest.step() { broken += 1 }
      }
    }
    #expect(broken > 1_000)
  }
}
