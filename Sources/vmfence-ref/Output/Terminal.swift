#if Daemon
import Foundation
import VMFenceCore

/// What people see: plain text, with colours only where a terminal shows them and NO_COLOR is not set.
struct Terminal {
  enum Style: String {
    case bold = "1"
    case red = "31"
    case green = "32"
    case yellow = "33"
    case dim = "2"
  }

  let handle: FileHandle
  let isTerminal: Bool
  private let usesColour: Bool

  static let output = Terminal(.standardOutput)
  static let error = Terminal(.standardError)

  private init(_ handle: FileHandle) {
    self.handle = handle
    isTerminal = isatty(handle.fileDescriptor) == 1
    usesColour = isTerminal && ProcessInfo.processInfo.environment["NO_COLOR"] == nil
  }

  func styled(_ text: String, _ style: Style) -> String {
    usesColour ? "\u{1B}[\(style.rawValue)m\(text)\u{1B}[0m" : text
  }

  func print(_ text: String = "", end: String = "\n") {
    // A reader that has gone away (`| head`) is no error of ours.
    try? handle.write(contentsOf: Data((text + end).utf8))
  }

  /// One diagnostic a line, the severity in colour.
  func print(_ diagnostics: [Diagnostic]) {
    for diagnostic in diagnostics {
      let location = diagnostic.place.map { "\($0): " } ?? ""
      let style: Style = diagnostic.severity == .error ? .red : diagnostic.severity == .warning ? .yellow : .dim
      let remedy = diagnostic.remedy.isEmpty ? "" : " (\(diagnostic.remedy))"
      print(location + styled("\(diagnostic.severity.rawValue):", style) + " \(diagnostic.message)\(remedy)")
    }
  }
}

/// Progress of long work: one line that is rewritten on a terminal; elsewhere nothing, the summary follows.
struct ProgressLine {
  private let terminal = Terminal.error
  private var lastPercent = -1

  mutating func show(_ label: String, done: Int64, of total: Int64) {
    guard terminal.isTerminal, total > 0 else { return }
    let percent = Int(min(100, max(0, done * 100 / total)))
    guard percent != lastPercent else { return }
    lastPercent = percent
    let filled = String(repeating: "=", count: percent / 4).padding(toLength: 25, withPad: " ", startingAt: 0)
    try? terminal.handle.write(contentsOf: Data("\r\(label) [\(filled)] \(percent) %".utf8))
  }

  mutating func clear() {
    guard terminal.isTerminal, lastPercent >= 0 else { return }
    lastPercent = -1
    try? terminal.handle.write(contentsOf: Data("\r\u{1B}[K".utf8))
  }
}

/// A table of columns as wide as what is in them.
struct TextTable {
  private var rows: [[String]] = []
  private let rightAligned: Set<Int>

  init(header: [String], rightAligned: Set<Int> = []) {
    rows = [header]
    self.rightAligned = rightAligned
  }

  mutating func add(_ row: [String]) { rows.append(row) }

  func lines() -> [String] {
    let columns = rows.map(\.count).max() ?? 0
    let widths = (0..<columns).map { column in rows.map { $0.count > column ? $0[column].count : 0 }.max() ?? 0 }
    return rows.map { row in
      row.enumerated().map { column, cell in
        let pad = String(repeating: " ", count: widths[column] - cell.count)
        return rightAligned.contains(column) ? pad + cell : cell + pad
      }.joined(separator: "  ").trimmingTrailingSpaces
    }
  }
}

extension String {
  fileprivate var trimmingTrailingSpaces: String {
    var text = self
    while text.last == " " { text.removeLast() }
    return text
  }
}
#endif
