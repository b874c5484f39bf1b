import Foundation
import Testing

/// The script by which CI runs the tests must let nothing pass that fails.
@Suite("A group of tests is run, and what failed of it once more")
struct RunTestsTests {
  /// Stands in place of the tests: writes the records that Swift Testing would, of what the file `run1` says in its first run, `run2` in its second.
  private static let program = #"""
    echo "$*" >>asked
    run=$(($(wc -l <asked)))
    while [ "$1" != --event-stream-output-path ]; do shift; done
    exec 3>"$2"
    status=0
    record() { printf '{"version":0,"kind":"%s","payload":{"kind":"%s",%s}}\n' "$@" >&3; }
    ended() { record event testEnded '"testID":"'"$1"'","messages":[{"symbol":"'"$2"'","text":"\u2718"}]'; [ "$2" != fail ] || status=1; }
    record test suite '"id":"M.S"'
    while read -r what test; do
      case $what in
        killed) kill -9 $$ ;;
        half) printf '{"version":0,"ki' >&3; exit 1 ;;
        outside) record event issueRecorded '"messages":[{"symbol":"fail","text":"x"}]'; status=1 ;;
        *) ended "$test" "$what" ;;
      esac
    done <"run$run"
    [ "$status" -eq 0 ] || ended M.S fail
    record event runEnded '"messages":[]'
    exit "$status"

    """#

  /// What came of a group whose runs went like this: the script's exit status, what the program was asked each time, and what is told as unsteady.
  private func outcome(_ runs: String...) throws -> (status: Int32, asked: [String], unsteady: String) {
    let tests = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    let folder = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    for (index, run) in runs.enumerated() {
      try (run + "\n").write(to: folder.appending(path: "run\(index + 1)"), atomically: true, encoding: .utf8)
    }
    try Self.program.write(to: folder.appending(path: "program"), atomically: true, encoding: .utf8)
    let process = Process()
    process.executableURL = tests.deletingLastPathComponent().appending(path: "scripts/run-tests")
    process.arguments = ["group", "bash", "program", "--", "--skip", "x"]
    process.currentDirectoryURL = folder
    process.standardOutput = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    func text(_ path: String) -> String? {
      try? String(contentsOf: folder.appending(path: path), encoding: .utf8)
    }
    let asked = (text("asked") ?? "").split(separator: "\n").map { $0.components(separatedBy: "version 0 ").last! }
    return (process.terminationStatus, asked, text(".build/tests/unsteady") ?? "")
  }

  @Test("what passes runs once")
  func passes() throws {
    let outcome = try outcome("pass M.S/a()/A.swift:1:2\npassWithKnownIssue M.S/b()/A.swift:5:2")
    #expect(outcome.status == 0 && outcome.asked == ["--skip x"] && outcome.unsteady.isEmpty)
  }

  @Test("what fails and then passes is run again without the rest, and named")
  func unsteady() throws {
    let outcome = try outcome("pass M.S/a()/A.swift:1:2\nfail M.S/b()/A.swift:5:2", "pass M.S/b()/A.swift:5:2")
    #expect(outcome.status == 0)
    #expect(outcome.asked == ["--skip x", #"--filter ^M\.S/b\(\)/A\.swift:5:2$"#])
    #expect(outcome.unsteady.hasPrefix("UNSTEADY: M.S/b()/A.swift:5:2 (group group)"))
  }

  @Test(
    "everything else that is no success fails",
    arguments: [
      (["fail M.S/b()", "fail M.S/b()"], 2),
      // The second run must run what failed, and all of it.
      (["fail M.S/b()\nfail M.S/c()", "pass M.S/b()"], 2),
      (["fail M.S/b()", "pass M.S/c()"], 2),
      (["fail M.S/b()", "killed"], 2),
      // More than a few are no chance.
      (["fail M.S/b()\nfail M.S/c()\nfail M.S/d()"], 1),
      (["pass M.S/b()\nkilled"], 1), (["fail M.S/b()\nkilled"], 1), (["fail M.S/b()\nhalf"], 1),
      (["fail M.S/b()\noutside"], 1), (["outside"], 1),
    ])
  func fails(runs: [String], asked: Int) throws {
    let outcome = try runs.count == 1 ? outcome(runs[0]) : outcome(runs[0], runs[1])
    #expect(outcome.status == 1 && outcome.asked.count == asked && outcome.unsteady.isEmpty)
  }
}
