#if Daemon
import Foundation
import VMFenceCore
import VMFenceDetection

/// What a replay needs to know: which domains live how, what was captured, which rules, disks and policy.
struct Scenario {
  var file: String
  var name: String
  /// The moment that all relative times count from; nil: the first packet of the captures.
  var start: Timestamp?
  /// How long after the last thing that happens the replay goes on, so that measures and states settle.
  var settle: Duration
  var node: String
  var usesProcesses: Bool
  var rules: ScenarioRules
  var domains: [ScenarioDomain]
  var captures: [ScenarioCapture]
  var policy: Policy
  var inspector: InspectorConfiguration
  var packetNotes: PacketNoteConfiguration
  var lifecycle: LifecycleConfiguration
}

/// Limits of the lifecycle that a scenario may change.
struct LifecycleConfiguration: Sendable, Equatable {
  var blockedAfter: Duration = .seconds(2)
  var stuckAfter: Duration = .seconds(30)
}

struct ScenarioRules: Sendable {
  struct File: Hashable, Sendable {
    var path: String
    var place: SourcePlace?
  }
  var dialect: RuleDialect?
  var onBadRule: RuleCompilationRequest.OnBadRule = .skip
  var variables: [String: String] = [:]
  /// Which files a domain's rules come from.
  var catalog = RuleSetCatalog<File>()
  /// Own files of domains that were set at run time, by `RuleSubject.key`; they go before those of the catalog.
  var assigned: [String: [File]] = [:]
  /// `RuleAdjustments`, as files.
  var filters: [File] = []
  var definitions: [File] = []
  var enabled: [File] = []
  var disabled: [File] = []
  var dropping: [File] = []
  var reputationCategories: [File] = []
  var reputationLists: [File] = []
  var countryDatabase: File?
  var actionOrder: RuleActionOrder?

  /// All files that there are, patterns resolved; a pattern that stands for none is itself.
  var allFiles: [File] { sharedFiles + Self.resolved(catalog.byDomain.values.flatMap(\.self)) }

  /// Those that are not one domain's own.
  var sharedFiles: [File] {
    let named = catalog.common + catalog.byService.values.flatMap(\.self)
    let others = filters + definitions + enabled + disabled + dropping + reputationCategories + reputationLists
    return Self.resolved(named + others + [countryDatabase].compactMap(\.self))
  }

  private static func resolved(_ files: [File]) -> [File] {
    files.flatMap { file in
      ((try? RuleFiles.expand(file.path, at: file.place)) ?? [file.path]).map { File(path: $0, place: file.place) }
    }
  }
}

struct ScenarioDomain {
  var name: String
  var uuid: DomainUUID
  var domainID: DomainID
  var tenant: TenantID?
  var serviceType: String?
  var ports: [NetworkPort]
  var disk: ScenarioDisk?
  var protected: [String]
  var deniesData: Bool
  var lifecycle: [ScenarioStep]
  var place: SourcePlace
}

struct ScenarioDisk {
  var device: String
  var image: String
  var writes: String?
  /// When the recording's time zero is, counted from the scenario's start.
  var startsAt: Duration
  var place: SourcePlace
}

struct ScenarioStep {
  enum Event: String, CaseIterable {
    case created, configured, blocked, running, paused, resumed, crashed, destroyed
    case migratedAway = "migrated-away"
    case migratedIn = "migrated-in"
    case shutDown = "shut-down"
  }
  var at: Duration
  var event: Event
  /// For `migrated-in`: the number and ports under which the domain goes on.
  var domainID: DomainID?
  var ports: [NetworkPort]?
  var place: SourcePlace
}

struct ScenarioCapture {
  var path: String
  /// The interface that it was captured on: a domain's port, or a bridge.
  var interface: String
  var isBridge: Bool
  var place: SourcePlace
}
#endif
