internal import CLinux
internal import Glibc
public import VMFenceCore

/// The whole of a detector program: `ProcessDetectorMain.run(SomeInspector.self)` is its `main.swift`.
public enum ProcessDetectorMain {
  /// Enters the sandbox, then inspects packets until the supervisor ends or wants it to. Starts nothing by itself: the
  /// descriptors must be those that a `ProcessDetectorBackend` passes.
  @inlinable
  public static func run<Inspector: PacketInspector & ~Copyable>(_: Inspector.Type) -> Never {
    DetectorSession.end(inspect(DetectorSession.begin(), Inspector.self))
  }

  @inlinable
  static func inspect<Inspector: PacketInspector & ~Copyable>(
    _ session: borrowing DetectorSession, _: Inspector.Type
  ) -> DetectorLoopEnd {
    do throws(RuleCompilationError) {
      var control = ProcessControl<Inspector.Rules>()
      let rules = try Inspector.Rules(image: session.takeImage())
      let inspector = try Inspector.make(rules: rules, configuration: session.configuration)
      return DetectorLoop.run(session.makeLoop(), inspector: inspector, control: &control)
    } catch {
      return .badRules(error.description)
    }
  }
}

/// What a detector process was given.
@usableFromInline
struct DetectorSession: ~Copyable {
  private let down: SharedRegion
  private let up: SharedRegion
  private let start: DetectorStart

  @usableFromInline
  var configuration: InspectorConfiguration { start.configuration }

  /// Maps what was passed, and enters the sandbox. Ends the process when that is not possible.
  @usableFromInline
  static func begin() -> DetectorSession {
    guard let downBytes = ringFileSize(DetectorDescriptor.down), let upBytes = ringFileSize(DetectorDescriptor.up)
    else {
      refuse("is started by VMFence's supervisor, not by hand", code: DetectorExitCode.usage)
    }
    do throws(DetectorError) {
      let down = try MemoryFile.map(
        OwnedDescriptor(adopting: DetectorDescriptor.down), byteCount: downBytes, isWritable: false)
      let up = try MemoryFile.map(
        OwnedDescriptor(adopting: DetectorDescriptor.up), byteCount: upBytes, isWritable: true)
      guard let start = DetectorStart(from: down), hasRings(down, upBytes) else {
        refuse("is of another version than its supervisor: install both from one build", code: DetectorExitCode.usage)
      }
      let session = DetectorSession(down: down, up: up, start: start)
      DetectorSandbox.enter(start.options, sharedBytes: downBytes + upBytes)
      return session
    } catch {
      refuse(error.description, code: DetectorExitCode.usage)
    }
  }

  /// A control page and at least a page more.
  private static func ringFileSize(_ descriptor: Int32) -> Int? {
    guard let size = MemoryFile.size(of: descriptor) else { return nil }
    return size >= RingLayout.controlBytes + 4096 && size <= 1 << 31 ? size : nil
  }

  /// Whether what lies between the control page and the state area is a power of two, in both regions.
  private static func hasRings(_ down: SharedRegion, _ upBytes: Int) -> Bool {
    let rest = RingLayout.controlBytes + DetectorLoop.stateBytes(down)
    return [down.byteCount, upBytes].allSatisfy { size in
      let ring = size - rest
      return rest >= RingLayout.controlBytes && ring >= 4096 && ring <= 1 << 30 && ring & (ring - 1) == 0
    }
  }

  @usableFromInline
  func takeImage() throws(RuleCompilationError) -> RuleImage {
    try DetectorImage.map(OwnedDescriptor(adopting: DetectorDescriptor.image))
  }

  /// The loop over the rings. What comes from here on is hostile.
  @usableFromInline
  func makeLoop() -> DetectorLoop {
    if !start.options.keepsStandardError { DetectorSandbox.leaveStandardError() }
    return DetectorLoop(down: down, up: up)
  }

  @usableFromInline
  static func end(_ reason: DetectorLoopEnd) -> Never {
    switch reason {
    case .stopped: _exit(0)
    case .badRules(let message): refuse("cannot use its rules: \(message)", code: DetectorExitCode.badRules)
    case .damaged: _exit(DetectorExitCode.damaged)
    }
  }

  static func refuse(_ message: String, code: Int32) -> Never {
    DetectorLog.write(message)
    _exit(code)
  }
}

enum DetectorImage {
  static func map(_ file: consuming OwnedDescriptor) throws(RuleCompilationError) -> RuleImage {
    do throws(DetectorError) {
      return try MemoryFile.mapImage(file)
    } catch {
      throw RuleCompilationError(.badImage, error.message, remedy: error.remedy)
    }
  }
}

enum DetectorLog {
  /// One line to standard error.
  static func write(_ message: String) {
    let line = Array("vmfence-detector: \(message.escapedForDisplay)\n".utf8)
    // SAFETY: the array's bytes are read.
    unsafe line.withUnsafeBytes { bytes in unsafe _ = Glibc.write(2, bytes.baseAddress, bytes.count) }
  }
}

/// A detector process's control: everything comes over the socket.
@usableFromInline
struct ProcessControl<Rules: CompiledRules>: DetectorControl, ~Copyable {
  private let socket = DetectorSocket(adopting: DetectorDescriptor.socket)
  /// Rule images that came before the first packet of their generation.
  private var pending: [(generation: UInt32, file: Int32)] = []

  @usableFromInline
  init() {}

  @usableFromInline
  mutating func checkpoint() -> Bool { true }

  @usableFromInline
  mutating func sleep() -> Bool {
    switch socket.wait(milliseconds: -1) {
    case .timedOut: return true
    case .gone: return false
    case .ready: break
    }
    while true {
      switch receive(waits: false) {
      case .message: continue
      case .nothing: return true
      case .end: return false
      }
    }
  }

  @usableFromInline
  mutating func ring() { socket.ring() }

  @usableFromInline
  mutating func takeRules(generation: UInt32) -> Rules? {
    while true {
      if let index = pending.firstIndex(where: { $0.generation == generation }) {
        for skipped in pending[..<index] { _ = close(skipped.file) }
        let file = OwnedDescriptor(adopting: pending[index].file)
        pending.removeFirst(index + 1)
        do throws(RuleCompilationError) {
          return try Rules(image: DetectorImage.map(file))
        } catch {
          DetectorSession.refuse("cannot use its new rules: \(error)", code: DetectorExitCode.badRules)
        }
      }
      if receive(waits: true) == .end { return nil }
    }
  }

  private enum Received { case message, nothing, end }

  /// Takes one message and keeps what it brought.
  private mutating func receive(waits: Bool) -> Received {
    var message: UInt64 = 0
    var file: Int32 = -1
    // SAFETY: eight bytes at the most are written, and one descriptor.
    let count = unsafe withUnsafeMutableBytes(of: &message) { bytes in
      unsafe vmfence_receive_descriptor(socket.descriptor, bytes.baseAddress, bytes.count, &file, waits ? 1 : 0)
    }
    if count == 0 { return .end }
    if count < 0 { return errno == EAGAIN || errno == EINTR ? .nothing : .end }
    if file >= 0 {
      if count == 8, let generation = RulesMessage.generation(message) {
        pending.append((generation, file))
      } else {
        _ = close(file)
      }
    }
    return .message
  }
}
