#if Daemon
import ArgumentParser
import Foundation
import VMFenceBlock
import VMFenceCore
import VMFenceIntegrity

/// `vmfence-ref integrity`
struct Integrity: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "File integrity as seen from a guest's disk.",
    discussion: """
      EXAMPLES
        vmfence-ref integrity list --format raw /dev/vg0/web
        vmfence-ref integrity init /dev/vg0/web --id web --protect '/etc/**' '/boot/**'
        vmfence-ref integrity check /dev/vg0/web --id web
        vmfence-ref integrity held web
      """,
    subcommands: [
      IntegrityInit.self, IntegrityCheck.self, IntegrityUpdate.self, IntegrityTest.self, IntegrityExpect.self,
      IntegrityHeld.self, IntegrityDecide.self, IntegrityRollback.self, IntegrityList.self, IntegrityReplay.self,
    ])
}

/// How an image file is to be read.
enum ImageFormat: String, ExpressibleByArgument, CaseIterable {
  case auto, raw, qcow2

  /// Opens a disk image or block device for reading.
  func open(_ path: String) throws(IntegrityError) -> any DiskReader {
    let file = try FileDiskReader(path: path)
    switch self {
    case .raw: return file
    case .qcow2: return try Qcow2Image(file)
    case .auto: return Qcow2Image.isQcow2(file) ? try Qcow2Image(file) : file
    }
  }
}

extension IntegrityError {
  /// The exit code for a disk that cannot be read.
  var exit: ExitCode { code == .inputOutput ? Exit.noInput : Exit.badData }
}

/// `vmfence-ref integrity list`
struct IntegrityList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list",
    abstract: "List every file of a disk image: what is known of it, and the SHA-256 of its contents.",
    discussion: """
      Reads ext2, ext3 and ext4, alone or in the partitions of an MBR or GPT disk, from raw images, block devices and QCOW2 images.
      Nothing is written. What is committed in a journal counts. On a terminal a table is printed; otherwise, or with --json, one JSON
      object a line: record "filesystem", "file", "damage" or "summary".

      The guest may own the disk. Name the format of a raw disk (--format raw): a guest can write the beginning of a QCOW2 image on it.

      EXIT CODES
        0   everything could be read
        65  something is damaged or not supported (it is listed)
        66  the image cannot be read

      EXAMPLES
        vmfence-ref integrity list disk.img
        vmfence-ref integrity list --format raw --no-hash /dev/vg0/guest1 | jq 'select(.mode | test("^104"))'
      """)

  @Argument(help: "A disk image or block device.")
  var image: String

  @Option(help: "The image's format: auto, raw or qcow2.")
  var format = ImageFormat.auto

  @Option(help: "Only the partition with this number.")
  var partition: Int?

  @Flag(help: "JSON lines on a terminal, too.")
  var json = false

  @Flag(name: .customLong("no-hash"), help: "Do not read the contents of files.")
  var noHash = false

  func run() throws {
    let usesJSON = json || !Terminal.output.isTerminal
    let listing = ImageListing(hashes: !noHash, output: usesJSON ? try LineFile(path: "-") : nil)
    let problem = list(listing)
    try listing.finish()
    if var problem {
      problem.place = problem.place ?? SourcePlace(file: image)
      throw failure(problem, problem.exit)
    }
    if listing.damages > 0 { throw Exit.badData }
  }

  /// - Returns: what could not be read at all.
  private func list(_ listing: ImageListing) -> IntegrityError? {
    do throws(IntegrityError) {
      return try listParts(DiskLayout(try format.open(image)), listing)
    } catch {
      listing.damage(error)
      return error
    }
  }

  private func listParts(_ layout: DiskLayout, _ listing: ImageListing) throws(IntegrityError) -> IntegrityError? {
    listing.damage(layout.damage)
    var problem: IntegrityError?
    var isFound = false
    for part in layout.parts {
      if let partition, part.partition?.number != partition { continue }
      isFound = true
      guard let error = listing.list(part.reader, partition: part.partition) else { continue }
      listing.damage(error, partition: part.partition)
      // A partition without such a file system is none of ours; a whole disk without one is a mistake.
      if error.code != .notAFileSystem || part.partition == nil { problem = error }
    }
    if let partition, !isFound {
      throw IntegrityError(.notAFileSystem, "there is no partition \(partition)", remedy: "leave --partition out")
    }
    return problem
  }
}
#endif
