/// One line of a trace: a JSON object.
package enum TraceLine: Equatable {
  case request(TraceRequest)
  /// What the recording's author noted; only the number counts.
  case mark(sequence: UInt64)

  package var sequence: UInt64 {
    switch self {
    case .request(let request): request.sequence
    case .mark(let sequence): sequence
    }
  }
}

package struct TraceRequest: Equatable {
  package enum Operation: String { case read, write, flush, trim, zero }
  package var sequence: UInt64
  package var time: Int64
  package var operation: Operation
  package var offset: UInt64 = 0
  package var length: UInt64 = 0
  package var isForcedUnitAccess = false
  /// Where the data of a write begins in the `.bin` file.
  package var position: UInt64 = 0

  package init(
    sequence: UInt64, time: Int64, operation: Operation, offset: UInt64 = 0, length: UInt64 = 0,
    isForcedUnitAccess: Bool = false, position: UInt64 = 0
  ) {
    self.sequence = sequence
    self.time = time
    self.operation = operation
    self.offset = offset
    self.length = length
    self.isForcedUnitAccess = isForcedUnitAccess
    self.position = position
  }
}

/// What is wrong with a line, and at which byte of it (from 0).
package struct TraceSyntaxError: Error, Equatable {
  package var column: Int
  package var message: String
}

/// Reads one line. Strict JSON, one object, no key twice; depth and size bounded. Keys that are not of the format may
/// only stand in marks.
package struct TraceLineParser {
  private static let depthLimit = 8
  private let bytes: [UInt8]
  private var position = 0

  package static func parse(_ line: [UInt8]) throws(TraceSyntaxError) -> TraceLine {
    var parser = TraceLineParser(bytes: line)
    return try parser.line()
  }

  private init(bytes: [UInt8]) { self.bytes = bytes }

  private enum Value: Equatable {
    case integer(UInt64)
    case text(String)
    case boolean(Bool)
    case other
  }

  private mutating func line() throws(TraceSyntaxError) -> TraceLine {
    var fields: [String: Value] = [:]
    skipSpace()
    try expect(0x7B, "an object")
    skipSpace()
    if !take(0x7D) {
      repeat {
        skipSpace()
        let column = position
        let key = try string()
        skipSpace()
        try expect(0x3A, "a colon")
        skipSpace()
        guard fields.updateValue(try value(depth: 1), forKey: key) == nil else {
          throw TraceSyntaxError(column: column, message: "the key \"\(key)\" stands twice")
        }
        skipSpace()
      } while take(0x2C)
      try expect(0x7D, "a comma or the end of the object")
    }
    skipSpace()
    guard position == bytes.count else { throw failure("text after the object") }
    return try interpret(fields)
  }

  private func interpret(_ fields: [String: Value]) throws(TraceSyntaxError) -> TraceLine {
    func integer(_ key: String) throws(TraceSyntaxError) -> UInt64 {
      guard case .integer(let number)? = fields[key] else {
        throw TraceSyntaxError(column: 0, message: "\"\(key)\" must be there and be a number from 0 up")
      }
      return number
    }
    let sequence = try integer("seq")
    guard let time = Int64(exactly: try integer("t_ns")) else {
      throw TraceSyntaxError(column: 0, message: "\"t_ns\" is beyond 64 bits")
    }
    guard case .text(let name)? = fields["op"] else {
      throw TraceSyntaxError(column: 0, message: "\"op\" must be there and be a string")
    }
    if name == "mark" { return .mark(sequence: sequence) }
    guard let operation = TraceRequest.Operation(rawValue: name) else {
      throw TraceSyntaxError(column: 0, message: "\"op\" is none of read, write, flush, trim, zero, mark")
    }
    for key in fields.keys.sorted() where !["seq", "t_ns", "op", "off", "len", "fua", "pos"].contains(key) {
      throw TraceSyntaxError(column: 0, message: "\"\(key)\" is no key of the format")
    }
    var request = TraceRequest(sequence: sequence, time: time, operation: operation)
    if operation != .flush {
      request.offset = try integer("off")
      request.length = try integer("len")
    }
    if operation == .write { request.position = try integer("pos") }
    if let value = fields["fua"] {
      guard case .boolean(let flag) = value else {
        throw TraceSyntaxError(column: 0, message: "\"fua\" must be true or false")
      }
      request.isForcedUnitAccess = flag
    }
    return .request(request)
  }

  // MARK: JSON (RFC 8259)

  private mutating func value(depth: Int) throws(TraceSyntaxError) -> Value {
    guard depth <= Self.depthLimit else { throw failure("more than \(Self.depthLimit) levels") }
    guard position < bytes.count else { throw failure("the line ends where a value must be") }
    switch bytes[position] {
    case 0x22: return .text(try string())
    case 0x7B, 0x5B:
      try container(depth: depth)
      return .other
    case 0x74: return try word("true", .boolean(true))
    case 0x66: return try word("false", .boolean(false))
    case 0x6E: return try word("null", .other)
    default: return try number()
    }
  }

  /// Passes over an array or object; calls `value` one level deeper, at most `depthLimit` deep.
  private mutating func container(depth: Int) throws(TraceSyntaxError) {
    let isObject = bytes[position] == 0x7B
    let close: UInt8 = isObject ? 0x7D : 0x5D
    position += 1
    skipSpace()
    if take(close) { return }
    repeat {
      skipSpace()
      if isObject {
        _ = try string()
        skipSpace()
        try expect(0x3A, "a colon")
        skipSpace()
      }
      _ = try value(depth: depth + 1)
      skipSpace()
    } while take(0x2C)
    try expect(close, "a comma or the end of the list")
  }

  private mutating func number() throws(TraceSyntaxError) -> Value {
    let start = position
    var isInteger = true
    if take(0x2D) { isInteger = false }
    let digits = position
    var value: UInt64 = 0
    while position < bytes.count, 0x30...0x39 ~= bytes[position] {
      let (product, overflow) = value.multipliedReportingOverflow(by: 10)
      let (sum, overflow2) = product.addingReportingOverflow(UInt64(bytes[position] - 0x30))
      guard !overflow, !overflow2 else { throw failure("a number beyond 64 bits") }
      value = sum
      position += 1
    }
    guard position > digits else { throw failure("not a JSON value") }
    guard bytes[digits] != 0x30 || position == digits + 1 else { throw failure("a number with a leading zero") }
    if take(0x2E) {
      isInteger = false
      try someDigits()
    }
    if position < bytes.count, bytes[position] | 0x20 == 0x65 {
      isInteger = false
      position += 1
      if !take(0x2B) { _ = take(0x2D) }
      try someDigits()
    }
    assert(position > start)
    return isInteger ? .integer(value) : .other
  }

  private mutating func someDigits() throws(TraceSyntaxError) {
    let start = position
    while position < bytes.count, 0x30...0x39 ~= bytes[position] { position += 1 }
    guard position > start else { throw failure("a number without digits") }
  }

  /// A string. Escapes are kept as they stand: no key or operation of the format has any.
  private mutating func string() throws(TraceSyntaxError) -> String {
    try expect(0x22, "a string")
    let start = position
    while position < bytes.count {
      switch bytes[position] {
      case 0x22:
        guard let text = String(validating: bytes[start..<position], as: UTF8.self) else {
          throw failure("a string that is not UTF-8")
        }
        position += 1
        return text
      case 0x5C:
        guard position + 1 < bytes.count, "\"\\/bfnrtu".utf8.contains(bytes[position + 1]) else {
          throw failure("a wrong escape")
        }
        position += 2
      case 0..<0x20: throw failure("a control character in a string")
      default: position += 1
      }
    }
    throw failure("a string without end")
  }

  private mutating func word(_ word: String, _ value: Value) throws(TraceSyntaxError) -> Value {
    let end = position + word.utf8.count
    guard end <= bytes.count, bytes[position..<end].elementsEqual(word.utf8) else { throw failure("not a JSON value") }
    position = end
    return value
  }

  private mutating func skipSpace() {
    while position < bytes.count, bytes[position] == 0x20 || bytes[position] == 0x09 { position += 1 }
  }

  private mutating func take(_ byte: UInt8) -> Bool {
    guard position < bytes.count, bytes[position] == byte else { return false }
    position += 1
    return true
  }

  private mutating func expect(_ byte: UInt8, _ what: String) throws(TraceSyntaxError) {
    guard take(byte) else { throw failure("expected \(what)") }
  }

  private func failure(_ message: String) -> TraceSyntaxError { TraceSyntaxError(column: position, message: message) }
}
