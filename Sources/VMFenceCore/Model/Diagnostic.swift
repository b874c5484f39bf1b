/// A place in a file that a person wrote.
public struct SourcePlace: Hashable, Sendable, CustomStringConvertible {
  public var file: String
  /// From 1; 0 when the whole file is meant.
  public var line: Int
  /// In characters from 1; 0 when the whole line is meant.
  public var column: Int

  public init(file: String, line: Int = 0, column: Int = 0) {
    self.file = file
    self.line = line
    self.column = column
  }

  public var description: String {
    let name = file.escapedForDisplay
    return line == 0 ? name : column == 0 ? "\(name):\(line)" : "\(name):\(line):\(column)"
  }
}

/// One thing that is wrong (or worth knowing) about input: where, what, and what to do about it.
public struct Diagnostic: Hashable, Sendable, CustomStringConvertible {
  public enum Severity: String, Hashable, Sendable { case error, warning, note }

  public var severity: Severity
  public var place: SourcePlace?
  public var message: String
  /// What the reader can do. Empty only when the message says it already.
  public var remedy: String

  public init(_ severity: Severity = .error, at place: SourcePlace? = nil, _ message: String, remedy: String = "") {
    self.severity = severity
    self.place = place
    self.message = message
    self.remedy = remedy
  }

  /// `FILE:LINE:COLUMN: error: MESSAGE (REMEDY)`, the form that editors and CI systems recognise.
  public var description: String {
    let location = place.map { "\($0): " } ?? ""
    return "\(location)\(severity.rawValue): \(message)" + (remedy.isEmpty ? "" : " (\(remedy))")
  }
}

/// An error that VMFence's own parts throw: what happened in general (the code), in particular (the message), where,
/// and what can be done. Each protocol has an error type of its own that conforms.
public protocol DescribedError: Error, CustomStringConvertible, Sendable {
  associatedtype Code: Hashable & Sendable
  var code: Code { get }
  var message: String { get }
  var place: SourcePlace? { get }
  var remedy: String { get }
}

extension DescribedError {
  public var diagnostic: Diagnostic { Diagnostic(.error, at: place, message, remedy: remedy) }
  public var description: String { diagnostic.description }
}

extension StringProtocol {
  /// This text made safe to print on a terminal or in a log, whoever wrote it: control characters (C0, C1, DEL), line
  /// and paragraph separators, and the invisible characters that reorder or hide text become `\u{…}` escapes.
  public var escapedForDisplay: String {
    var result = ""
    for scalar in unicodeScalars {
      if scalar.actsOnDisplay {
        result += "\\u{\(String(scalar.value, radix: 16))}"
      } else if scalar == "\\" {
        result += "\\\\"
      } else {
        result.unicodeScalars.append(scalar)
      }
    }
    return result
  }
}

extension Unicode.Scalar {
  /// Whether this is a control character, a line or paragraph separator, or one of the invisible characters that reorder
  /// or hide text.
  package var actsOnDisplay: Bool {
    switch value {
    case 0..<0x20, 0x7F...0x9F, 0x061C, 0x2028...0x202E, 0x200B...0x200F, 0x2060...0x206F, 0xFEFF, 0xFFF9...0xFFFB,
      0xE0000...0xE007F:
      true
    default: false
    }
  }
}
