internal import Glibc
import VMFenceChannel
import VMFenceCore

/// What the tenant wants: a file in a small part of YAML, so that this program needs no parser of others:
///
/// ```yaml
/// service-type: web
/// protected-paths:
///   - /etc/**
///   - "/srv/www/**"
/// ```
///
/// Comments begin with `#` at the beginning of a line or after a space. A text may stand in quotes, and has no escapes.
enum TenantFile {
  static let byteLimit = 64 << 10
  static let standardPath = "/etc/vmfence-guest.yaml"

  /// Nothing is declared when there is no such file.
  static func read(_ file: String) throws(GuestCommand.Failure) -> TenantDeclaration {
    // SAFETY: access(2) reads the path up to its zero.
    if unsafe access(file, F_OK) != 0, errno == ENOENT { return TenantDeclaration() }
    let bytes = try Input.read(file, atMost: byteLimit)
    guard bytes.count <= byteLimit else {
      throw GuestCommand.Failure(
        65, "more than \(byteLimit) bytes", at: SourcePlace(file: file), remedy: "see vmfence-guest --help")
    }
    guard var text = String(validating: bytes, as: UTF8.self) else {
      throw GuestCommand.Failure(65, "no UTF-8 text", at: SourcePlace(file: file), remedy: "save it as UTF-8")
    }
    // Some editors begin a file with it.
    if text.unicodeScalars.first == "\u{FEFF}" { text.unicodeScalars.removeFirst() }
    return try parse(text, file: file)
  }

  static func parse(_ text: String, file: String) throws(GuestCommand.Failure) -> TenantDeclaration {
    var declaration = TenantDeclaration()
    var keys: Set<String> = []
    var isInList = false
    // To Swift, a carriage return and the line feed behind it are one character.
    let lines = text.split(omittingEmptySubsequences: false) { $0 == "\n" || $0 == "\r\n" }
    for (index, line) in lines.enumerated() {
      let parsed = Line(line)
      func wrong(_ message: String, _ remedy: String) -> GuestCommand.Failure {
        GuestCommand.Failure(
          65, message, at: SourcePlace(file: file, line: index + 1, column: parsed.indentation + 1), remedy: remedy)
      }
      guard !parsed.content.isEmpty else { continue }
      if parsed.content.hasPrefix("- ") || parsed.content == "-" {
        guard isInList else { throw wrong("an item of no list", "put it behind 'protected-paths:'") }
        guard let path = parsed.value(after: 1) else { throw wrong(Self.openQuote.message, Self.openQuote.remedy) }
        guard !path.isEmpty else { throw wrong("an item without a path", "name one") }
        declaration.protectedPaths.append(path)
      } else if parsed.content.first == "\t" {
        throw wrong("a tab before the text", "indent by spaces: '  - /etc/**'")
      } else if let colon = parsed.content.firstIndex(of: ":"), parsed.indentation == 0 {
        let key = String(parsed.content[..<colon])
        guard keys.insert(key).inserted else { throw wrong("'\(key.escapedForDisplay)' twice", "keep one") }
        guard let value = parsed.value(after: key.count + 1) else {
          throw wrong(Self.openQuote.message, Self.openQuote.remedy)
        }
        isInList = false
        switch key {
        case "service-type" where !value.isEmpty: declaration.serviceType = value
        case "service-type": throw wrong("a service type is missing", "name one: web")
        case "protected-paths" where value.isEmpty || value == "[]": isInList = value.isEmpty
        case "protected-paths": throw wrong("paths on the key's own line", "one in each line below: '  - /etc/**'")
        default:
          throw wrong("there is no key '\(key.escapedForDisplay)'", "keys are service-type and protected-paths")
        }
      } else {
        throw wrong(
          "'\(parsed.content.escapedForDisplay)' is neither a key nor an item", "write 'KEY: VALUE' or '  - PATH'")
      }
      do throws(ChannelViolation) {
        try declaration.validate()
      } catch {
        let isService = parsed.content.hasPrefix("service-type")
        throw wrong(
          error.message,
          isService
            ? "a name of at most 32 characters, such as web"
            : "at most \(ChannelLayout.declarationLimit) plain, absolute paths, each once")
      }
    }
    return declaration
  }

  private static let openQuote = (message: "a quote that does not end", remedy: "end it, with nothing behind it")

  private struct Line {
    var indentation: Int
    var content: Substring

    init(_ line: Substring) {
      indentation = line.prefix { $0 == " " }.count
      content = line.dropFirst(indentation)
      if content.hasPrefix("#") { content = "" }
      while let last = content.last, last == " " || last == "\r" || last == "\t" { content = content.dropLast() }
    }

    /// What follows so many characters, without quotes and comment; nil when a quote does not end.
    func value(after count: Int) -> String? {
      let text = content.dropFirst(count).drop { $0 == " " }
      guard let quote = text.first, quote == "\"" || quote == "'" else {
        var value = ""
        var previous: Character = " "
        for character in text {
          if character == "#", previous == " " { break }
          value.append(character)
          previous = character
        }
        while value.last == " " { value.removeLast() }
        return value
      }
      let rest = text.dropFirst()
      guard let end = rest.firstIndex(of: quote) else { return nil }
      let behind = rest[rest.index(after: end)...].drop { $0 == " " }
      return behind.isEmpty || behind.hasPrefix("#") ? String(rest[..<end]) : nil
    }
  }
}
