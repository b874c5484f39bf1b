/// The feature bits of a superblock that change how a file system is read.
///
/// Source: `EXT4_FEATURE_*` in `fs/ext4/ext4.h` of Linux.
public struct ExtFeatures: Hashable, Sendable {
  public let compatible: UInt32
  public let incompatible: UInt32
  public let readOnly: UInt32

  public init(compatible: UInt32, incompatible: UInt32, readOnly: UInt32) {
    self.compatible = compatible
    self.incompatible = incompatible
    self.readOnly = readOnly
  }

  /// There is a journal: metadata reach their place later than the disk shows it.
  public var hasJournal: Bool { compatible & 0x4 != 0 }
  public var hasSparseSuper2: Bool { compatible & 0x200 != 0 }
  public var hasFastCommit: Bool { compatible & 0x400 != 0 }
  public var hasOrphanFile: Bool { compatible & 0x1000 != 0 }

  /// Directory entries carry the type of the file in a byte of their own.
  public var hasFileTypes: Bool { incompatible & 0x2 != 0 }
  /// The journal holds what is not at its place yet.
  public var needsRecovery: Bool { incompatible & 0x4 != 0 }
  public var hasMetaGroups: Bool { incompatible & 0x10 != 0 }
  public var is64Bit: Bool { incompatible & 0x80 != 0 }
  public var hasFlexibleGroups: Bool { incompatible & 0x200 != 0 }
  public var hasAttributeInodes: Bool { incompatible & 0x400 != 0 }
  public var hasChecksumSeed: Bool { incompatible & 0x2000 != 0 }
  public var hasLargeDirectories: Bool { incompatible & 0x4000 != 0 }
  public var hasCasefolding: Bool { incompatible & 0x20000 != 0 }

  public var hasSparseSuper: Bool { readOnly & 0x1 != 0 }
  public var hasHugeFiles: Bool { readOnly & 0x8 != 0 }
  public var hasGroupChecksums: Bool { readOnly & 0x10 != 0 }
  public var hasQuota: Bool { readOnly & 0x100 != 0 }
  public var hasClusters: Bool { readOnly & 0x200 != 0 }
  public var hasMetadataChecksums: Bool { readOnly & 0x400 != 0 }
  public var hasProjects: Bool { readOnly & 0x2000 != 0 }

  /// Incompatible features that are followed. The others change the meaning of what is read, so nothing is guessed.
  private static let followed: UInt32 = 0x3_E7D6

  /// The names of incompatible features that are not followed; empty when the file system can be read.
  public var notFollowed: [String] { Self.names(incompatible & ~Self.followed, Self.incompatibleNames) }

  /// Features that nobody here knows and that leave the reading of a file system as it is.
  public var unknown: [String] {
    Self.names(compatible & ~0x1FFF, []).map { "compatible " + $0 }
      + Self.names(readOnly & ~0x1_FFFF, []).map { "read-only compatible " + $0 }
  }

  /// All features by the names that e2fsprogs gives them, for people.
  public var names: [String] {
    Self.names(compatible, Self.compatibleNames) + Self.names(incompatible, Self.incompatibleNames)
      + Self.names(readOnly, Self.readOnlyNames)
  }

  private static func names(_ bits: UInt32, _ table: [(UInt32, String)]) -> [String] {
    var rest = bits
    var result: [String] = []
    for (bit, name) in table where rest & bit != 0 {
      result.append(name)
      rest &= ~bit
    }
    if rest != 0 { result.append("0x" + String(rest, radix: 16)) }
    return result
  }

  private static let compatibleNames: [(UInt32, String)] = [
    (0x1, "dir_prealloc"), (0x2, "imagic_inodes"), (0x4, "has_journal"), (0x8, "ext_attr"), (0x10, "resize_inode"),
    (0x20, "dir_index"), (0x40, "lazy_bg"), (0x100, "snapshot_bitmap"), (0x200, "sparse_super2"),
    (0x400, "fast_commit"), (0x800, "stable_inodes"), (0x1000, "orphan_file"),
  ]
  private static let incompatibleNames: [(UInt32, String)] = [
    (0x1, "compression"), (0x2, "filetype"), (0x4, "needs_recovery"), (0x8, "journal_dev"), (0x10, "meta_bg"),
    (0x40, "extent"), (0x80, "64bit"), (0x100, "mmp"), (0x200, "flex_bg"), (0x400, "ea_inode"), (0x1000, "dirdata"),
    (0x2000, "metadata_csum_seed"), (0x4000, "large_dir"), (0x8000, "inline_data"), (0x10000, "encrypt"),
    (0x20000, "casefold"),
  ]
  private static let readOnlyNames: [(UInt32, String)] = [
    (0x1, "sparse_super"), (0x2, "large_file"), (0x4, "btree_dir"), (0x8, "huge_file"), (0x10, "uninit_bg"),
    (0x20, "dir_nlink"), (0x40, "extra_isize"), (0x80, "has_snapshot"), (0x100, "quota"), (0x200, "bigalloc"),
    (0x400, "metadata_csum"), (0x800, "replica"), (0x1000, "read-only"), (0x2000, "project"),
    (0x4000, "shared_blocks"), (0x8000, "verity"), (0x10000, "orphan_present"),
  ]
}
