internal import Glibc
package import VMFenceCore

/// What a detector process is told when it starts, in the down region's control page (which it maps read-only): not as
/// arguments, because those are shown to every user of the host and the hash key is a secret.
///
/// ```
/// 1024   magic and version   u64
/// 1032   flow capacity       u64
/// 1040   hash key            u64, u64
/// 1056   memory limit        u64   bytes
/// 1064   flags               u64   bit 0 verify checksums, 1 inline, 2 executable memory, 3 keep standard error
/// 1072   settings' length    u64   bytes that follow: names and values in turn, each a length (u16) and UTF-8
/// ```
package struct DetectorStart: Equatable, Sendable {
  package var configuration: InspectorConfiguration
  package var options: DetectorProcessOptions

  /// Changes with the layout of anything that lies in shared memory: a detector of another build refuses to start.
  private static let magic: UInt64 = 0x564D_4645_4E43_4503
  private static let at = RingLayout.startParameters

  package init(configuration: InspectorConfiguration, options: DetectorProcessOptions) {
    self.configuration = configuration
    self.options = options
  }

  package func write(to region: SharedRegion) {
    let page = region.area(0, count: RingLayout.controlBytes)
    let flags: [Bool] = [
      configuration.verifiesChecksums, configuration.isInline, options.allowsExecutableMemory,
      options.keepsStandardError,
    ]
    page.store(Self.magic, at: Self.at)
    page.store(UInt64(configuration.flowCapacity), at: Self.at + 8)
    page.store(configuration.hashKeyLow, at: Self.at + 16)
    page.store(configuration.hashKeyHigh, at: Self.at + 24)
    page.store(UInt64(options.memoryLimit), at: Self.at + 32)
    page.store(
      flags.enumerated().reduce(0) { $0 | ($1.element ? 1 << UInt64($1.offset) : 0) } as UInt64, at: Self.at + 40)
    let settings = Self.encode(configuration.settings)
    precondition(settings.count <= InspectorConfiguration.settingsCapacity, "settings that were not measured")
    page.store(UInt64(settings.count), at: Self.at + 48)
    for (index, byte) in settings.enumerated() { page.store(byte, at: Self.at + 56 + index) }
  }

  /// Whether the settings have room in the control page.
  package static func hasRoom(for settings: [String: String]) -> Bool {
    encode(settings).count <= InspectorConfiguration.settingsCapacity
  }

  private static func encode(_ settings: [String: String]) -> [UInt8] {
    var bytes: [UInt8] = []
    for (name, value) in settings.sorted(by: { $0.key < $1.key }) {
      for text in [name, value] {
        let length = text.utf8.count
        bytes += [UInt8(truncatingIfNeeded: length), UInt8(truncatingIfNeeded: length >> 8)] + text.utf8
      }
    }
    return bytes
  }

  /// nil when the texts do not end where the last of them does, or are not pairs.
  private static func decodeSettings(_ bytes: [UInt8]) -> [String: String]? {
    var texts: [String] = []
    var rest = bytes[...]
    while !rest.isEmpty {
      guard rest.count >= 2 else { return nil }
      let length = Int(rest[rest.startIndex]) | Int(rest[rest.startIndex + 1]) << 8
      rest = rest.dropFirst(2)
      guard length <= rest.count else { return nil }
      texts.append(String(decoding: rest.prefix(length), as: UTF8.self))
      rest = rest.dropFirst(length)
    }
    guard texts.count.isMultiple(of: 2) else { return nil }
    let pairs = stride(from: 0, to: texts.count, by: 2).map { (texts[$0], texts[$0 + 1]) }
    return Dictionary(pairs, uniquingKeysWith: { $1 })
  }

  /// nil when the region was made by another version.
  package init?(from region: SharedRegion) {
    let page = region.area(0, count: RingLayout.controlBytes)
    guard page.load(Self.at, as: UInt64.self) == Self.magic,
      let flowCapacity = Int(exactly: page.load(Self.at + 8, as: UInt64.self)),
      let memoryLimit = Int(exactly: page.load(Self.at + 32, as: UInt64.self)),
      let length = Int(exactly: page.load(Self.at + 48, as: UInt64.self)),
      length <= InspectorConfiguration.settingsCapacity,
      let settings = Self.decodeSettings((0..<length).map { page.load(Self.at + 56 + $0, as: UInt8.self) })
    else { return nil }
    let flags = page.load(Self.at + 40, as: UInt64.self)
    configuration = InspectorConfiguration(
      verifiesChecksums: flags & 1 != 0, isInline: flags & 2 != 0, flowCapacity: flowCapacity,
      hashKey: (page.load(Self.at + 16, as: UInt64.self), page.load(Self.at + 24, as: UInt64.self)),
      settings: settings)
    options = DetectorProcessOptions(
      memoryLimit: memoryLimit, allowsExecutableMemory: flags & 4 != 0, keepsStandardError: flags & 8 != 0)
  }
}

/// How detector processes are run.
public struct DetectorProcessOptions: Hashable, Sendable {
  /// Bytes of private memory a detector may have at the most; what exceeds it is refused, and the detector ends. Rings and
  /// rule images are shared and do not count.
  public var memoryLimit: Int
  /// Whether a detector may make memory executable, which PCRE2's JIT needs. Off is safer.
  public var allowsExecutableMemory: Bool
  /// Whether a detector keeps the supervisor's standard error after it has started. Only for debugging: what a detector
  /// that was taken over writes there reaches a terminal unescaped. Otherwise, only its start writes there.
  public var keepsStandardError: Bool

  public init(
    memoryLimit: Int = 512 << 20, allowsExecutableMemory: Bool = false, keepsStandardError: Bool = false
  ) {
    self.memoryLimit = memoryLimit
    self.allowsExecutableMemory = allowsExecutableMemory
    self.keepsStandardError = keepsStandardError
  }
}

/// The descriptors that a detector process finds open, after the standard ones.
enum DetectorDescriptor {
  static let down: Int32 = 3
  static let up: Int32 = 4
  static let socket: Int32 = 5
  static let image: Int32 = 6
}

/// The control message that carries a rule image's descriptor: its kind, three zero bytes, the generation.
enum RulesMessage {
  static func encode(generation: UInt32) -> UInt64 { UInt64(DetectorMessage.rules) | UInt64(generation) << 32 }

  static func generation(_ message: UInt64) -> UInt32? {
    UInt8(truncatingIfNeeded: message) == DetectorMessage.rules ? UInt32(message >> 32) : nil
  }
}
