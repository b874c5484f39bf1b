import Foundation
import Testing
import VMFenceCore

@Suite("Whole files")
struct WholeFileTests {
  private let folder: TemporaryDirectory
  init() throws { folder = try TemporaryDirectory() }

  private func reason(_ path: String, atMost limit: Int = 10) -> UnreadableFile? {
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
    #expect(reason(folder.file("ten"), atMost: 9)?.reason == "it has more than 9 bytes")
    let long = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    try folder.write(long, to: "long")
    #expect(try WholeFile.read(folder.file("long"), atMost: 300_000) == long)
    #expect(reason(folder.file("long"), atMost: 299_999)?.reason == "it has more than 299999 bytes")
  }

  @Test("what is no file, or has no end, is refused at once and named", .timeLimit(.minutes(1)))
  func others() throws {
    let gone = reason(folder.file("gone"))
    #expect(gone?.reason == "No such file or directory" && gone?.isMissing == true)
    #expect(reason(folder.path)?.reason == "Is a directory" && reason(folder.path)?.isMissing == false)
    // SAFETY: the path is read up to its NUL.
    #expect(unsafe mkfifo(folder.file("pipe"), 0o600) == 0)
    #expect(reason(folder.file("pipe"))?.reason == "it is no regular file", "nobody writes to it")
    #expect(reason("/dev/zero")?.reason == "it is no regular file")
    for path in [folder.file("gone"), folder.path, folder.file("pipe"), "/dev/zero"] {
      #expect(WholeFile.problem(path) == reason(path))
    }
    try folder.write([1], to: "one")
    #expect(WholeFile.problem(folder.file("one")) == nil)
  }
}
