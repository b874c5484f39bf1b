import Glibc
import TestSupport
import Testing
import ToyEngine
import VMFenceCore
import VMFenceProcess

@Suite("The supervisor's death", .serialized)
struct SupervisorDeathTests {
  @Test("is the death of its detectors, be they idle, hanging or suspended")
  func detectorsDieToo() throws {
    let program = try ProcessDetectorBackend<ToyRules>.besideThisProgram("test-detector")
    let (supervisor, output) = try start(program, "supervise")
    defer { close(output) }
    var text: [UInt8] = []
    while !text.contains(UInt8(ascii: "\n")) {
      var byte: UInt8 = 0
      // SAFETY: one byte.
      try #require(unsafe read(output, &byte, 1) == 1)
      text.append(byte)
    }
    let detectors = String(decoding: text.dropLast(), as: UTF8.self).split(separator: " ").compactMap { Int32($0) }
    try #require(detectors.count == 3)
    for detector in detectors { #expect(!isGone(detector)) }
    #expect(kill(supervisor, SIGKILL) == 0)
    var status: Int32 = 0
    // SAFETY: a child of ours.
    #expect(unsafe waitpid(supervisor, &status, 0) == supervisor)
    for detector in detectors { try eventually("detector \(detector) is gone") { isGone(detector) } }
  }

  /// Whether a process is no more, or only waits for its new parent to notice.
  private func isGone(_ process: Int32) -> Bool {
    guard let stat = try? textFile("/proc/\(process)/stat") else { return true }
    return stat.contains(") Z ") || stat.contains(") X ")
  }

  /// Starts a program whose standard output can be read.
  private func start(_ program: String, _ argument: String) throws -> (process: pid_t, output: Int32) {
    var ends: [Int32] = [-1, -1]
    // SAFETY: room for two descriptors.
    let made = unsafe pipe(&ends)
    try #require(made == 0)
    var actions = unsafe posix_spawn_file_actions_t()
    // SAFETY: initialised here, destroyed below; the strings live as long as the call.
    unsafe posix_spawn_file_actions_init(&actions)
    unsafe posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
    unsafe posix_spawn_file_actions_addclose(&actions, ends[0])
    unsafe posix_spawn_file_actions_addclose(&actions, ends[1])
    defer {
      unsafe posix_spawn_file_actions_destroy(&actions)
      close(ends[1])
    }
    var process: pid_t = 0
    let error = unsafe program.withCString { path in
      unsafe argument.withCString { word in
        let arguments = unsafe [UnsafeMutablePointer(mutating: path), UnsafeMutablePointer(mutating: word), nil]
        return unsafe posix_spawn(&process, path, &actions, nil, arguments, environ)
      }
    }
    try #require(error == 0)
    return (process, ends[0])
  }
}
