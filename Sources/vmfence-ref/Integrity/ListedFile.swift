#if Daemon
import Foundation
import VMFenceCore
import VMFenceIntegrity

/// What a listing says of one file.
struct ListedFile {
  private let listing: ExtListing
  private let sha256: [UInt8]?
  /// Contents that were to be hashed and are not: ciphertext, damaged, or more bytes than are read.
  private let isUnhashed: Bool
  private let extents: [ExtExtent]
  private let attributes: [ExtAttribute]
  private let target: [UInt8]?
  /// In units of 512 bytes, as stat(2) gives it: contents in an inode count as if they took a block.
  private let sectors: UInt64

  init(
    _ listing: ExtListing, hashes: Bool, sha256: [UInt8]?, extents: [ExtExtent],
    attributes: [ExtAttribute], target: [UInt8]?
  ) {
    self.listing = listing
    isUnhashed = hashes && sha256 == nil && listing.inode.kind == .regular
    self.sha256 = sha256
    self.extents = extents
    self.attributes = attributes
    self.target = target
    let inode = listing.inode
    sectors = inode.sectorCount + (inode.kind == .regular && inode.hasInlineData ? (inode.size + 511) / 512 : 0)
  }

  private static func mode(_ inode: ExtInode) -> String {
    let digits = String(inode.mode, radix: 8)
    return String(repeating: "0", count: max(0, 7 - digits.count)) + digits
  }

  func json(_ partition: DiskPartition?) -> [UInt8] {
    let inode = listing.inode
    var line = JSONLine()
    line.object { json in
      json.member("record", "file")
      json.member("partition", partition?.number)
      json.path("path", listing.path)
      json.member("inode", listing.number)
      json.member("type", Self.word(inode.kind))
      json.member("mode", Self.mode(inode))
      json.member("uid", inode.userID)
      json.member("gid", inode.groupID)
      if inode.projectID != 0 { json.member("project", inode.projectID) }
      json.member("size", inode.size)
      json.member("links", inode.linkCount)
      json.member("mtime_ns", inode.modificationTime.nanoseconds)
      json.member("ctime_ns", inode.changeTime.nanoseconds)
      json.member("atime_ns", inode.accessTime.nanoseconds)
      json.member("crtime_ns", inode.creationTime?.nanoseconds)
      json.member("blocks512", sectors)
      if let device = inode.device { json.array("device", [device.major, device.minor]) { $0.element($1) } }
      if let target { json.path("target", target) }
      let marks = [
        (inode.isEncrypted, "encrypted"), (inode.isCasefolded, "casefolded"), (inode.isVerity, "verity"),
        (inode.hasInlineData, "inline"),
      ].filter(\.0).map(\.1)
      if !marks.isEmpty { json.array("marks", marks) { $0.element($1) } }
      if !attributes.isEmpty {
        json.object("xattrs") { json in
          for attribute in attributes {
            json.member(
              String(decoding: attribute.name, as: UTF8.self),
              attribute.value.map { $0.hexadecimal(width: 2) }.joined())
          }
        }
      }
      json.member("sha256", sha256.map { $0.map { $0.hexadecimal(width: 2) }.joined() })
      if isUnhashed { json.member("unhashed", inode.isEncrypted ? "encrypted" : "damaged or too large") }
      if inode.kind == .regular {
        json.array("extents", extents) { json, extent in
          json.object { json in
            json.member("file", extent.fileOffset)
            json.member("disk", extent.diskOffset)
            json.member("length", extent.length)
            if extent.isUnwritten { json.member("unwritten", true) }
          }
        }
      }
    }
    return line.bytes
  }

  /// A line for people: mode, links, owner, size, time, path.
  var row: String {
    let inode = listing.inode
    func pad(_ text: some CustomStringConvertible, _ width: Int) -> String {
      let text = text.description
      return String(repeating: " ", count: max(0, width - text.count)) + text
    }
    var path = String(decoding: listing.path, as: UTF8.self).escapedForDisplay
    if let target { path += " -> " + String(decoding: target, as: UTF8.self).escapedForDisplay }
    let hash =
      sha256.map { $0.prefix(8).map { $0.hexadecimal(width: 2) }.joined() } ?? String(repeating: " ", count: 16)
    let time = inode.modificationTime.nanoseconds / 1_000_000_000
    let stamp = Date(timeIntervalSince1970: TimeInterval(time)).ISO8601Format()
    return [
      Self.mode(inode), pad(inode.linkCount, 3), pad(inode.userID, 5), pad(inode.groupID, 5), pad(inode.size, 12),
      stamp, hash, path,
    ].joined(separator: " ")
  }

  private static func word(_ kind: ExtInode.Kind) -> String {
    switch kind {
    case .fifo: "fifo"
    case .characterDevice: "character-device"
    case .directory: "directory"
    case .blockDevice: "block-device"
    case .regular: "file"
    case .symbolicLink: "symbolic-link"
    case .socket: "socket"
    case .unknown: "unknown"
    }
  }
}
#endif
