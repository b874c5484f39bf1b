internal import Glibc
import VMFenceCore

/// How soon the kernel writes to disk what programs wrote. The host sees a change when it reaches the disk, and not before.
///
/// What the kernel had before is kept in a `WriteBackRecord`, too: a program that is killed puts nothing back, so the next one does.
struct WriteBack {
  static let longest = 60
  /// Both are needed: how old what was written may become, and how often somebody looks.
  static let names = ["dirty_expire_centisecs", "dirty_writeback_centisecs"]

  /// nil: nothing can be kept, or need be.
  private let folder: WriteBackFolder?
  private var settings: [WriteBackRecord.Setting] = []

  /// Puts back what a program that was killed left shortened, and then has the kernel wait so many seconds at the most. What is shorter already stays.
  ///
  /// - `seconds`: nil: only the first of it.
  /// - Throws: the kernel's settings cannot be read or written. A record that cannot be kept is only said.
  init(seconds: Int?) throws(GuestCommand.Failure) {
    do throws(GuestCommand.Failure) { folder = try WriteBackFolder.open(makes: seconds != nil) } catch {
      folder = nil
      Self.say("\(error.diagnostic); what the kernel's write-back was is not kept there")
    }
    if let folder { Self.putBackLeftover(folder) }
    guard let seconds else { return }
    for name in Self.names {
      let now = try Self.value(of: name)
      // Nobody looks at all when that is zero.
      if now == 0 || now > seconds * 100 { settings.append(.init(name: name, before: now, ours: seconds * 100)) }
    }
    guard !settings.isEmpty else { return }
    if let folder, let boot = WriteBackRecord.currentBoot {
      // Before anything is set: there is no moment in which being killed loses what was.
      do throws(GuestCommand.Failure) { try folder.write(WriteBackRecord(boot: boot, settings: settings)) } catch {
        Self.say("\(error.diagnostic); if this program is killed, the kernel's write-back stays shortened")
      }
    }
    for setting in settings where !Self.set(setting.name, to: setting.ours) {
      let number = errno
      restore()
      throw GuestCommand.Failure(
        number == EACCES || number == EPERM ? 77 : 69,
        "\(Self.path(setting.name)) cannot be written: \(describeError(number))",
        remedy: "run it as root, or without --write-back")
    }
  }

  /// As it was before.
  func restore() {
    Self.putBack(settings)
    folder?.removeRecord()
  }

  private static func putBackLeftover(_ folder: WriteBackFolder) {
    do throws(GuestCommand.Failure) {
      guard let record = try folder.record() else { return }
      // Of another boot nothing is left, even where the folder is.
      if record.boot == WriteBackRecord.currentBoot { putBack(record.settings) }
    } catch { say("\(error.diagnostic); the kernel's write-back is taken as it is") }
    folder.removeRecord()
  }

  /// What somebody else has set since then stays.
  private static func putBack(_ settings: [WriteBackRecord.Setting]) {
    for setting in settings where (try? value(of: setting.name)) == setting.ours {
      if !set(setting.name, to: setting.before) {
        say("\(path(setting.name)) cannot be written: \(describeError(errno)); it stays \(setting.ours)")
      }
    }
  }

  private static func path(_ name: String) -> String { "/proc/sys/vm/" + name }

  /// In hundredths of a second.
  private static func value(of name: String) throws(GuestCommand.Failure) -> Int {
    let text = String(decoding: try Input.read(path(name), atMost: 64), as: UTF8.self)
    guard let value = Int(text.prefix { $0 != "\n" }) else {
      throw GuestCommand.Failure(69, "\(path(name)) holds no number")
    }
    return value
  }

  private static func set(_ name: String, to number: Int) -> Bool {
    // SAFETY: open(2) reads the path up to its zero.
    let descriptor = unsafe open(path(name), O_WRONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    return Output.write("\(number)\n", to: descriptor)
  }

  private static func say(_ text: String) { Output.write("vmfence-guest: \(text)\n", to: 2) }
}
