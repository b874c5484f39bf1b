/// What the hypervisor says of one domain at one moment. Identity and ports come from the trusted side (for Xen the
/// *backend* paths of xenstore); nothing here was written by the guest.
public struct DomainDescription: Hashable, Sendable {
  public var incarnation: Incarnation
  public var name: String
  public var tenant: TenantID?
  /// What the guest serves (`http`, `ftp`, `ssh` …): the key by which rule sets are chosen. From the provider's or
  /// tenant's configuration.
  public var serviceType: String?
  public var ports: [NetworkPort]
  public var disks: [VirtualDisk]
  public var runState: RunState
  public var migration: MigrationRole
  /// CPU time consumed so far, by which "blocked" is told from "idle for an instant".
  public var cpuTime: Duration

  public init(
    incarnation: Incarnation, name: String, tenant: TenantID? = nil, serviceType: String? = nil,
    ports: [NetworkPort] = [], disks: [VirtualDisk] = [], runState: RunState = .running,
    migration: MigrationRole = .none, cpuTime: Duration = .zero
  ) {
    self.incarnation = incarnation
    self.name = name
    self.tenant = tenant
    self.serviceType = serviceType
    self.ports = ports
    self.disks = disks
    self.runState = runState
    self.migration = migration
    self.cpuTime = cpuTime
  }
}

/// The run state of a domain, as the lifecycle needs it. Xen's flags are turned into it by `XenStateTable`.
public enum RunState: Hashable, Sendable, CaseIterable {
  /// On a CPU, or runnable and waiting for one (Xen's `r-----` and `------`).
  case running
  /// Waiting for an event, perhaps for a microsecond (Xen's `-b----`).
  case blocked
  /// Paused by the administrator or the toolstack.
  case paused
  /// Shut down with reason *suspend*: saved, checkpointed or in the last step of a live migration. Not the end.
  case suspendedForMigration
  /// Powered off or rebooting: over, whatever comes next is a new incarnation.
  case shutDown
  /// Panicked.
  case crashed
  /// Being torn down by the hypervisor.
  case dying

  /// Whether this state ends the incarnation.
  public var isFinal: Bool { self == .shutDown || self == .crashed || self == .dying }
}

/// Which end of a migration a domain is, as the toolstack's name for it tells (`NAME--incoming`,
/// `NAME--migratedaway`).
public enum MigrationRole: Hashable, Sendable, CaseIterable {
  case none
  case incoming
  case migratedAway
}

/// A number for a place where frames enter the host: one per interface that is captured, handed out by whoever
/// assembles the capture.
public struct PortID: Hashable, Comparable, Sendable, BitwiseCopyable, CustomStringConvertible {
  public var rawValue: UInt32
  @inlinable public init(_ rawValue: UInt32) { self.rawValue = rawValue }
  public var description: String { "port\(rawValue)" }
  @inlinable public static func < (a: PortID, b: PortID) -> Bool { a.rawValue < b.rawValue }
}

/// A network port of a domain on the host's side (a vif).
public struct NetworkPort: Hashable, Sendable {
  /// The interface's name on the host: `vif3.0`, `vif3.0-emu`, or what the administrator chose.
  public var interface: String
  /// The bridge it is plugged into, if known.
  public var bridge: String?
  /// The trusted MAC address.
  public var mac: MACAddress
  /// The addresses the domain may use; empty when unknown, and then a source address is never called spoofed.
  public var addresses: [IPAddress]

  public init(interface: String, bridge: String? = nil, mac: MACAddress, addresses: [IPAddress] = []) {
    self.interface = interface
    self.bridge = bridge
    self.mac = mac
    self.addresses = addresses
  }

  /// Whether an interface, or a bridge, can have that name: 1 to 15 bytes (IFNAMSIZ), no slash, colon or white space (dev_valid_name of the kernel), and
  /// no ASCII control character.
  package static func isInterfaceName(_ name: String) -> Bool {
    let bytes = name.utf8
    return (1...15).contains(bytes.count) && name != "." && name != ".."
      && bytes.allSatisfy { $0 > 0x20 && $0 != 0x7F && $0 != UInt8(ascii: "/") && $0 != UInt8(ascii: ":") }
  }
}

/// A virtual disk of a domain.
public struct VirtualDisk: Hashable, Sendable {
  /// The device's name in the guest: `xvda`.
  public var device: String
  /// Where the host keeps it: a file or device path.
  public var source: String
  public var isReadOnly: Bool
  /// What serves it (for Xen `vbd` or `qdisk`); nil when unknown.
  public var backend: String?
  /// Whether guest and backend are connected: a domain may run although one of its disks could not be had. nil when unknown.
  public var isConnected: Bool?

  public init(
    device: String, source: String, isReadOnly: Bool = false, backend: String? = nil, isConnected: Bool? = nil
  ) {
    self.device = device
    self.source = source
    self.isReadOnly = isReadOnly
    self.backend = backend
    self.isConnected = isConnected
  }
}
