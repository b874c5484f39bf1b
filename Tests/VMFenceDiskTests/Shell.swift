#if Daemon
import Foundation

struct Failure: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// Runs a shell command to its end.
@discardableResult
func shell(_ command: String, allowFailure: Bool = false) throws -> (status: Int32, output: String) {
  let process = Process()
  process.executableURL = URL(filePath: "/bin/sh")
  process.arguments = ["-c", "PATH=/usr/sbin:/sbin:$PATH; exec 2>&1; \(command)"]
  let pipe = Pipe()
  process.standardOutput = pipe
  process.standardInput = FileHandle.nullDevice
  try process.run()
  let data = try pipe.fileHandleForReading.readToEnd() ?? Data()
  process.waitUntilExit()
  let output = String(decoding: data, as: UTF8.self)
  guard allowFailure || process.terminationStatus == 0 else { throw Failure("\(command): \(output)") }
  return (process.terminationStatus, output)
}

/// The built program, beside the test runner or the bundle that it was given.
func programPath(_ name: String) throws -> String {
  let beside = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
  let bundles = CommandLine.arguments.filter { $0.hasSuffix(".xctest") }
    .map { URL(filePath: $0).deletingLastPathComponent() }
  for folder in [beside] + bundles {
    let path = folder.appending(path: name).path
    if FileManager.default.isExecutableFile(atPath: path) { return path }
  }
  throw Failure("\(name) was not built")
}
#endif
