import Foundation
import Testing
import VMFenceConformance
import VMFenceCore
import VMFenceStore
import VMFenceTestKit

/// A folder for one test, removed with it.
final class TemporaryFolder {
  let path: String

  init() throws {
    let url = FileManager.default.temporaryDirectory.appendingPathComponent("vmfence-" + UUID().uuidString)
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    path = url.path
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }
}

@Suite struct SQLiteStoreTests {
  @Test func itIsAStateStore() throws {
    let folder = try TemporaryFolder()
    var count = 0
    try StateStoreConformance().check {
      count += 1
      return try SQLiteStore(path: "\(folder.path)/\(count).db")
    }
  }

  @Test func theOneInMemoryIsAStateStore() throws { try StateStoreConformance().check { MemoryStateStore() } }

  @Test func whatWasCommittedIsThereForTheNextAndForOthers() throws {
    let folder = try TemporaryFolder()
    let path = folder.path + "/state.db"
    let first = try SQLiteStore(path: path)
    try first.commit([.put(table: "t", key: [1], value: [2])])
    let second = try SQLiteStore(path: path)
    #expect(try second.value(in: "t", for: [1]) == [2])
    try second.commit([.put(table: "t", key: [3], value: [4])])
    #expect(try first.value(in: "t", for: [3]) == [4])
    let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
    #expect(mode == 0o600)
  }

  private func code(_ body: () throws -> Void) -> StateStoreError.Code? {
    do { try body() } catch let error as StateStoreError {
      #expect(!error.remedy.isEmpty && error.place != nil)
      return error.code
    } catch {}
    return nil
  }

  @Test func whatIsNoStoreIsSaidToBeNone() throws {
    let folder = try TemporaryFolder()
    let path = folder.path + "/x"
    try Data(repeating: 0x41, count: 10_000).write(to: URL(filePath: path))
    #expect(code { _ = try SQLiteStore(path: path) } == .corrupt)
    #expect(code { _ = try SQLiteStore(path: folder.path + "/nowhere/x") } == .inputOutput)
    #expect(code { _ = try SQLiteStore(path: folder.path) } != nil)
  }

  @Test(.enabled(if: geteuid() == 0, "needs root for a file system of its own"))
  func aFullDiskLosesNothingThatWasThere() throws {
    let folder = try TemporaryFolder()
    try #require(run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder.path) == 0)
    defer { _ = run("umount", folder.path) }
    let store = try SQLiteStore(path: folder.path + "/state.db")
    try store.commit([.put(table: "t", key: [1], value: [1])])
    let large = [UInt8](repeating: 7, count: 4 << 20)
    #expect(
      code {
        try store.commit([.put(table: "t", key: [1], value: [2]), .put(table: "t", key: [2], value: large)])
      } == .full)
    #expect(try store.value(in: "t", for: [1]) == [1] && store.value(in: "t", for: [2]) == nil)
    try store.commit([.put(table: "t", key: [1], value: [3])])
    #expect(try store.value(in: "t", for: [1]) == [3], "and there is room for less")
  }
}

/// Runs a command.
///
/// - Returns: its status.
func run(_ arguments: String...) -> Int32 {
  let process = Process()
  process.executableURL = URL(filePath: "/usr/bin/env")
  process.arguments = arguments
  guard (try? process.run()) != nil else { return -1 }
  process.waitUntilExit()
  return process.terminationStatus
}
