#if Daemon
import Foundation
import TestSupport
import Testing
import VMFenceProcess

/// Runs the built vmfence-ref as a person would.
struct Program {
  struct Result {
    var status: Int32
    var output: String
    var errors: String
  }

  /// The folder of the package.
  static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()
  static let quickstart = root.appending(path: "Examples/quickstart")

  static func path(_ name: String) throws -> String {
    let beside = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
    // Beside the test runner, or beside the bundle that it was given.
    let bundles = CommandLine.arguments.filter { $0.hasSuffix(".xctest") }.map {
      URL(filePath: $0).deletingLastPathComponent()
    }
    for folder in [beside] + bundles {
      let path = folder.appending(path: name).path
      if FileManager.default.isExecutableFile(atPath: path) { return path }
    }
    throw MissingProgram(name: name)
  }

  struct MissingProgram: Error { var name: String }

  static func start(_ arguments: [String], in namespace: String? = nil, errors: Pipe, output: Pipe) throws -> Process {
    let process = Process()
    let program = try path("vmfence-ref")
    if let namespace {
      process.executableURL = URL(filePath: "/usr/sbin/ip")
      process.arguments = ["netns", "exec", namespace, program] + arguments
    } else {
      process.executableURL = URL(filePath: program)
      process.arguments = arguments
    }
    process.standardOutput = output
    process.standardError = errors
    process.standardInput = FileHandle.nullDevice
    try process.run()
    return process
  }

  /// What a process has started that lives, by the first 15 characters of the program's name.
  static func children(of parent: Int32, named name: String) throws -> [Int32] {
    // `ip netns exec` replaces itself by the program, so the process that was started is the daemon.
    let tasks = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(parent)/task")
    return tasks.flatMap { task -> [Int32] in
      let children = (try? String(contentsOfFile: "/proc/\(parent)/task/\(task)/children", encoding: .utf8)) ?? ""
      return children.split(separator: " ").compactMap { Int32($0) }
    }.filter { (try? String(contentsOfFile: "/proc/\($0)/comm", encoding: .utf8)) == name + "\n" }
  }

  /// Runs to the end. Outputs are small here: a pipe holds them.
  static func run(_ arguments: String...) throws -> Result { try run(arguments) }

  static func run(_ arguments: [String]) throws -> Result {
    let folder = try TemporaryFolder()
    let (outPath, errPath) = (folder.path("out"), folder.path("err"))
    for path in [outPath, errPath] { _ = FileManager.default.createFile(atPath: path, contents: nil) }
    let process = Process()
    process.executableURL = URL(filePath: try path("vmfence-ref"))
    process.arguments = arguments
    process.standardOutput = FileHandle(forWritingAtPath: outPath)
    process.standardError = FileHandle(forWritingAtPath: errPath)
    process.standardInput = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    return Result(
      status: process.terminationStatus, output: try String(contentsOfFile: outPath, encoding: .utf8),
      errors: try String(contentsOfFile: errPath, encoding: .utf8))
  }
}

/// A folder that goes with its owner.
final class TemporaryFolder {
  let url: URL

  init() throws {
    url = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(at: url) }

  func path(_ name: String) -> String { url.appending(path: name).path }

  /// A copy of the examples in which the programs that pause guests are there: here may be no libvirt.
  ///
  /// - Returns: the host's configuration.
  func copyExamples() throws -> String {
    try FileManager.default.copyItem(atPath: Program.root.appending(path: "Examples").path, toPath: path("Examples"))
    let host = path("Examples/host/host.yaml")
    let text = try String(contentsOfFile: host, encoding: .utf8)
    return try write("Examples/host/host.yaml", text.replacing("/usr/bin/virsh", with: "/bin/sh"))
  }

  func write(_ name: String, _ text: String) throws -> String {
    try text.write(toFile: path(name), atomically: true, encoding: .utf8)
    return path(name)
  }
}

/// The lines of a file that somebody may be writing. A reader can see a part of what one write(2) appends, since file systems show it page by page, so the
/// end of the last line is waited for.
func wholeLines(of path: String) throws -> [Substring] {
  var bytes = Data()
  try eventually("the end of the last line of \(path)") {
    bytes = try Data(contentsOf: URL(filePath: path))
    return bytes.isEmpty || bytes.last == UInt8(ascii: "\n")
  }
  return String(decoding: bytes, as: UTF8.self).split(separator: "\n")
}

/// One line of an EVE file.
struct EVELine: Decodable {
  struct Alert: Decodable {
    var signatureID: Int
    enum CodingKeys: String, CodingKey { case signatureID = "signature_id" }
  }
  struct Ours: Decodable {
    struct VM: Decodable { var name: String? }
    struct Platform: Decodable { var kind, message: String }
    var vm: VM?
    var platform: Platform?
    var ruleVerdict: String?
    var verdictFrom: String?

    enum CodingKeys: String, CodingKey {
      case vm, platform
      case ruleVerdict = "rule_verdict"
      case verdictFrom = "verdict_from"
    }
  }
  var timestamp: String
  var eventType: String
  var sourcePort: Int?
  var alert: Alert?
  var vmfence: Ours?

  enum CodingKeys: String, CodingKey {
    case timestamp, alert, vmfence
    case eventType = "event_type"
    case sourcePort = "src_port"
  }

  static func read(_ path: String) throws -> [EVELine] {
    try wholeLines(of: path).map { try JSONDecoder().decode(EVELine.self, from: Data($0.utf8)) }
  }
}
#endif
