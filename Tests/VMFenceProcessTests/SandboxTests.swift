import Glibc
import TestSupport
import Testing
import ToyEngine
import VMFenceCore
import VMFenceProcess

@Suite("A detector process's sandbox", .serialized)
struct SandboxTests {
  let backend: ProcessDetectorBackend<ToyRules>

  init() throws {
    backend = try Self.makeBackend(DetectorProcessOptions())
  }

  private static func makeBackend(_ options: DetectorProcessOptions) throws -> ProcessDetectorBackend<ToyRules> {
    try ProcessDetectorBackend(
      executable: ProcessDetectorBackend<ToyRules>.besideThisProgram("test-detector"), options: options)
  }

  /// What the inspector got when it tried.
  private func attempt(_ action: ToyRules.Action, _ backend: ProcessDetectorBackend<ToyRules>? = nil) throws -> UInt64?
  {
    let backend = backend ?? self.backend
    let channel = try backend.makeChannel(DetectorChannelConfiguration(packetRingBytes: 1 << 20))
    let process = try backend.launch(
      rules: ToyRules([(action, 1)]), channel: channel, configuration: InspectorConfiguration())
    defer { process.kill() }
    _ = channel.send([1])
    let answer = try channel.collectAll().first?.alerts.first
    if answer == nil { try eventually("the detector's status") { process.status == .crashed(signal: SIGSYS) } }
    let words = answer?.split(separator: " ") ?? []
    return words.firstIndex(of: "flow").flatMap { UInt64(words[$0 + 1]) }
  }

  @Test(
    "denies files, sockets, signals and executable memory",
    arguments: [ToyRules.Action.openFile, .openSocket, .signalParent, .executableMemory])
  func denies(action: ToyRules.Action) throws {
    #expect(try attempt(action) == UInt64(EPERM))
  }

  @Test("kills a detector that would start a program")
  func killsAtSpawn() throws {
    #expect(try attempt(.fork) == nil)
  }

  @Test("allows executable memory when told so, for PCRE2's JIT")
  func allowsExecutableMemory() throws {
    #expect(try attempt(.executableMemory, Self.makeBackend(DetectorProcessOptions(allowsExecutableMemory: true))) == 0)
  }

  @Test("bounds private memory")
  func boundsMemory() throws {
    let mebibytes = try #require(
      try attempt(.allocate, Self.makeBackend(DetectorProcessOptions(memoryLimit: 64 << 20))))
    #expect(mebibytes > 16 && mebibytes < 64)
  }

  @Test("leaves no capability, no root and no new privilege, and few descriptors")
  func privileges() throws {
    let channel = try backend.makeChannel(DetectorChannelConfiguration())
    let handle = try backend.launch(rules: ToyRules([]), channel: channel, configuration: InspectorConfiguration())
    defer { handle.kill() }
    _ = channel.send([1])
    #expect(try channel.collectAll().count == 1)
    let process = try #require(handle as? ProcessDetector<ToyRules>)
    let status = try textFile("/proc/\(process.processID)/status")
    func field(_ name: String) -> [Substring] {
      status.split(separator: "\n").first { $0.hasPrefix(name + ":") }?.split(separator: "\t").dropFirst().map { $0 }
        ?? []
    }
    #expect(!field("Uid").contains("0") && !field("Gid").contains("0"))
    #expect(field("CapEff") == ["0000000000000000"] && field("CapPrm") == ["0000000000000000"])
    #expect(field("NoNewPrivs") == ["1"])
    #expect(field("Seccomp") == ["2"])
  }
}

/// A small file as text.
func textFile(_ path: String) throws -> String {
  // SAFETY: a terminated path.
  let descriptor = unsafe open(path, O_RDONLY)
  try #require(descriptor >= 0, "cannot open \(path): error \(errno)")
  defer { close(descriptor) }
  var text: [UInt8] = []
  var buffer = [UInt8](repeating: 0, count: 65_536)
  while true {
    // SAFETY: at most the array's length is written.
    let count = unsafe buffer.withUnsafeMutableBytes { unsafe read(descriptor, $0.baseAddress, $0.count) }
    guard count > 0 else { break }
    text += buffer[..<count]
  }
  return String(decoding: text, as: UTF8.self)
}
