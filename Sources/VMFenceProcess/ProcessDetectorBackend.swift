internal import CLinux
internal import Glibc
import Synchronization
public import VMFenceCore

/// Detectors as processes of their own: without privileges, sandboxed, with bounded memory. A crash costs one domain's
/// detector for the time of a restart.
///
/// The kernel must be Linux 5.4 or later.
public struct ProcessDetectorBackend<Rules: CompiledRules>: DetectorBackend {
  private let executable: String
  private let options: DetectorProcessOptions
  private let images = ImageCache()

  /// `executable`: the detector's program, which calls `ProcessDetectorMain.run` with the inspector of
  ///   `Rules`; nil: `vmfence-detector` beside the running program.
  ///
  /// Raises this process's limit of open files to what it may be: each detector needs five descriptors here.
  public init(executable: String? = nil, options: DetectorProcessOptions = DetectorProcessOptions())
    throws(DetectorError)
  {
    let path = if let executable { executable } else { try Self.besideThisProgram("vmfence-detector") }
    // SAFETY: a terminated path.
    guard unsafe access(path, X_OK) == 0 else {
      throw DetectorError(
        .launchFailed, "cannot run the detector \(path.escapedForDisplay): \(ErrorText.last())",
        remedy: "install vmfence-detector beside this program, or name it in the configuration")
    }
    self.executable = path
    self.options = options
    _ = vmfence_raise_open_files()
  }

  /// The path of `name` in the directory of the running program.
  public static func besideThisProgram(_ name: String) throws(DetectorError) -> String {
    try VMFenceProcess.besideThisProgram(name)
  }

  public func makeChannel(_ configuration: DetectorChannelConfiguration) throws(DetectorError) -> DetectorChannel {
    try DetectorChannel.check(configuration)
    return try DetectorChannel(
      configuration: configuration,
      down: MemoryFile.makeRegion(byteCount: DetectorChannel.downBytes(configuration), writers: .maker),
      up: MemoryFile.makeRegion(byteCount: DetectorChannel.upBytes(configuration), writers: .anyone))
  }

  /// Starts a process. That the process accepted the rules shows in its answers: one that did not exits, and `status` says
  /// so.
  ///
  /// - Precondition: the channel was made by a process backend.
  public func launch(
    rules: Rules, channel: DetectorChannel, configuration: InspectorConfiguration
  ) throws(DetectorError) -> any DetectorHandle<Rules> {
    precondition(channel.down.descriptor >= 0 && channel.up.descriptor >= 0, "a channel made for threads")
    guard DetectorStart.hasRoom(for: configuration.settings) else {
      throw DetectorError(
        .launchFailed, "the inspector's settings have more than \(InspectorConfiguration.settingsCapacity) bytes",
        remedy: "leave out settings that have their default, or join networks of host-os-policy lists")
    }
    let image = try images.file(for: rules.image)
    let socket = try DetectorSocket.pair().attach(to: channel, ruleCount: rules.ruleCount)
    DetectorStart(configuration: configuration, options: options).write(to: channel.down)
    let descriptors = [channel.down.descriptor, channel.up.descriptor, socket.descriptor, image.descriptor.rawValue]
    let (pid, error) = spawn(descriptors)
    // Only the detector holds its end from here on: its death is an end of file here.
    _ = consume socket
    guard error == 0 else {
      channel.detach()
      throw DetectorError(
        .launchFailed, "cannot start the detector \(executable.escapedForDisplay): \(ErrorText.text(error))",
        remedy: "check the program, and the limits of processes and open files")
    }
    let pidfd = vmfence_pidfd_open(pid)
    guard pidfd >= 0 else {
      let reason = ErrorText.last()
      // Its socket closes with the channel's end of it, and it ends by itself.
      channel.detach()
      var status: Int32 = 0
      // SAFETY: the process was started above, and nobody else waits for it.
      unsafe _ = waitpid(pid, &status, 0)
      throw DetectorError(
        .launchFailed, "cannot watch detector process \(pid): \(reason)",
        remedy: "raise the limit of open files; the program must not ignore SIGCHLD")
    }
    return ProcessDetector<Rules>(
      channel: channel, processID: pid, pidfd: OwnedDescriptor(adopting: pidfd), image: image, images: images)
  }

  private func spawn(_ descriptors: [Int32]) -> (pid: Int32, error: Int32) {
    let path = executable
    return SpawnThread.spawn { pid in
      // SAFETY: a terminated path, as many descriptors as are named, and room for a number.
      unsafe vmfence_spawn(path, descriptors, Int32(descriptors.count), &pid)
    }
  }
}

/// The path of `name` in the directory of the running program.
package func besideThisProgram(_ name: String) throws(DetectorError) -> String {
  let room = Int(PATH_MAX)
  // SAFETY: `count` is what was written.
  let path = unsafe [UInt8](unsafeUninitializedCapacity: room) { buffer, count in
    // SAFETY: at most `room` bytes are written, and as many as are said are.
    unsafe buffer.withMemoryRebound(to: CChar.self) { characters in
      guard let start = characters.baseAddress else { return }
      count = max(0, unsafe readlink("/proc/self/exe", start, room))
    }
  }
  guard path.count < room, let slash = path.lastIndex(of: UInt8(ascii: "/")) else {
    throw DetectorError(
      .launchFailed, "cannot find the running program's directory: \(ErrorText.last())",
      remedy: "mount /proc, or name the detector's path in the configuration")
  }
  return String(decoding: path[...slash], as: UTF8.self) + name
}

/// A rule image in a sealed memory file, kept while any detector uses it.
final class ImageFile: Sendable {
  /// Keeps the image, and so its identity, for as long as it is known by it.
  let image: RuleImage
  let descriptor: OwnedDescriptor

  init(image: RuleImage) throws(DetectorError) {
    self.image = image
    descriptor = try MemoryFile.makeImage(image)
  }
}

/// One memory file for each image in use, however many detectors share it.
final class ImageCache: Sendable {
  private struct Entry {
    weak var file: ImageFile?
  }

  private let files = Mutex<[ObjectIdentifier: Entry]>([:])

  func file(for image: RuleImage) throws(DetectorError) -> ImageFile {
    let key = ObjectIdentifier(image)
    if let known = files.withLock({ $0[key]?.file }) { return known }
    let made = try ImageFile(image: image)
    return files.withLock { files in
      if let known = files[key]?.file { return known }
      files = files.filter { $0.value.file != nil }
      files[key] = Entry(file: made)
      return made
    }
  }
}
