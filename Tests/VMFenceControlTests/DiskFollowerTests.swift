import Foundation
import Synchronization
import TestSupport
import Testing
import VMFenceControl
import VMFenceCore

/// A process of a disk that says what it is told to, to one follower after the other.
private final class SpokenDisk {
  let path = NSTemporaryDirectory() + "vmfence-\(UUID().uuidString.prefix(8)).sock"
  private let listener: Int32

  init() throws { listener = try LocalSocket.bind(at: path, .stream, mode: 0o600) }

  deinit {
    close(listener)
    try? FileManager.default.removeItem(atPath: path)
  }

  /// Waits for a follower, and for its request; says the lines, lets the test hear what it says, until that has a text in it, and hangs up.
  func say(_ text: String, _ body: (_ hear: (_ text: String) throws -> Void) throws -> Void = { _ in }) throws {
    try wait(for: listener)
    let descriptor = accept(listener, nil, nil)
    try #require(descriptor >= 0)
    defer { close(descriptor) }
    try wait(for: descriptor)
    var request = [UInt8](repeating: 0, count: 4096)
    // SAFETY: as many bytes as the array has.
    let count = unsafe request.withUnsafeMutableBytes { unsafe recv(descriptor, $0.baseAddress, $0.count, 0) }
    #expect(String(decoding: request.prefix(max(0, count)), as: UTF8.self).contains("\"follow\""))
    let bytes = Array(text.utf8)
    // SAFETY: the array's bytes are read.
    let sent = unsafe bytes.withUnsafeBytes {
      unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
    }
    #expect(sent == bytes.count)
    try body { text in
      var heard = ""
      while !heard.contains(text) {
        try wait(for: descriptor)
        // SAFETY: as many bytes as the array has.
        let count = unsafe request.withUnsafeMutableBytes { unsafe recv(descriptor, $0.baseAddress, $0.count, 0) }
        try #require(count > 0, "it said \(heard)")
        heard += String(decoding: request.prefix(count), as: UTF8.self)
      }
    }
  }

  private func wait(for descriptor: Int32) throws {
    var waited = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    // SAFETY: one structure, which lives across the call.
    let count = unsafe poll(&waited, 1, 60_000)
    try #require(count == 1)
  }
}

/// What a follower was told, in order.
private final class Notes: Sendable {
  private let texts = Mutex<[String]>([])

  func add(_ news: DiskFollower.News) {
    let text =
      switch news {
      case .status(let status): "status \(status.requests)"
      case .event(let event):
        event.event(of: DiskFollowerTests.domain, at: .zero).map { "event \($0.operation.rawValue) \($0.path)" }
          ?? "event that is not known"
      case .lost(let count): "lost \(count)"
      case .absent: "absent"
      }
    texts.withLock { $0.append(text) }
  }

  var all: [String] { texts.withLock(\.self) }

  /// Whether as many come, and are these.
  func begin(with expected: [String]) -> Bool {
    comesTrue { all.count >= expected.count } && all.starts(with: expected)
  }
}

@Suite("Following the process of a disk")
struct DiskFollowerTests {
  static let domain = Incarnation(uuid: DomainUUID(high: 1, low: 2), domainID: DomainID(3))

  private static let event = FileEvent(
    time: Timestamp(seconds: 7), incarnation: domain, disk: "xvda2", sequence: 9, operation: .replace,
    path: Array("/etc/".utf8) + [0xFF, 0x0A], oldPath: [0x2F, 0x00], inode: 12, offset: 0, length: 1 << 40,
    changes: [.init(attribute: "mode", old: "0644", new: "0666")], verdict: .hold, severity: 1, isAnnounced: true)

  private static let status = """
    {"ok":true,"result":{"expected":[],"requests":4,"denied":0,"limits":[]}}

    """

  private static func line(_ number: Int, _ event: DiskFileEvent) throws -> String {
    let text = String(decoding: try JSONEncoder().encode(event), as: UTF8.self)
    return "{\"ok\":true,\"number\":\(number),\"event\":\(text)}\n"
  }

  private static func line(_ event: DiskFileEvent) throws -> String {
    #"{"ok":true,"event":"# + String(decoding: try JSONEncoder().encode(event), as: UTF8.self) + "}\n"
  }

  @Test("an event survives the way, with names that are no text, and gets the domain and the time of the receiver")
  func events() throws {
    let sent = DiskFileEvent(Self.event, shiftedBy: .seconds(3))
    let received = try JSONDecoder().decode(DiskFileEvent.self, from: JSONEncoder().encode(sent))
    #expect(received == sent && received.time == 10_000_000_000)
    let other = Incarnation(uuid: DomainUUID(high: 4, low: 5), domainID: DomainID(6))
    var expected = Self.event
    (expected.incarnation, expected.time) = (other, Timestamp(seconds: 8))
    #expect(received.event(of: other, at: Timestamp(seconds: 8)) == expected)
    expected.oldPath = nil
    #expect(DiskFileEvent(expected, shiftedBy: .zero).event(of: other, at: expected.time) == expected)
  }

  @Test(
    "an event that says what is not known here is none",
    arguments: [
      ("\"replace\"", "\"explode\""), ("\"hold\"", "\"wait\""), ("\"severity\":1", "\"severity\":0"),
      ("\"L2V0Yy\\/\\/Cg==\"", "\"%\""),
    ])
  func unknown(_ change: (String, String)) throws {
    let text = String(decoding: try JSONEncoder().encode(DiskFileEvent(Self.event, shiftedBy: .zero)), as: UTF8.self)
    let changed = text.replacingOccurrences(of: change.0, with: change.1)
    try #require(changed != text, "\(text)")
    let event = try JSONDecoder().decode(DiskFileEvent.self, from: Data(changed.utf8))
    #expect(event.event(of: Self.domain, at: .zero) == nil)
  }

  @Test("tells how it stands, what changes and what was lost, in order; hangs up on nonsense, and comes again")
  func follows() throws {
    let disk = try SpokenDisk()
    let notes = Notes()
    let follower = try DiskFollower([disk.path]) { _, news in
      notes.add(news)
      return true
    }
    defer { follower.close() }
    let event = try Self.line(DiskFileEvent(Self.event, shiftedBy: .zero))
    try disk.say(Self.status + event + #"{"ok":true,"lost":5}"# + "\n" + event)
    let told = "event replace \(Self.event.path)"
    let first = ["status 4", told, "lost 5", told, "absent"]
    #expect(notes.begin(with: first), "\(notes.all)")
    try disk.say(Self.status + "{\"ok\":true}\n" + event)
    #expect(notes.begin(with: first + ["status 4", "absent"]), "\(notes.all)")
    try disk.say(Self.status)
    #expect(notes.begin(with: first + ["status 4", "absent", "status 4", "absent"]), "\(notes.all)")
  }

  @Test("an event for which there is no room is not acknowledged, holds up what comes behind it, and is said again")
  func waits() throws {
    let disk = try SpokenDisk()
    let (notes, hasRoom) = (Notes(), Flag())
    let events = (1...4).map { DiskFileEvent(Self.event, shiftedBy: .seconds($0)) }
    let follower = try DiskFollower([disk.path]) { _, news in
      if case .event(events[2]) = news, !hasRoom.isRaised { return false }
      notes.add(news)
      return true
    }
    defer { follower.close() }
    let told = "event replace \(Self.event.path)"
    let lines = try (1...4).map { try Self.line($0, events[$0 - 1]) }.joined()
    try disk.say(Self.status + lines + Self.status) { hear in
      try hear("\"number\":2")
      follower.resume()
      #expect(notes.begin(with: ["status 4", told, told]), "\(notes.all)")
      #expect(notes.all.count == 3, "there is no room yet")
      hasRoom.raise()
      follower.resume()
      try hear("\"number\":4")
    }
    #expect(notes.begin(with: ["status 4", told, told, told, told, "status 4", "absent"]), "\(notes.all)")
  }
}

/// Raised by one thread, seen by others.
private final class Flag: Sendable {
  private let state = Mutex(false)
  var isRaised: Bool { state.withLock { $0 } }
  func raise() { state.withLock { $0 = true } }
}
