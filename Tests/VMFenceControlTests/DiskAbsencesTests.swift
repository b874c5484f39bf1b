import Testing
import VMFenceControl
import VMFenceCore

@Suite("Disks that nobody watches")
struct DiskAbsencesTests {
  private static func disk(_ number: UInt32, isAnswered: Bool) -> DiskAbsences.Disk {
    DiskAbsences.Disk(
      control: "/run/web.control", domain: Incarnation(uuid: DomainUUID(high: 1, low: 2), domainID: DomainID(number)),
      domainName: "we\u{1B}b", isAnswered: isAnswered)
  }

  @Test("are told once when they have been so for a while, and when that is over")
  func told() {
    var absences = DiskAbsences()
    let away = Self.disk(1, isAnswered: false)
    for second in 0..<30 { #expect(absences.look([away], at: Timestamp(seconds: Int64(second))).isEmpty) }
    let news = absences.look([away], at: Timestamp(seconds: 30))
    #expect(news.map(\.kind) == [.diskUnwatched] && news[0].severity == 1 && news[0].incarnation == away.domain)
    #expect(absences.problems == news.map(\.message) && !news[0].message.contains("\u{1B}"))
    #expect(absences.look([away], at: Timestamp(seconds: 600)).isEmpty && absences.problems.count == 1)
    let back = absences.look([Self.disk(1, isAnswered: true)], at: Timestamp(seconds: 601))
    #expect(back.map(\.kind) == [.diskWatched] && absences.problems.isEmpty)
    #expect(absences.look([Self.disk(1, isAnswered: true)], at: Timestamp(seconds: 602)).isEmpty)
    #expect(absences.look([away], at: Timestamp(seconds: 603)).isEmpty, "another time begins")
  }

  @Test("not those of guests that are not there, nor of one that came meanwhile, nor what is soon over")
  func notTold() {
    var absences = DiskAbsences()
    #expect(absences.look([Self.disk(1, isAnswered: false)], at: .zero).isEmpty)
    #expect(absences.look([Self.disk(2, isAnswered: false)], at: Timestamp(seconds: 31)).isEmpty, "it was started anew")
    #expect(absences.look([Self.disk(2, isAnswered: true)], at: Timestamp(seconds: 60)).isEmpty)
    #expect(absences.look([Self.disk(2, isAnswered: false)], at: Timestamp(seconds: 62)).isEmpty)
    #expect(absences.look([], at: Timestamp(seconds: 100)).isEmpty && absences.problems.isEmpty)
    #expect(absences.look([Self.disk(2, isAnswered: false)], at: Timestamp(seconds: 101)).isEmpty)
  }
}
