/// What a block is to the inode that has it.
package enum BlockRole: UInt8, Hashable, Sendable {
  /// Contents of a file or of a long symbolic link.
  case data = 1
  /// Names of a directory.
  case directory = 2
  /// Block numbers, or extents: what leads to contents.
  case map = 3
  /// Extended attributes.
  case attributes = 4
  /// Inodes; the number is that of the first.
  case inodeTable = 5
  case superblock = 6
  case descriptors = 7
}
