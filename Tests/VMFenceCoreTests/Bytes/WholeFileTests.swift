import Foundation
import Synchronization
import TestSupport
import Testing
import VMFenceCore

@Suite("Whole files")
struct WholeFileTests {
  private let folder: TemporaryDirectory
  init() throws { folder = try TemporaryDirectory() }

  private static func reason(_ path: String, atMost limit: Int = 10) -> UnreadableFile? {
    do throws(UnreadableFile) { _ = try WholeFile.read(path, atMost: limit) } catch { return error }
    return nil
  }

  @Test("a file is read up to its limit and not beyond, and a link leads to it")
  func limits() throws {
    try folder.write(Array(0..<10), to: "ten")
    try folder.write([], to: "none")
    try FileManager.default.createSymbolicLink(atPath: folder.file("link"), withDestinationPath: "ten")
    #expect(try WholeFile.read(folder.file("ten"), atMost: 10) == Array(0..<10))
    #expect(try WholeFile.read(folder.file("link"), atMost: 10) == Array(0..<10))
    #expect(try WholeFile.read(folder.file("none"), atMost: 0) == [])
    #expect(Self.reason(folder.file("ten"), atMost: 9)?.reason == "it has more than 9 bytes")
    let long = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    try folder.write(long, to: "long")
    #expect(try WholeFile.read(folder.file("long"), atMost: 300_000) == long)
    #expect(Self.reason(folder.file("long"), atMost: 299_999)?.reason == "it has more than 299999 bytes")
    for limit in [0, 9, 10, 11] {
      #expect(try WholeFile.readBeginning(folder.file("ten"), atMost: limit) == Array(0..<min(UInt8(limit), 10)))
    }
    #expect(try WholeFile.readBeginning(folder.file("long"), atMost: 200_000) == Array(long[..<200_000]))
    // Of what the kernel makes up no size is known beforehand.
    #expect(try !WholeFile.read("/proc/self/status", atMost: 100_000).isEmpty)
    #expect(Self.reason("/proc/self/status", atMost: 9)?.reason == "it has more than 9 bytes")
  }

  @Test("of a file that is known to be too large nothing is read")
  func unread() throws {
    try folder.write([], to: "sparse")
    // SAFETY: the path is read up to its NUL.
    #expect(unsafe truncate(folder.file("sparse"), off_t(1) << 40) == 0)
    let before = try bytesRead()
    #expect(Self.reason(folder.file("sparse"), atMost: 4 << 30)?.reason == "it has more than 4096 MiB")
    #expect(try bytesRead() - before < 1 << 20)
  }

  /// What this thread has read of files so far, in bytes (proc(5), `rchar`).
  private func bytesRead() throws -> Int {
    let text = try String(contentsOfFile: "/proc/thread-self/io", encoding: .utf8)
    return try #require(text.split(separator: "\n").first?.split(separator: " ").last.flatMap { Int($0) })
  }

  @Test("of a text the byte order mark is no part")
  func texts() throws {
    try folder.write([0xEF, 0xBB, 0xBF, 0x61], to: "marked")
    try folder.write([0x61], to: "plain")
    for name in ["marked", "plain"] { #expect(try WholeFile.readText(folder.file(name), atMost: 4) == [0x61]) }
  }

  /// The same where the read, if it were tried, would never end: by a thread of its own, since the time limit of a test runs while it waits for one, too.
  private func reasonAtOnce(_ path: String) throws -> UnreadableFile? {
    let answer = Mutex<UnreadableFile??>(nil)
    Thread {
      let reason = Self.reason(path)
      answer.withLock { $0 = .some(reason) }
    }.start()
    try eventually("\(path) is refused or read") { answer.withLock { $0 != nil } }
    return answer.withLock { $0 ?? nil }
  }

  @Test("what is no file, or has no end, is refused at once and named")
  func others() throws {
    let gone = Self.reason(folder.file("gone"))
    #expect(gone?.reason == "No such file or directory" && gone?.isMissing == true)
    #expect(Self.reason(folder.path)?.reason == "Is a directory" && Self.reason(folder.path)?.isMissing == false)
    // SAFETY: the path is read up to its NUL.
    #expect(unsafe mkfifo(folder.file("pipe"), 0o600) == 0)
    #expect(try reasonAtOnce(folder.file("pipe"))?.reason == "it is no regular file", "nobody writes to it")
    #expect(try reasonAtOnce("/dev/zero")?.reason == "it is no regular file")
    for path in [folder.file("gone"), folder.path, folder.file("pipe"), "/dev/zero"] {
      #expect(try WholeFile.problem(path) == reasonAtOnce(path))
    }
    try folder.write([1], to: "one")
    #expect(WholeFile.problem(folder.file("one")) == nil)
  }
}
