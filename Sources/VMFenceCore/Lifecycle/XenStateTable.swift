/// From what Xen says of a domain (flags, shutdown reason) and what the toolstack calls it, to what the lifecycle needs.
/// The one place that knows.
public enum XenStateTable {
  /// The flags of `xc_domaininfo_t` (`XEN_DOMINF_*`, xen/include/public/domctl.h), in the order in which `xl list` prints
  /// them. A value of its own: the bits are not Xen's.
  public struct Flags: OptionSet, Hashable, Sendable, BitwiseCopyable {
    public var rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    public static let running = Flags(rawValue: 1)
    public static let blocked = Flags(rawValue: 2)
    public static let paused = Flags(rawValue: 4)
    public static let shutdown = Flags(rawValue: 8)
    /// Shut down because it crashed. Xen has no flag for it: tools derive it from the shutdown reason.
    public static let crashed = Flags(rawValue: 16)
    public static let dying = Flags(rawValue: 32)

    private static let letters: [(UInt8, Flags)] = [
      (UInt8(ascii: "r"), .running), (UInt8(ascii: "b"), .blocked), (UInt8(ascii: "p"), .paused),
      (UInt8(ascii: "s"), .shutdown), (UInt8(ascii: "c"), .crashed), (UInt8(ascii: "d"), .dying),
    ]

    /// Reads the State column of `xl list`: six characters, each its place's letter or a hyphen; nil for anything else.
    public init?(_ text: some StringProtocol) {
      self = []
      var place = 0
      for byte in text.utf8 {
        guard place < Self.letters.count else { return nil }
        if byte == Self.letters[place].0 {
          insert(Self.letters[place].1)
        } else if byte != UInt8(ascii: "-") {
          return nil
        }
        place += 1
      }
      guard place == Self.letters.count else { return nil }
    }
  }

  /// Why a domain shut down: `SHUTDOWN_*` of xen/include/public/sched.h.
  public enum ShutdownReason: UInt8, Hashable, Sendable, CaseIterable {
    case poweroff = 0
    case reboot = 1
    /// Saved, checkpointed or migrating.
    case suspend = 2
    case crash = 3
    case watchdog = 4
    /// The guest starts another kernel in place (kexec): the same domain number goes on.
    case softReset = 5
    /// Not shut down, or nothing is said about it.
    case none = 255
  }

  /// The run state for `flags` and `reason`. Of several flags the one nearest to the end wins; a reason means nothing without the flag
  /// `shutdown`.
  public static func runState(_ flags: Flags, _ reason: ShutdownReason = .none) -> RunState {
    if flags.contains(.dying) { return .dying }
    if flags.contains(.crashed) { return .crashed }
    if flags.contains(.shutdown) {
      return switch reason {
      case .crash, .watchdog: .crashed
      // Both go on under the same number: halted, not gone.
      case .suspend, .softReset: .suspendedForMigration
      // `reboot` is over too: what comes next has a number of its own, and so is another incarnation.
      case .poweroff, .reboot, .none: .shutDown
      }
    }
    if flags.contains(.paused) { return .paused }
    if flags.contains(.running) { return .running }
    if flags.contains(.blocked) { return .blocked }
    // `------`: runnable, and not on a CPU at this instant.
    return .running
  }

  private static let incomingSuffix = "--incoming"
  private static let migratedAwaySuffix = "--migratedaway"

  /// The domain's own name, and which end of a migration the toolstack's name for it says it is.
  public static func migrationRole(toolstackName: String) -> (name: String, role: MigrationRole) {
    if let name = toolstackName.withoutSuffix(incomingSuffix) { return (name, .incoming) }
    if let name = toolstackName.withoutSuffix(migratedAwaySuffix) { return (name, .migratedAway) }
    return (toolstackName, .none)
  }
}

extension String {
  /// What stands before `suffix`; nil when this does not end with it, or is nothing else.
  fileprivate func withoutSuffix(_ suffix: String) -> String? {
    utf8.count > suffix.utf8.count && hasSuffix(suffix) ? String(dropLast(suffix.count)) : nil
  }
}
