internal import Glibc
import VMFenceCore

/// What the kernel's write-back was before this program shortened it, as a text that outlives the program, and not the kernel:
///
/// ```
/// vmfence-guest write-back 1
/// boot 6e5bb3ab-4bb1-46bd-b1f4-2ee7b0a93e4a
/// dirty_expire_centisecs 3000 100
/// dirty_writeback_centisecs 500 100
/// ```
/// The boot is the one that it holds for. Each line below names what was set, what it was before, and what this program set. Anything else is refused whole.
struct WriteBackRecord {
  struct Setting {
    /// One of `WriteBack.names`.
    var name: String
    /// In hundredths of a second, as the next.
    var before: Int
    var ours: Int
  }

  private static let title = "vmfence-guest write-back 1"

  var boot: String
  var settings: [Setting]

  init(boot: String, settings: [Setting]) { (self.boot, self.settings) = (boot, settings) }

  var text: String {
    "\(Self.title)\nboot \(boot)\n" + settings.map { "\($0.name) \($0.before) \($0.ours)\n" }.joined()
  }

  /// nil for anything that `text` is not.
  init?(text: String) {
    var lines = text.split(separator: "\n", omittingEmptySubsequences: false)[...]
    guard lines.popFirst() == Self.title[...], lines.popLast() == "",
      let boot = lines.popFirst()?.split(separator: " ", omittingEmptySubsequences: false), boot.count == 2,
      boot[0] == "boot", DomainUUID(boot[1]) != nil, lines.count <= WriteBack.names.count
    else { return nil }
    self.boot = String(boot[1])
    settings = []
    for line in lines {
      let words = line.split(separator: " ", omittingEmptySubsequences: false)
      guard words.count == 3, let name = WriteBack.names.first(where: { $0 == words[0] }),
        !settings.contains(where: { $0.name == name }), let before = Self.number(words[1]),
        let ours = Self.number(words[2])
      else { return nil }
      settings.append(Setting(name: name, before: before, ours: ours))
    }
  }

  /// What the kernel takes.
  private static func number(_ text: Substring) -> Int? {
    guard text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
    return Int32(text).map(Int.init)
  }

  /// nil: the kernel does not say which one it is.
  static var currentBoot: String? {
    guard let bytes = try? Input.read("/proc/sys/kernel/random/boot_id", atMost: 64) else { return nil }
    return DomainUUID(String(decoding: bytes, as: UTF8.self).prefix { $0 != "\n" })?.description
  }
}

/// Where the record lies. Nobody but this program's user may write there, or the record: otherwise it is not read. One program has it at a time, as long as that lives.
final class WriteBackFolder {
  static let path = "/run/vmfence-guest"
  private static let fileName = "write-back"
  private static let byteLimit = 512
  private static var file: SourcePlace { SourcePlace(file: path + "/" + fileName) }

  private let descriptor: Int32

  private init(_ descriptor: Int32) { self.descriptor = descriptor }

  deinit { close(descriptor) }

  /// - `makes`: if it is not there; otherwise that is nil.
  /// - Throws: others may write there; another program has it; it cannot be made.
  static func open(makes: Bool) throws(GuestCommand.Failure) -> WriteBackFolder? {
    let place = SourcePlace(file: path)
    // SAFETY: mkdir(2) reads the path up to its zero.
    if makes, unsafe mkdir(path, 0o700) != 0, errno != EEXIST { throw failure("made", at: place) }
    // SAFETY: open(2) reads the path up to its zero.
    let descriptor = unsafe Glibc.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
    if descriptor < 0, errno == ENOENT, !makes { return nil }
    guard descriptor >= 0 else { throw failure("opened", at: place) }
    let folder = WriteBackFolder(descriptor)
    guard isOurs(descriptor, S_IFDIR) else {
      throw GuestCommand.Failure(77, "others may write there", at: place, remedy: "remove it: it is made anew")
    }
    guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
      throw GuestCommand.Failure(69, "another vmfence-guest has it", at: place, remedy: "run one at a time")
    }
    return folder
  }

  /// Whether it is of this kind, this user's, and nobody else may write it.
  private static func isOurs(_ descriptor: Int32, _ kind: mode_t) -> Bool {
    var found = stat()
    // SAFETY: fstat(2) writes one structure, which lives during the call.
    guard unsafe fstat(descriptor, &found) == 0 else { return false }
    return found.st_mode & S_IFMT == kind && found.st_uid == geteuid() && found.st_mode & 0o022 == 0
  }

  private static func failure(_ verb: String, at place: SourcePlace) -> GuestCommand.Failure {
    let number = errno
    return GuestCommand.Failure(
      number == EACCES || number == EPERM || number == EROFS ? 77 : 66,
      "cannot be \(verb): \(describeError(number))", at: place)
  }

  /// What a program left; nil: nothing.
  ///
  /// - Throws: what is there is not to be trusted, or not to be understood.
  func record() throws(GuestCommand.Failure) -> WriteBackRecord? {
    // SAFETY: openat(2) reads the name up to its zero.
    let file = unsafe openat(descriptor, Self.fileName, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
    if file < 0, errno == ENOENT { return nil }
    guard file >= 0 else { throw Self.failure("read", at: Self.file) }
    defer { close(file) }
    guard Self.isOurs(file, S_IFREG) else {
      throw GuestCommand.Failure(77, "is no file that only this user may write", at: Self.file)
    }
    let bytes = try Input.read(file, at: Self.file, atMost: Self.byteLimit)
    guard bytes.count <= Self.byteLimit, let text = String(validating: bytes, as: UTF8.self),
      let record = WriteBackRecord(text: text)
    else { throw GuestCommand.Failure(65, "is not what this program writes", at: Self.file) }
    return record
  }

  /// In one step: whoever reads it finds the one before, or all of this one.
  func write(_ record: WriteBackRecord) throws(GuestCommand.Failure) {
    let fresh = Self.fileName + ".new"
    remove(fresh)
    // SAFETY: openat(2) reads the name up to its zero.
    let file = unsafe openat(descriptor, fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    guard file >= 0 else { throw Self.failure("written", at: Self.file) }
    defer { close(file) }
    // SAFETY: renameat(2) reads both names up to their zeros.
    guard Output.write(record.text, to: file), fsync(file) == 0,
      unsafe renameat(descriptor, fresh, descriptor, Self.fileName) == 0
    else {
      let failure = Self.failure("written", at: Self.file)
      remove(fresh)
      throw failure
    }
  }

  func removeRecord() { remove(Self.fileName) }

  private func remove(_ name: String) {
    // SAFETY: unlinkat(2) reads the name up to its zero.
    _ = unsafe unlinkat(descriptor, name, 0)
  }
}
