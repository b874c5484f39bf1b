/// Finds the name that somebody who misspelt one may have meant.
struct NearestName {
  /// More different unknown names than these are not looked for, so that a file full of them costs no more.
  private static let answerMaximum = 1_000

  private var answers: [String: String?] = [:]

  /// nil when nothing is close: at least two thirds of the letters have to be right.
  mutating func find(_ name: String, among names: some Collection<String>) -> String? {
    if let known = answers[name] { return known }
    guard answers.count < Self.answerMaximum, (2...40).contains(name.utf8.count) else { return nil }
    let word = Array(name.lowercased().utf8)
    var best = word.count / 3 + 1
    var answer: String?
    for candidate in names where abs(candidate.utf8.count - word.count) <= best {
      let distance = Self.distance(word, Array(candidate.lowercased().utf8))
      if distance < best || (distance == best && answer.map { candidate < $0 } ?? false) {
        best = distance
        answer = candidate
      }
    }
    answers[name] = .some(answer)
    return answer
  }

  /// Insertions, deletions, replacements and swaps of neighbours that lead from one word to the other.
  private static func distance(_ a: [UInt8], _ b: [UInt8]) -> Int {
    guard !a.isEmpty, !b.isEmpty else { return max(a.count, b.count) }
    var before: [Int] = []
    var previous = Array(0...b.count)
    for i in 1...a.count {
      var row = [i]
      for j in 1...b.count {
        var cost = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1))
        if i > 1, j > 1, a[i - 1] == b[j - 2], a[i - 2] == b[j - 1] { cost = min(cost, before[j - 2] + 1) }
        row.append(cost)
      }
      (before, previous) = (previous, row)
    }
    return previous[b.count]
  }
}
