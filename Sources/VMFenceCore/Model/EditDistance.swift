extension String {
  /// Levenshtein's distance to another short word, for suggestions; only the first 64 bytes of each count.
  package func editDistance(to other: String) -> Int {
    let (a, b) = (Array(utf8.prefix(64)), Array(other.utf8.prefix(64)))
    var row = Array(0...b.count)
    for (i, x) in a.enumerated() {
      var diagonal = row[0]
      row[0] = i + 1
      for (j, y) in b.enumerated() {
        let next = Swift.min(diagonal + (x == y ? 0 : 1), row[j] + 1, row[j + 1] + 1)
        diagonal = row[j + 1]
        row[j + 1] = next
      }
    }
    return row[b.count]
  }
}

extension Sequence<String> {
  /// The word that was meant, perhaps: the nearest one, the first of the alphabet where several are, if it is no further away than `limit`.
  package func nearest(to word: String, within limit: Int) -> String? {
    let near = sorted().min { $0.editDistance(to: word) < $1.editDistance(to: word) }
    return near.flatMap { $0.editDistance(to: word) <= limit ? $0 : nil }
  }
}
