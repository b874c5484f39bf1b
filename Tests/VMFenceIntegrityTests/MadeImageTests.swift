import Foundation
import Testing
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// File systems that e2fsprogs makes, against the files that they were made of. Skipped, and said so, without mke2fs.
enum E2fsprogs {
  static let isThere = ["mke2fs", "debugfs"].allSatisfy { name in
    ["/usr/sbin/", "/sbin/"].contains { FileManager.default.isExecutableFile(atPath: $0 + name) }
  }

  @discardableResult
  static func run(_ command: String, _ arguments: [String], input: String = "") throws -> Int32 {
    let process = Process()
    let folder = FileManager.default.isExecutableFile(atPath: "/usr/sbin/" + command) ? "/usr/sbin/" : "/sbin/"
    process.executableURL = URL(fileURLWithPath: folder + command)
    process.arguments = arguments
    let pipe = Pipe()
    process.standardInput = pipe
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    try pipe.fileHandleForWriting.write(contentsOf: Data(input.utf8))
    try pipe.fileHandleForWriting.close()
    process.waitUntilExit()
    return process.terminationStatus
  }
}

/// A folder with files of all kinds of sizes, and images made of it.
struct MadeTree: ~Copyable {
  let folder: URL
  var tree: URL { folder.appending(path: "tree") }
  var image: String { folder.appending(path: "image").path }
  private(set) var contents: [String: [UInt8]] = [:]
  private(set) var links: [String: String] = [:]

  init() throws {
    folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-made-\(UUID().uuidString)")
    try FileManager.default.createDirectory(
      at: folder.appending(path: "tree/many"), withIntermediateDirectories: true)
    var random = Random(state: 11)
    for index in 0..<200 {
      let size = [0, 1, 59, 60, 61, 160, 1023, 5000, 70_000][Int(random.next() % 9)]
      try write("/many/f\(index)", (0..<size).map { _ in UInt8(truncatingIfNeeded: random.next()) })
    }
    try write("/large", (0..<1_500_000).map { UInt8(truncatingIfNeeded: $0 / 7) })
    var sparse = [UInt8](repeating: 0, count: 2_000_000)
    for start in stride(from: 0, to: sparse.count, by: 16_384) { sparse[start] = 1 }
    // mke2fs leaves a hole at the end out of the size of a file that could have lain in its inode.
    sparse[sparse.count - 1] = 1
    try write("/sparse", sparse)
    for (name, target) in [
      ("/short", "s"), ("/middle", String(repeating: "m", count: 70)), ("/long", String(repeating: "l", count: 300)),
    ] {
      links[name] = target
      try FileManager.default.createSymbolicLink(atPath: tree.path + name, withDestinationPath: target)
    }
  }

  deinit { try? FileManager.default.removeItem(at: folder) }

  private mutating func write(_ path: String, _ bytes: [UInt8]) throws {
    contents[path] = bytes
    try Data(bytes).write(to: URL(fileURLWithPath: tree.path + path))
  }

  func make(_ options: String, size: String = "24M") throws {
    let arguments = options.split(separator: " ").map(String.init)
    try #require(try E2fsprogs.run("mke2fs", ["-q", "-F", "-d", tree.path] + arguments + [image, size]) == 0)
  }
}

@Suite struct MadeImageTests {
  @Test func saysWhetherTheProgramsAreThere() {
    if !E2fsprogs.isThere { print("SKIPPED: file systems made by e2fsprogs were not read; install e2fsprogs") }
  }

  @Test(
    .enabled(if: E2fsprogs.isThere),
    arguments: [
      "-t ext2 -b 1024 -O ^sparse_super,^dir_index,^resize_inode", "-t ext2 -r 0 -b 4096", "-t ext3 -b 1024",
      "-t ext4 -O bigalloc -C 16384", "-t ext4 -b 1024 -O bigalloc -C 8192",
      "-t ext4 -O meta_bg,^resize_inode -g 256", "-t ext4 -b 1024 -O meta_bg,^resize_inode,64bit -g 1024",
      "-t ext4 -b 2048 -O ^flex_bg,^64bit,uninit_bg,^metadata_csum", "-t ext4 -b 1024 -I 512 -O inline_data,ea_inode",
      "-t ext4 -O sparse_super2,^resize_inode,orphan_file,metadata_csum_seed", "-t ext4 -b 65536",
      "-t ext4 -b 1024 -O casefold,encrypt,verity,project,quota -E encoding=utf8", "-t ext4 -O fast_commit",
      "-t ext4 -b 1024 -O huge_file,large_dir,mmp,stable_inodes",
    ]) func everyFileIsThereWithItsContents(options: String) throws
  {
    let made = try MadeTree()
    try made.make(options)
    let fileSystem = try ExtFileSystem(try FileDiskReader(path: made.image))
    var damage = DamageLog()
    var seen = 0
    let found = fileSystem.walk { listing in
      let path = String(decoding: listing.path, as: UTF8.self)
      if let expected = made.contents[path] {
        var bytes: [UInt8] = []
        #expect(fileSystem.readContents(of: listing, damage: &damage) { bytes += $0.copiedBytes() })
        #expect(bytes == expected, "\(path)")
        seen += 1
      } else if let target = made.links[path] {
        #expect(String(decoding: fileSystem.target(of: listing, damage: &damage), as: UTF8.self) == target)
        seen += 1
      }
    }
    fileSystem.checkBitmaps(damage: &damage)
    #expect(
      seen == made.contents.count + made.links.count && found.count == 0 && damage.count == 0, "\(found) \(damage)")
  }
}
