internal import Glibc
import VMFenceCore

/// How soon the kernel writes to disk what programs wrote. The host sees a change when it reaches the disk, and not before.
struct WriteBack {
  static let longest = 60
  /// Both are needed: how old what was written may become, and how often somebody looks.
  private static let files = ["/proc/sys/vm/dirty_expire_centisecs", "/proc/sys/vm/dirty_writeback_centisecs"]

  private var before: [(file: String, centiseconds: Int)] = []

  /// Has it wait so many seconds at the most. What is shorter already stays.
  init(seconds: Int) throws(GuestCommand.Failure) {
    for file in Self.files {
      let text = String(decoding: try Input.read(file, atMost: 64), as: UTF8.self)
      guard let now = Int(text.prefix { $0 != "\n" }) else { throw GuestCommand.Failure(69, "\(file) holds no number") }
      // Nobody looks at all when that is zero.
      guard now == 0 || now > seconds * 100 else { continue }
      guard Self.write(seconds * 100, to: file) else {
        let number = errno
        restore()
        throw GuestCommand.Failure(
          number == EACCES || number == EPERM ? 77 : 69, "\(file) cannot be written: \(describeError(number))",
          remedy: "run it as root, or without --write-back")
      }
      before.append((file, now))
    }
  }

  /// As it was before.
  func restore() {
    for (file, centiseconds) in before { _ = Self.write(centiseconds, to: file) }
  }

  private static func write(_ number: Int, to file: String) -> Bool {
    // SAFETY: open(2) reads the path up to its zero.
    let descriptor = unsafe open(file, O_WRONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    return Output.write("\(number)\n", to: descriptor)
  }
}
