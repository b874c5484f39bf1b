internal import Glibc
internal import VMFenceCore

/// How many baselines of each disk were signed with a key: a file beside the key, so that who puts an old store back
/// must be able to write there, too. Each line is signed: `GENERATION CODE DISK`, the code in hexadecimal.
struct GenerationFile {
  static let bytesLimit = 4 << 20
  private let key: IntegrityKey
  var path: String { key.path + ".generations" }

  init(_ key: IntegrityKey) { self.key = key }

  /// 0 when none was signed.
  ///
  /// - Throws: `edited`, `inputOutput`.
  func generation(of disk: String) throws(BaselineError) -> UInt64 { try read()[disk.escapedForDisplay] ?? 0 }

  func set(_ generation: UInt64, of disk: String) throws(BaselineError) {
    var all = try read()
    all[disk.escapedForDisplay] = generation
    let lines = all.sorted { $0.key < $1.key }
      .map { "\($0.value) \(code($0.value, $0.key)) \($0.key)\n" }.joined()
    try DurableFile.replace(path, Array(lines.utf8))
  }

  private func code(_ generation: UInt64, _ disk: String) -> String {
    var hmac = HMACSHA256(key: key.bytes)
    hmac.updateField(Array("vmfence generation 1".utf8))
    hmac.updateField(StateKey.number(generation))
    hmac.updateField(Array(disk.utf8))
    return hmac.code().map { $0.hexadecimal(width: 2) }.joined()
  }

  private func read() throws(BaselineError) -> [String: UInt64] {
    var result: [String: UInt64] = [:]
    let text = try content()
    for (index, line) in text.split(separator: "\n").enumerated() {
      let parts = line.split(separator: " ", maxSplits: 2)
      guard parts.count == 3, let generation = UInt64(parts[0]),
        HMACSHA256.areEqual(Array(parts[1].utf8), Array(code(generation, String(parts[2])).utf8))
      else {
        throw BaselineError(
          .edited, "the count of baselines was edited, or signed with another key",
          at: SourcePlace(file: path, line: index + 1), remedy: "find out who did; restore the file from a copy")
      }
      result[String(parts[2])] = generation
    }
    return result
  }

  private func content() throws(BaselineError) -> String {
    // SAFETY: Swift hands over the path as a C string that is valid for the call.
    let file = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
    if file < 0, errno == ENOENT { return "" }
    guard file >= 0 else {
      throw BaselineError(
        .inputOutput, "cannot read the count of baselines: \(describeError(errno))", at: SourcePlace(file: path))
    }
    defer { close(file) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      // SAFETY: as many bytes as the chunk has.
      let count = unsafe chunk.withUnsafeMutableBytes { unsafe Glibc.read(file, $0.baseAddress, $0.count) }
      guard count >= 0, bytes.count + count <= Self.bytesLimit else {
        throw BaselineError(.inputOutput, "cannot read the count of baselines", at: SourcePlace(file: path))
      }
      if count == 0 { return String(decoding: bytes, as: UTF8.self) }
      bytes += chunk[..<count]
    }
  }
}
