import VMFenceCore

/// Which rule files a domain gets: those that all have in common, those of its service type, and its own. `Source` is a file that was read
/// (`RuleSource`), or whatever else names one.
public struct RuleSetCatalog<Source: Hashable & Sendable>: Hashable, Sendable {
  public var common: [Source]
  /// By service type (`http`, `ftp`, `ssh` …).
  public var byService: [String: [Source]]
  /// For a domain whose service type is not given or not in `byService`. Empty: such a domain gets none of these.
  public var defaults: [Source]
  /// In addition, for the domain with this name.
  public var byDomain: [String: [Source]]

  public init(
    common: [Source] = [], byService: [String: [Source]] = [:], defaults: [Source] = [],
    byDomain: [String: [Source]] = [:]
  ) {
    self.common = common
    self.byService = byService
    self.defaults = defaults
    self.byDomain = byDomain
  }

  /// The sources for a domain, in the order in which they are read: common, of its service, its own. Empty when no
  /// rules are configured for it. Domains with equal answers can share one compilation.
  public func sources(domainName: String, serviceType: String?) -> [Source] {
    let service = serviceType.flatMap { byService[$0] } ?? defaults
    return common + service + (byDomain[domainName] ?? [])
  }

  /// Whether the service type has rules of its own here; what `sources` does otherwise is worth a word to the operator.
  public func knows(serviceType: String) -> Bool { byService[serviceType] != nil }
}
