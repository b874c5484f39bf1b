/// What of a protected file is of interest: the attributes and groups of AIDE (aide.conf(5)), as far as a disk shows them.
public struct FileAttributes: OptionSet, Hashable, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// `p`: type and permissions.
  public static let permissions = FileAttributes(rawValue: 1 << 0)
  /// `i`: the inode's number.
  public static let inode = FileAttributes(rawValue: 1 << 1)
  /// `n`: how many names it has.
  public static let links = FileAttributes(rawValue: 1 << 2)
  /// `u`
  public static let user = FileAttributes(rawValue: 1 << 3)
  /// `g`
  public static let group = FileAttributes(rawValue: 1 << 4)
  /// `s`: size, and contents as far as writes show them.
  public static let size = FileAttributes(rawValue: 1 << 5)
  /// `S`: the size may grow; only other changes of contents are told.
  public static let growingSize = FileAttributes(rawValue: 1 << 6)
  /// `m`: the time of the last modification.
  public static let modificationTime = FileAttributes(rawValue: 1 << 7)
  /// `acl`
  public static let accessControl = FileAttributes(rawValue: 1 << 8)
  /// `xattrs`
  public static let extendedAttributes = FileAttributes(rawValue: 1 << 9)
  /// `sha256`: each change of contents is told with the hash before and after. Costs a reading of the file.
  public static let sha256 = FileAttributes(rawValue: 1 << 10)
  /// `l`: the target of a symbolic link.
  public static let target = FileAttributes(rawValue: 1 << 11)
  /// `read`: reads that the guest's cache did not answer. Not one of AIDE's.
  public static let reads = FileAttributes(rawValue: 1 << 12)

  /// `content`: what is written is handed to rules (`ContentInspection`). Costs a reading of it. Not one of AIDE's.
  public static let content = FileAttributes(rawValue: 1 << 13)

  /// `X`: what is beside the mode bits.
  public static let extra: FileAttributes = [.accessControl, .extendedAttributes]
  /// `L`: who may do what; contents may change.
  public static let log: FileAttributes = [.permissions, .target, .inode, .links, .user, .group, .extra]
  /// `>`: a log that only grows.
  public static let growingLog: FileAttributes = [
    .permissions, .target, .user, .group, .inode, .links, .growingSize, .extra,
  ]
  /// Everything but hashes and reads: what a rule has when it says nothing.
  public static let standard: FileAttributes = [.log, .size, .modificationTime]
  /// `R`: everything but reads and `content`.
  public static let readOnly: FileAttributes = [.standard, .sha256]

  private static let names: [(String, FileAttributes)] = [
    ("p", .permissions), ("i", .inode), ("n", .links), ("u", .user), ("g", .group), ("s", .size), ("S", .growingSize),
    ("m", .modificationTime), ("acl", .accessControl), ("xattrs", .extendedAttributes), ("sha256", .sha256),
    ("l", .target), ("read", .reads), ("content", .content), ("X", .extra), ("L", .log), (">", .growingLog),
    ("R", .readOnly), ("E", []),
  ]

  /// Reads attributes and groups joined by `+` and `-`, from the left: `R+read`, `p+u+g`, `R-m`.
  ///
  /// - Throws: `badPattern`, naming the word that is none.
  public init(_ text: String) throws(IntegrityError) {
    self = []
    var isAdded = true
    var word = ""
    func take(_ result: inout FileAttributes) throws(IntegrityError) {
      guard let found = Self.names.first(where: { $0.0 == word })?.1 else {
        throw IntegrityError(
          .badPattern, "`\(word.escapedForDisplay)` is no attribute of a file",
          remedy: "use \(Self.names.map(\.0).joined(separator: ", ")), joined by + or -")
      }
      if isAdded { result.formUnion(found) } else { result.subtract(found) }
    }
    for character in text {
      guard character == "+" || character == "-" else {
        word.append(character)
        continue
      }
      try take(&self)
      isAdded = character == "+"
      word = ""
    }
    try take(&self)
  }
}
