#if Daemon
import VMFenceConfiguration
import VMFenceCore

/// What a configuration says of guests that a hypervisor does not know: whose they are, and what they serve. By UUID, which a rename does not
/// change, or by name.
struct GuestSettings: Sendable, Equatable {
  private struct Guest: Sendable, Equatable {
    var tenant: TenantID?
    var service: String?
  }

  private var byUUID: [DomainUUID: Guest] = [:]
  private var byName: [String: Guest] = [:]

  mutating func read(_ map: YAMLMapping, _ reader: YAMLReader) {
    let uuid = map.value("uuid", expected: "a UUID", { DomainUUID($0) })
    let name = map.string("name")
    let guest = Guest(tenant: map.label("tenant").map(TenantID.init), service: map.label("service"))
    map.finish()
    guard map.has("uuid") != map.has("name") else {
      reader.report(
        at: map.node, "\(map.path) must say either uuid or name",
        remedy: "for example `uuid: ` and what `xl list -v` shows")
      return
    }
    let isNew: Bool
    if let uuid {
      isNew = byUUID.updateValue(guest, forKey: uuid) == nil
    } else if let name {
      isNew = byName.updateValue(guest, forKey: name) == nil
    } else {
      return
    }
    if !isNew { reader.report(at: map.node, "\(map.path) names a guest that was named before", remedy: "remove one") }
  }

  /// `domain`, with what is said of it. What stands by UUID goes before what stands by name.
  func applied(to domain: DomainDescription) -> DomainDescription {
    guard let guest = byUUID[domain.incarnation.uuid] ?? byName[domain.name] else { return domain }
    var domain = domain
    if let tenant = guest.tenant { domain.tenant = tenant }
    if let service = guest.service { domain.serviceType = service }
    return domain
  }

  /// The service of a guest that is named by its name or UUID.
  func service(of key: String) -> String? {
    if let uuid = DomainUUID(key) { return byUUID[uuid]?.service }
    return byName[key]?.service
  }

  /// The guests that are named by their names.
  var names: Set<String> { Set(byName.keys) }

  /// All services that guests are said to have.
  var services: Set<String> { Set((Array(byUUID.values) + byName.values).compactMap(\.service)) }
}
#endif
