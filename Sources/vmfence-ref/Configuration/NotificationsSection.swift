#if Daemon
import Foundation
import Logging
import VMFenceConfiguration
import VMFenceCore
import VMFenceNotification

/// One place that events go to.
struct NotificationPlace: Sendable, Equatable {
  enum Kind: Sendable, Equatable {
    case eveFile(String)
    case fastFile(String)
    case eveSocket(String, UnixSocketDelivery.Kind)
    case syslog(SyslogDelivery.Target, SyslogFormat.Facility, enterprise: UInt32)
    case webhook(String, headers: [String: String])
  }

  var kind: Kind
  var filter: EventFilter
  var queue: Int
  /// How large a file may become, in bytes.
  var limit: UInt64
  /// For people: `syslog udp://192.0.2.1:514`.
  var name: String
}

/// Reads `notifications`.
struct NotificationsSection {
  let reader: YAMLReader
  let sections: SharedSections

  func read(_ root: YAMLMapping) -> [NotificationPlace] {
    var places: [NotificationPlace] = []
    for map in root.children("notifications") {
      guard let place = place(map) else { continue }
      if places.contains(where: { $0.name == place.name && $0.filter == place.filter }) {
        reader.report(
          at: map.node, "\(map.path) gets the same events as one before it",
          remedy: "name each place once, or other events for it")
      }
      places.append(place)
    }
    return places
  }

  private func place(_ map: YAMLMapping) -> NotificationPlace? {
    let facility = map.choice("facility", SyslogFormat.Facility.self) ?? .auth
    let enterprise =
      map.integer("enterprise-number", in: 1...Int(UInt32.max)).map(UInt32.init) ?? SyslogFormat.exampleEnterpriseNumber
    let socket = map.choice("socket", UnixSocketDelivery.Kind.self) ?? .stream
    let headers = map.child("headers").map(headers) ?? [:]
    let kinds: [(String, (String) -> NotificationPlace.Kind?)] = [
      ("eve-file", { .eveFile(sections.resolve($0)) }), ("fast-file", { .fastFile(sections.resolve($0)) }),
      ("eve-socket", { sections.resolveSocket($0).map { .eveSocket($0, socket) } }),
      ("syslog", { syslog($0).map { .syslog($0, facility, enterprise: enterprise) } }),
      (
        "webhook",
        { text in
          guard let url = URL(string: text), ["http", "https"].contains(url.scheme), url.host?.isEmpty == false else {
            return nil
          }
          return .webhook(text, headers: headers)
        }
      ),
    ]
    let named = kinds.filter { map.has($0.0) }
    var found: NotificationPlace.Kind?
    var name = ""
    for (key, parse) in named {
      let expected =
        key == "syslog"
        ? "`local`, `local:PATH`, `udp://HOST:PORT` or `tcp://HOST:PORT`"
        : key == "webhook" ? "an http or https URL" : SharedSections.socketPath
      found = map.value(key, expected: expected, parse)
      name = "\(key) \(map.string(key) ?? "")"
    }
    let tenant = map.string("tenant").map(TenantID.init)
    let wanted = map.values(
      "events", expected: "one of \(EventFilter.Kind.allCases.map(\.rawValue).joined(separator: ", "))",
      EventFilter.Kind.init(rawValue:))
    let queue = map.integer("queue", in: 1...1_000_000) ?? 10_000
    let limit = map.integer("limit", in: 1...1_048_576).map { UInt64($0) << 20 } ?? EVEFileSink.standardLimit
    kinds.forEach { _ = map.raw($0.0) }
    map.finish()
    guard named.count == 1 else {
      reader.report(
        at: map.node, "\(map.path) must name exactly one place",
        remedy: "one of \(kinds.map(\.0).joined(separator: ", "))")
      return nil
    }
    check(map, of: named[0].0)
    var filter = EventFilter(tenant: tenant)
    if case .fastFile = found {
      filter.kinds = [.alert]
      if let other = wanted.first(where: { $0 != .alert }) {
        reader.report(
          at: map.raw("events"), "\(map.name("events")): a fast-file holds alerts only, and no `\(other.rawValue)`",
          remedy: "leave it out, or take an eve-file")
      }
    }
    if !wanted.isEmpty { filter.kinds = Set(wanted) }
    return found.map { NotificationPlace(kind: $0, filter: filter, queue: queue, limit: limit, name: name) }
  }

  /// Names are tokens, and values have no control characters (RFC 9110, 5.1 and 5.5). What a value is, is not shown: it may be a password.
  private func headers(_ map: YAMLMapping) -> [String: String] {
    var headers: [String: String] = [:]
    var names: Set<String> = []
    for (name, node) in map.entries {
      let key = name.isEmpty ? map.node : map.keyNode(name)
      if name.isEmpty || !name.utf8.allSatisfy(Self.isToken) {
        reader.report(
          at: key, "\(map.path): `\(name.escapedForDisplay)` is no name of a header",
          remedy: "ASCII letters, digits and !#$%&'*+-.^_`|~, without a colon or space")
      } else if ["content-length", "transfer-encoding"].contains(name.lowercased()) {
        reader.report(
          at: key, "\(map.path): `\(name)` is what the delivery itself says of its length", remedy: "take it out")
      } else if !names.insert(name.lowercased()).inserted {
        reader.report(
          at: key, "\(map.path): `\(name)` stands twice, for case does not count", remedy: "keep one of them")
      }
      guard let value = map.string(name) else { continue }
      if value.utf8.contains(where: { $0 < 0x20 && $0 != 0x09 || $0 == 0x7F }) {
        reader.report(
          at: node,
          "\(map.path): the value of `\(name.escapedForDisplay)` has a line break or another control character",
          remedy: "write it in one line, as `NAME: VALUE`, without what YAML makes a line break of (`\\n`, `|`)")
      }
      headers[name] = value
    }
    return headers
  }

  private static func isToken(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "a")...UInt8(ascii: "z"):
      true
    default: "!#$%&'*+-.^_`|~".utf8.contains(byte)
    }
  }

  /// Options that only some kinds of places have, and which; all others every place has.
  private static let options = [
    ("facility", ["syslog"]), ("enterprise-number", ["syslog"]), ("socket", ["eve-socket"]), ("headers", ["webhook"]),
    ("limit", ["eve-file", "fast-file"]),
  ]

  /// Says which options are given that the place does not have: whoever wrote them takes them to be in force.
  private func check(_ map: YAMLMapping, of kind: String) {
    for (option, kinds) in Self.options where map.has(option) && !kinds.contains(kind) {
      reader.report(
        at: map.keyNode(option), "\(map.name(option)): `\(kind)` has no such option",
        remedy: "it is one of \(kinds.map { "`\($0)`" }.joined(separator: " and ")): take it out")
    }
  }

  private func syslog(_ text: String) -> SyslogDelivery.Target? {
    if text == "local" { return .local(path: "/dev/log") }
    if text.hasPrefix("local:") {
      let path = String(text.dropFirst(6))
      return path.isEmpty ? nil : sections.resolveSocket(path).map { .local(path: $0) }
    }
    guard let url = URL(string: text), let host = url.host, !host.isEmpty, url.path.isEmpty else { return nil }
    let bare = host.hasPrefix("[") ? String(host.dropFirst().dropLast()) : host
    // Digits and points alone are meant as an address, and no name that would be looked up in vain.
    if bare.allSatisfy({ "0123456789.".contains($0) }), IPAddress(bare) == nil { return nil }
    guard url.port != 0 else { return nil }
    switch url.scheme {
    case "udp": return UInt16(exactly: url.port ?? 514).map { .udp(host: bare, port: $0) }
    case "tcp": return UInt16(exactly: url.port ?? 601).map { .tcp(host: bare, port: $0) }
    default: return nil
    }
  }
}

extension NotificationPlace {
  /// - `stateDirectory`: where what waits for a web service is kept.
  func open(encoder: EVEEncoder, stateDirectory: String?, logger: Logger) -> DeliverySink {
    let directory = encoder.directory
    let (delivery, format) = parts(encoder)
    return DeliverySink(
      name: name, filter: filter, directory: directory, limits: .init(lines: queue),
      spool: stateDirectory.flatMap { spool(in: $0, logger) }, delivery: delivery, format: format)
  }

  /// Only web services have one: the other places are on this host, or have a protocol without acknowledgement.
  private func spool(in stateDirectory: String, _ logger: Logger) -> (file: SpoolFile, lines: [[UInt8]])? {
    guard case .webhook = kind else { return nil }
    let folder = stateDirectory + "/spool"
    // The same place has the same file after a restart.
    let kinds = filter.kinds.map(\.rawValue).sorted().joined(separator: ",")
    let identity = SHA256.digest(of: Array("\(name)\n\(filter.tenant?.name ?? "")\n\(kinds)".utf8))
    let path = "\(folder)/webhook-\(identity.prefix(8).map { $0.hexadecimal(width: 2) }.joined())"
    try? FileManager.default.createDirectory(
      atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    do throws(DeliveryFailure) {
      let (file, lines, damage) = try SpoolFile.open(path: path)
      if let damage { logger.warning("the spool \(path) of \(name.escapedForDisplay): \(damage)") }
      if !lines.isEmpty { logger.notice("\(lines.count) events wait for \(name.escapedForDisplay) from before") }
      return (file, lines)
    } catch {
      logger.error("\(error.message); events wait for \(name.escapedForDisplay) in memory only")
      return nil
    }
  }

  private func parts(_ encoder: EVEEncoder) -> (any Delivery, DeliverySink.Format) {
    let eve: DeliverySink.Format = { event in
      var lines = [encoder.encode(event)]
      if case .alert(let alert) = event, let drop = encoder.encodeDrop(alert) { lines.append(drop) }
      return lines
    }
    switch kind {
    case .eveFile(let path): return (FileDelivery(path: path, limit: limit), eve)
    case .fastFile(let path):
      let fast = FastAlertEncoder(isInline: encoder.isInline)
      return (
        FileDelivery(path: path, limit: limit, isForAlerts: true),
        { event in if case .alert(let alert) = event { [fast.encode(alert)] } else { [] } }
      )
    case .eveSocket(let path, let socket): return (UnixSocketDelivery(path: path, kind: socket), eve)
    case .syslog(let target, let facility, let enterprise):
      let syslog = SyslogFormat(
        facility: facility, enterpriseNumber: enterprise, host: encoder.node, process: getpid(),
        directory: encoder.directory, isInline: encoder.isInline)
      return (SyslogDelivery(target), { [syslog.encode($0)] })
    case .webhook(let url, let headers): return (WebhookDelivery(url: url, headers: headers), eve)
    }
  }
}
#endif
