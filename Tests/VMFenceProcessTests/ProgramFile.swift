import Foundation
import Testing

/// Writes a script that can be run at once.
///
/// By another process: one that this process starts meanwhile, for another test, would have the file open for writing until it runs, and such a file cannot be run.
func writeProgram(_ script: String, to path: String) throws {
  let writer = Process()
  writer.executableURL = URL(filePath: "/bin/sh")
  writer.arguments = ["-c", #"printf %s "$1" >"$2" && chmod 700 "$2""#, "sh", script, path]
  try writer.run()
  writer.waitUntilExit()
  #expect(writer.terminationStatus == 0)
}
