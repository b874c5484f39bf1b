#if Daemon
import Foundation
import Logging
import VMFenceCore

/// A file of the state directory that cannot be used.
struct DamagedFile: Error {
  /// What is wrong, and where in the file; of a bounded length, but in the file's own words: whoever shows it escapes it, as the log does.
  var reason: String

  /// Characters of it at the most: a file that was damaged says anything.
  private static let lengthLimit = 200

  init(_ reason: String) {
    let words = reason.hasSuffix(".") ? reason.dropLast() : reason[...]
    self.reason = words.count <= Self.lengthLimit ? String(words) : words.prefix(Self.lengthLimit - 1) + "…"
  }
}

/// Reads what was kept in the state directory as JSON.
enum KeptJSON {
  /// Bytes of such a file at the most.
  static let byteLimit = 256 << 20

  /// - Returns: nil when there is no such file.
  static func read<Value: Decodable>(_ type: Value.Type, from path: String) throws(DamagedFile) -> Value? {
    let data: Data
    do throws(UnreadableFile) { data = Data(try WholeFile.read(path, atMost: byteLimit)) } catch {
      if error.isMissing { return nil }
      throw DamagedFile(error.reason)
    }
    do { return try JSONDecoder().decode(type, from: data) } catch let error as DecodingError {
      throw DamagedFile(describe(error, data))
    } catch { throw DamagedFile(error.localizedDescription) }
  }

  private static func describe(_ error: DecodingError, _ data: Data) -> String {
    switch error {
    case .dataCorrupted(let context) where context.codingPath.isEmpty: syntaxError(data) ?? context.debugDescription
    case .keyNotFound(let key, let context): place(context.codingPath + [key]) + "it is missing"
    case .dataCorrupted(let context), .typeMismatch(_, let context), .valueNotFound(_, let context):
      place(context.codingPath) + context.debugDescription
    @unknown default: error.localizedDescription
    }
  }

  /// `files.web[0]: `; each part is bounded, so that the end of the path is shown, too.
  private static func place(_ path: [any CodingKey]) -> String {
    var text = ""
    for key in path {
      let name = key.stringValue.count <= 40 ? key.stringValue : key.stringValue.prefix(39) + "…"
      text += key.intValue.map { "[\($0)]" } ?? (text.isEmpty ? name : ".\(name)")
    }
    return text.isEmpty ? "" : text + ": "
  }

  /// Foundation's decoder says only that it is no JSON; its older reader says where.
  private static func syntaxError(_ data: Data) -> String? {
    do { _ = try JSONSerialization.jsonObject(with: data) } catch {
      return (error as NSError).userInfo["NSDebugDescription"] as? String
    }
    return nil
  }
}
#endif
