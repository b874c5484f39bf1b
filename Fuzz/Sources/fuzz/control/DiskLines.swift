import Foundation

@testable import VMFenceControl
@testable import VMFenceCore

/// What a process of a disk says to the daemon that follows it, up to where the daemon's loop takes it and writes it down.
enum DiskLines {
  /// Smaller than the daemon's, so that it is reached.
  private static let limit = 1024
  private static let domain = Incarnation(uuid: DomainUUID(high: 1, low: 2), domainID: DomainID(3))
  private static let encoder = EVEEncoder(node: "fuzz", directory: DomainDirectory())

  /// One line, as it is to be understood.
  private struct Line: Decodable {
    var result: DiskControlStatus?
    var event: DiskFileEvent?
    var number: UInt64?
    var lost: UInt64?

    var isSomething: Bool { result != nil || event != nil || lost != nil }
  }

  /// What the lines come to that were sent up to now.
  private struct Expected: Equatable {
    var events: [DiskFileEvent] = []
    var lost: UInt64 = 0
    var status: DiskControlStatus?
    var statuses: UInt64 = 0
    var number: UInt64?

    init() {}

    /// - `limit`: so many events were taken, and the next one was not.
    init(_ sent: [UInt8], events limit: Int = .max) {
      for bytes in sent.lines.whole {
        guard let line = try? JSONDecoder().decode(Line.self, from: Data(bytes)), line.isSomething else { return }
        if let event = line.event {
          if events.count == limit { return }
          events.append(event)
        }
        if let count = line.lost { lost = count > .max - lost ? .max : lost + count }
        if let result = line.result { (status, statuses) = (result, statuses + 1) }
        number = line.number ?? number
      }
    }
  }

  /// - `refusing`: of each eight events, those for which there is no room the first time.
  static func follow(_ said: [UInt8], in piece: Int, refusing: UInt8) {
    let ends = Ends()
    guard let connection = DiskConnection(descriptor: ends.other) else { fatalError("it is not asked") }
    let inbox = DiskInbox()
    var (told, refused): (Expected, DiskFileEvent?) = (Expected(), nil)
    func take(_ news: DiskFollower.News) -> Bool {
      switch news {
      case .event(let event):
        if let refused { precondition(event == refused, "another event than the one that was refused") }
        if refused == nil, refusing >> UInt8(told.events.count % 8) & 1 != 0 {
          refused = event
          return false
        }
        refused = nil
        check(event)
        told.events.append(event)
      case .status(let status):
        check(status)
        told.statuses += 1
      case .lost: break
      case .absent: preconditionFailure("it is there")
      }
      precondition(refused == nil, "what came later is said before what was refused")
      precondition(inbox.add(news, of: "disk").isTaken, "there is room")
      return true
    }
    var (sent, asked, isThere): ([UInt8], [UInt8], Bool) = ([], ends.received(), true)
    var position = 0
    while isThere, position < said.count {
      let next = said[position..<min(position + piece, said.count)]
      position += next.count
      ends.send(next)
      sent += next
      repeat {
        isThere = connection.read(limit: limit, take)
        asked += ends.received()
        guard connection.isWaiting else { break }
        let number = Expected(sent, events: told.events.count).number
        precondition(acknowledged(asked) == number, "what was not taken is acknowledged")
      } while isThere
      precondition(!isThere || sent.lines.rest <= limit, "a line without end is kept")
    }
    let expected = Expected(sent)
    let news = inbox.take().first?.news
    precondition(news?.events ?? [] == expected.events, "other events")
    precondition(news?.lost ?? 0 == expected.lost, "another count of what was lost")
    precondition(news?.status ?? nil == expected.status, "another status")
    precondition(told.statuses == expected.statuses && news?.outdated ?? 0 == max(1, told.statuses) - 1)
    precondition(acknowledged(asked) == expected.number, "another event is acknowledged")
  }

  /// The number of the last event that is acknowledged in what the process is asked.
  private static func acknowledged(_ asked: [UInt8]) -> UInt64? {
    let requests = asked.lines.whole.map { try? JSONDecoder().decode(DiskControlRequest.self, from: Data($0)) }
    precondition(requests.first == DiskControlRequest(.follow, events: true), "it is asked for something else")
    precondition(requests.dropFirst().allSatisfy { $0?.verb == .acknowledge }, "it is asked for more")
    return requests.dropFirst().last??.number
  }

  private static func same<Value: Codable & Equatable>(_ value: Value) -> Bool {
    (try? JSONDecoder().decode(Value.self, from: JSONEncoder().encode(value))) == value
  }

  private static func check(_ status: DiskControlStatus) {
    precondition(same(status), "a status is not written as it was read")
    for window in status.expected { precondition(window.shownRemaining >= 0) }
    if let held = status.held { precondition(held.shownWaiting >= 0 && held.shownRemaining >= 0) }
  }

  private static func check(_ event: DiskFileEvent) {
    precondition(same(event), "an event is not written as it was read")
    guard let known = event.event(of: domain, at: Timestamp(nanoseconds: event.time)) else { return }
    precondition((1...255).contains(known.severity), "a severity that is none")
    precondition(
      DiskFileEvent(known, shiftedBy: .zero).event(of: domain, at: known.time) == known, "another event comes of it")
    let words =
      known.path.count + (known.oldPath?.count ?? 0)
      + known.changes.reduce(0) { $0 + $1.attribute.utf8.count + $1.old.utf8.count + $1.new.utf8.count }
    precondition(DiskInbox.cost(of: event) >= words + known.disk.utf8.count, "it takes more than it counts for")
    let line = encoder.encode(.file(known))
    checkShown(String(decoding: line, as: UTF8.self))
    precondition((try? JSONSerialization.jsonObject(with: Data(line))) is [String: Any], "a line that is no JSON")
  }
}
