#if Daemon
import VMFenceConfiguration
import VMFenceCore
import VMFenceNftables

/// What `run` needs to know of its host.
struct HostConfiguration: Sendable {
  /// Where the domains come from.
  enum Domains: Sendable, Equatable {
    /// A file that is watched.
    case inventory(String)
    /// The hypervisor of this host.
    case xen
  }

  struct Capture: Sendable {
    /// A guest's port, or a bridge.
    var interface: String
    var isBridge: Bool
    var place: SourcePlace
  }

  struct Firewall: Sendable, Equatable {
    enum Kind: String, Sendable, CaseIterable { case nftables, none }
    var kind = Kind.nftables
    var table = "vmfence"
    /// Where the kernel can: nobody else may change the table while the daemon runs.
    var ownsTable = true
    /// Blocks also stand between a source and this host's own addresses on a bridge.
    var protectsHost = false
    var quarantineExceptions: [IPNetwork] = []
    var quarantineAllowsDHCP = false
    var exceptionsFromQuarantine: QuarantineExceptions {
      QuarantineExceptions(networks: quarantineExceptions, allowsDHCP: quarantineAllowsDHCP)
    }
    /// What guests may not pretend.
    var antiSpoofing = Set(SpoofingKind.allCases)
    /// By domains' names: what they may all the same.
    var antiSpoofingExceptions: [String: Set<SpoofingKind>] = [:]
    /// Link-local addresses of the networks' IPv6 routers, besides those in this host's own routes.
    var routers: [IPAddress] = []
  }

  struct Endpoint: Sendable, Equatable {
    var address: String
    var port: UInt16
  }

  /// The process of a guest's disk.
  struct Disk: Sendable, Equatable {
    enum Guest: Sendable, Equatable {
      case uuid(DomainUUID)
      case name(String)
    }

    var guest: Guest
    /// Its control socket.
    var control: String
  }

  var file: String
  var node: String
  var usesProcesses: Bool
  var domains: Domains
  /// What the hypervisor does not know of its guests.
  var guests: GuestSettings
  var rules: ScenarioRules
  /// Empty: every port of every domain.
  var captures: [Capture]
  var policy: Policy
  var firewall: Firewall
  /// What pauses, resumes and shuts domains down.
  var control: [CommandControl.Act: [String]]
  /// Disks that are followed, to pause guests whose disk holds a request.
  var disks: [Disk]
  var inspector: InspectorConfiguration
  var packetNotes: PacketNoteConfiguration
  var lifecycle: LifecycleConfiguration
  /// Where decisions and what was set at run time are kept; nil: in memory only.
  var stateDirectory: String?
  var controlSocket: String?
  var notifications: [NotificationPlace]
  /// Where metrics are served; nil: nowhere.
  var metrics: Endpoint?
  /// How often a `stats` event is written for each domain and the host.
  var statisticsInterval: Duration
  /// How long a detector may say nothing of its packets before it is killed.
  var answerTimeout: Duration
  /// Where the daemon starts, makes or writes something.
  var namedPaths: [NamedPath] = []
  /// Where the guests of `firewall.antiSpoofingExceptions` are named.
  var spoofingExceptionPlaces: [String: SourcePlace] = [:]
}
#endif
