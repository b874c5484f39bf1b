/// A point in time as people write it: the proleptic Gregorian calendar, UTC, without leap seconds (POSIX.1 §4.16).
struct CivilTime {
  var year: Int
  var month: Int
  var day: Int
  var hour: Int
  var minute: Int
  var second: Int
  /// Microseconds, rounded down.
  var microsecond: Int

  init(_ time: Timestamp) {
    let microseconds = time.nanoseconds.flooredDivision(by: 1_000)
    let seconds = microseconds.quotient.flooredDivision(by: 1_000_000)
    let days = seconds.quotient.flooredDivision(by: 86_400)
    microsecond = Int(seconds.remainder)
    hour = Int(days.remainder / 3_600)
    minute = Int(days.remainder / 60 % 60)
    second = Int(days.remainder % 60)

    // Days are counted from 0000-03-01, so that the leap day is the last of its year: 146,097 days are 400 years.
    let (era, dayOfEra) = (days.quotient + 719_468).flooredDivision(by: 146_097)
    let yearOfEra = (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let monthFromMarch = (5 * dayOfYear + 2) / 153
    day = Int(dayOfYear - (153 * monthFromMarch + 2) / 5 + 1)
    month = Int(monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9)
    year = Int(yearOfEra + era * 400) + (month <= 2 ? 1 : 0)
  }
}

extension Timestamp {
  /// `2026-11-23T04:46:55.123456+0000`: the form that EVE JSON prescribes, in UTC, to the microsecond below.
  public var eveDescription: String {
    let civil = CivilTime(self)
    // Digits go over the zeros of a template: every event has a time. Nanoseconds in 64 bits leave a year four digits.
    var text = Array("0000-00-00T00:00:00.000000+0000".utf8)
    for (value, end) in [
      (civil.year, 4), (civil.month, 7), (civil.day, 10), (civil.hour, 13), (civil.minute, 16), (civil.second, 19),
      (civil.microsecond, 26),
    ] {
      var (rest, position) = (value, end)
      while rest > 0 {
        position -= 1
        text[position] += UInt8(rest % 10)
        rest /= 10
      }
    }
    return String(decoding: text, as: UTF8.self)
  }
}

extension Int {
  /// This number, not negative, in decimal digits with zeros before it up to `width`.
  func padded(_ width: Int) -> String {
    let digits = String(self)
    return String(repeating: "0", count: Swift.max(0, width - digits.count)) + digits
  }
}

extension Int64 {
  fileprivate func flooredDivision(by divisor: Int64) -> (quotient: Int64, remainder: Int64) {
    let (quotient, remainder) = quotientAndRemainder(dividingBy: divisor)
    return remainder < 0 ? (quotient - 1, remainder + divisor) : (quotient, remainder)
  }
}

extension Timestamp {
  /// RFC 3339 and RFC 5424 §6.2.3: UTC, to the microsecond.
  package var rfc5424: String { eveDescription.replacing("+0000", with: "Z") }
}
