#if Daemon
import ArgumentParser
import Foundation
import Synchronization
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

  /// How many columns and rows it has; nil where there is no terminal, or it does not say.
  var size: (columns: Int, rows: Int)? {
    var size = winsize()
    // SAFETY: TIOCGWINSZ writes one structure (ioctl_tty(2)).
    guard isTerminal, unsafe ioctl(handle.fileDescriptor, UInt(TIOCGWINSZ), &size) == 0 else { return nil }
    return size.ws_col > 0 && size.ws_row > 0 ? (Int(size.ws_col), Int(size.ws_row)) : nil
  }

  /// Why standard output took no more, as errno has it; 0: it took everything.
  private static let outputFailure = Atomic<Int32>(0)

  /// Whether there is nobody to print for: a reader that has gone away, or a disk that is full. Whoever prints again and again ends then.
  static var isOutputGone: Bool { outputFailure.load(ordering: .relaxed) != 0 }

  /// What is to be said, and the exit code, when what was printed did not get to where it should; nil when it did. A reader that has gone away (`| head`) is
  /// no error of ours: nothing is said of it.
  static var outputProblem: (message: String, code: ExitCode)? {
    let number = outputFailure.load(ordering: .relaxed)
    guard number != 0 else { return nil }
    return (number == EPIPE ? "" : "standard output cannot be written: \(describeError(number))", Exit.cannotCreate)
  }

  func print(_ text: String = "", end: String = "\n") {
    guard handle.fileDescriptor == STDOUT_FILENO else {
      // There is nobody to tell.
      try? handle.write(contentsOf: Data((text + end).utf8))
      return
    }
    var rest = Array((text + end).utf8)[...]
    while !rest.isEmpty, !Self.isOutputGone {
      // SAFETY: write(2) reads as many bytes as the slice has.
      let count = unsafe rest.withUnsafeBytes { unsafe write(STDOUT_FILENO, $0.baseAddress, $0.count) }
      if count > 0 {
        rest = rest.dropFirst(count)
      } else if count < 0, errno == EAGAIN {
        var waits = pollfd(fd: STDOUT_FILENO, events: Int16(POLLOUT), revents: 0)
        // SAFETY: poll(2) reads and writes one structure.
        _ = unsafe poll(&waits, 1, -1)
      } else if count == 0 || errno != EINTR {
        Self.outputFailure.store(count == 0 ? EIO : errno, ordering: .relaxed)
      }
    }
  }

  /// JSON, in which what acts on a terminal is escaped beyond what JSON asks for: names and messages come from guests.
  func print(json: some Encodable, _ formatting: JSONEncoder.OutputFormatting = []) {
    let encoder = JSONEncoder()
    encoder.outputFormatting = formatting.union([.sortedKeys, .withoutEscapingSlashes])
    print((try? encoder.encode(json)).map { String(decoding: $0, as: UTF8.self).escapedInJSON } ?? "null")
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

extension String {
  /// JSON that says the same, and in which no character acts on a terminal. JSON itself has those below U+0020 escaped in texts; others stand in texts only.
  var escapedInJSON: String {
    guard unicodeScalars.contains(where: { $0.value >= 0x7F && $0.actsOnDisplay }) else { return self }
    var result = ""
    for scalar in unicodeScalars {
      if scalar.value >= 0x7F, scalar.actsOnDisplay {
        for unit in String(scalar).utf16 {
          let digits = String(unit, radix: 16)
          result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        }
      } else {
        result.unicodeScalars.append(scalar)
      }
    }
    return result
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
