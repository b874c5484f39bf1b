internal import VMFenceCore

extension ProtectionPolicy {
  /// The longest policy file, in bytes.
  public static let textLimit = 1 << 20

  /// Reads a policy as people write it, a rule a line:
  ///
  ///     /etc/**            deny-data  attributes=R  severity=1
  ///     /var/log/auth.log  alert      attributes=>
  ///     /usr/bin/*         freeze     object
  ///     !/etc/mtab
  ///
  /// First the pattern (a space in a path is written `?`), then in any order a verb (`alert` when there is none),
  /// `attributes=` as `FileAttributes` reads them, `severity=` from 1 to 4, and `object` for files that are followed when they
  /// lose their name. `#` begins a comment.
  ///
  /// - Throws: `badPattern` or `tooLarge`, with line and column.
  public static func rules(text: [UInt8], file: String) throws(IntegrityError) -> [Rule] {
    guard text.count <= textLimit else {
      throw IntegrityError(
        .tooLarge, "a policy of \(text.count) bytes; at most \(textLimit) are taken", at: SourcePlace(file: file),
        remedy: "use patterns")
    }
    var rules: [Rule] = []
    for (index, line) in text.split(separator: 0x0A, omittingEmptySubsequences: false).enumerated() {
      guard let rule = try rule(line, SourcePlace(file: file, line: index + 1)) else { continue }
      guard rules.count < patternLimit else {
        throw IntegrityError(
          .tooLarge, "more than \(patternLimit) rules", at: SourcePlace(file: file, line: index + 1),
          remedy: "use patterns")
      }
      rules.append(rule)
    }
    return rules
  }

  private static func rule(_ line: ArraySlice<UInt8>, _ place: SourcePlace) throws(IntegrityError) -> Rule? {
    var rule: Rule?
    var hasVerb = false
    var options: Set<Substring> = []
    for word in line.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 || $0 == 0x0D }) {
      if word.first == 0x23 { break }
      var place = place
      place.column = word.startIndex - line.startIndex + 1
      let text = String(decoding: word, as: UTF8.self)
      guard rule != nil else {
        rule = Rule(text)
        // Says what is wrong with a pattern by itself.
        do throws(IntegrityError) { _ = try ProtectionPolicy([Rule(text)]) } catch {
          var error = error.placed(place)
          if Action(name: text) != nil { error.remedy = "the pattern stands first, and the verb behind it" }
          if text.hasPrefix("\"") || text.hasPrefix("'") {
            error.remedy = "write it without quotes; a space in a path is written ?"
          }
          throw error
        }
        guard Array(text.utf8) == Array(word) else {
          throw IntegrityError(.badPattern, "the pattern is not UTF-8", at: place, remedy: "write ? for such a byte")
        }
        continue
      }
      // Which of two would count, nobody who reads it can tell.
      if let option = text.split(separator: "=").first, ["attributes", "severity", "object"].contains(option),
        !options.insert(option).inserted
      {
        throw IntegrityError(.badPattern, "`\(option)` stands twice", at: place, remedy: "keep one of them")
      }
      if let action = Action(name: text) {
        guard !hasVerb else {
          throw IntegrityError(.badPattern, "a second verb, `\(text)`", at: place, remedy: "one line has one verb")
        }
        hasVerb = true
        rule?.action = action
      } else if text == "object" {
        rule?.followsObject = true
      } else if text.hasPrefix("attributes=") {
        do throws(IntegrityError) { rule?.attributes = try FileAttributes(String(text.dropFirst(11))) } catch {
          throw error.placed(place)
        }
      } else if text.hasPrefix("severity="), let severity = Int(text.dropFirst(9)), (1...4).contains(severity) {
        rule?.severity = severity
      } else {
        let verbs = Action.allCases.map(\.name)
        let guess = verbs.nearest(to: text.lowercased(), within: 2).map { "did you mean `\($0)`? " } ?? ""
        throw IntegrityError(
          .badPattern, "`\(text.escapedForDisplay)` is not understood here", at: place,
          remedy: guess + "after the pattern come a verb (\(verbs.joined(separator: ", "))), "
            + "attributes=…, severity=1 to 4, object; a space in a path is written ?")
      }
    }
    return rule
  }
}

extension IntegrityError {
  fileprivate func placed(_ place: SourcePlace) -> IntegrityError {
    var error = self
    error.place = place
    return error
  }
}
