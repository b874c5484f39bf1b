#if Daemon
internal import Foundation
internal import VMFenceCore
internal import Yams

/// What is said of a text that is no YAML: where, in libyaml's words, and what people mostly did.
enum YAMLMistakes {
  static func diagnostics(of error: YamlError, in text: String, file: String) -> [Diagnostic] {
    func at(_ line: Int, _ column: Int) -> SourcePlace { SourcePlace(file: file, line: line, column: column) }
    switch error {
    case .scanner(let context, let problem, let mark, _), .parser(let context, let problem, let mark, _),
      .composer(let context, let problem, let mark, _):
      // Where what was not ended begins; libyaml has marks of 0:0, too, which say nothing.
      let before = context.map { context in
        let isElsewhere = (context.mark.line, context.mark.column) != (mark.line, mark.column)
        return isElsewhere ? "\(context.text) at \(context.mark.line):\(context.mark.column): " : ""
      }
      return [
        Diagnostic(
          at: at(mark.line, mark.column), "not valid YAML: \((before ?? "") + problem)",
          remedy: remedy(
            for: scalar(in: text, mark.line, mark.column), behind: scalar(in: text, mark.line, mark.column - 1)))
      ]
    case .reader(let problem, let offset, let value, _):
      let place = offset.map { self.place(ofCharacter: $0, in: text) } ?? (0, 0)
      let which = value > 0 ? " (U+\(UInt64(value).hexadecimal(width: 4).uppercased()))" : ""
      return [Diagnostic(at: at(place.0, place.1), "not valid YAML: \(problem)\(which)", remedy: "take it out")]
    case .duplicatedKeysInMapping(let duplicates, let context):
      let keys = duplicates.map { "\($0)" }.joined(separator: ", ").escapedForDisplay
      return [
        Diagnostic(
          at: at(context.mark.line, context.mark.column), "a key stands twice: \(keys)", remedy: "keep one of them")
      ]
    default:
      return [Diagnostic(at: SourcePlace(file: file), "not valid YAML: \("\(error)".escapedForDisplay)")]
    }
  }

  /// - `before`: what stands before it: of a name behind `*`, `&` or `!` libyaml shows the name.
  private static func remedy(for scalar: Unicode.Scalar?, behind before: Unicode.Scalar?) -> String {
    switch (scalar, before) {
    case ("\t", _): "there is a tab: indent with spaces only"
    case (let sign?, _) where ["@", "`", "%"].contains(sign), (_, let sign?) where ["*", "&", "!"].contains(sign):
      "a text that begins with `\(sign)` stands in quotes"
    default:
      "look there and in the line before: keys of one mapping have one indentation, quotes and brackets are closed, and a text with `: ` in it stands in quotes"
    }
  }

  /// What stands at a place; places are counted in scalars from 1, as libyaml does.
  private static func scalar(in text: String, _ line: Int, _ column: Int) -> Unicode.Scalar? {
    let lines = text.unicodeScalars.split(separator: "\n", maxSplits: line, omittingEmptySubsequences: false)
    guard line > 0, line <= lines.count, column > 0 else { return nil }
    return lines[line - 1].dropFirst(column - 1).first
  }

  private static func place(ofCharacter offset: Int, in text: String) -> (line: Int, column: Int) {
    var (line, column) = (1, 1)
    for scalar in text.prefix(offset).unicodeScalars { advance(&line, &column, over: scalar) }
    return (line, column)
  }

  /// Where the bytes end to be UTF-8.
  static func placeOfFirstInvalid(in data: Data) -> (line: Int, column: Int) {
    var (line, column) = (1, 1)
    var (decoder, bytes) = (UTF8(), data.makeIterator())
    while case .scalarValue(let scalar) = decoder.decode(&bytes) { advance(&line, &column, over: scalar) }
    return (line, column)
  }

  private static func advance(_ line: inout Int, _ column: inout Int, over scalar: Unicode.Scalar) {
    (line, column) = scalar == "\n" ? (line + 1, 1) : (line, column + 1)
  }
}
#endif
