import VMFenceCore
import VMFencePackets

extension EngineSettings {
  /// Reads the settings of a configuration.
  ///
  /// - Throws: `bad-setting`, naming the setting, what it can be, and for an unknown name the nearest known one.
  public init(_ configuration: InspectorConfiguration) throws(RuleCompilationError) {
    self.init()
    isInline = configuration.isInline
    verifiesChecksums = configuration.verifiesChecksums
    isStreamInline = configuration.isInline
    // Sorted, so that of several mistakes the same one is always told.
    let settings = configuration.settings.sorted { $0.key < $1.key }
    for (name, text) in settings where name == "exception-policy" {
      exceptionPolicy = try SettingText(name, text).exceptionPolicy(isInline: isInline)
    }
    (midstreamPolicy, streamMemoryPolicy) = (exceptionPolicy, exceptionPolicy)
    (flowMemoryPolicy, fragmentMemoryPolicy) = (exceptionPolicy, exceptionPolicy)
    for (name, text) in settings { try apply(SettingText(name, text)) }
    hostPolicies.sort { ($0.network.prefix, $1.network.base) > ($1.network.prefix, $0.network.base) }
  }

  private mutating func apply(_ setting: SettingText) throws(RuleCompilationError) {
    switch setting.name {
    case "exception-policy": break
    case "stream.checksum-validation": verifiesChecksums = try setting.boolean()
    case "stream.inline": isStreamInline = setting.text == "auto" ? isInline : try setting.boolean()
    case "stream.midstream": picksUpMidstream = try setting.boolean()
    case "stream.async-oneside": picksUpOneSide = try setting.boolean()
    case "stream.min-ttl": streamTTLMinimum = UInt8(try setting.number(in: 0...255))
    case "stream.ttl-limit": streamTTLDrop = try setting.number(in: 0...255)
    case "defrag.min-ttl": fragmentTTLMinimum = UInt8(try setting.number(in: 0...255))
    case "stream.max-window": windowMaximum = try setting.number(in: 0...0x3FFF_C000)
    case "stream.overlap-limit": overlapLimit = try setting.number(in: 0...255)
    case "stream.small-segments.count": smallSegmentCount = try setting.number(in: 0...255)
    case "stream.small-segments.maximum-size": smallSegmentSize = try setting.number(in: 0...2048)
    case "stream.drop-invalid": dropsInvalid = try setting.boolean()
    case "stream.memcap", "stream.reassembly.memcap": streamMemory = try setting.size(in: 1 << 20...1 << 34)
    case "stream.reassembly.depth": streamDepth = try setting.size(in: 0...1 << 30)
    case "stream.reassembly.toserver-chunk-size": chunkToServer = try setting.size(in: 100...65_536)
    case "stream.reassembly.toclient-chunk-size": chunkToClient = try setting.size(in: 100...65_536)
    case "stream.reassembly.urgent.policy": urgentPolicy = try setting.choice(UrgentPolicy.self)
    case "stream.midstream-policy": midstreamPolicy = try setting.exceptionPolicy(isInline: isInline)
    case "stream.memcap-policy", "stream.reassembly.memcap-policy":
      streamMemoryPolicy = try setting.exceptionPolicy(isInline: isInline)
    case "flow.memcap-policy": flowMemoryPolicy = try setting.exceptionPolicy(isInline: isInline)
    case "defrag.memcap-policy": fragmentMemoryPolicy = try setting.exceptionPolicy(isInline: isInline)
    case "defrag.memcap": fragmentMemory = try setting.size(in: 1 << 17...1 << 32)
    case "defrag.trackers": datagramCapacity = try setting.number(in: 8...1 << 20)
    case "defrag.max-frags": fragmentLimit = try setting.number(in: 2...8192)
    case "defrag.timeout": fragmentTimeout = try setting.number(in: 1...3600)
    case "flow.rate-tracking.bytes": elephantBytes = try setting.size(in: 0...1 << 40)
    case "flow.rate-tracking.interval": elephantInterval = try setting.number(in: 1...60)
    case "profiling.rules.enabled": profilesRules = try setting.boolean()
    case "packet-alert-max":
      let limit = try setting.number(in: 0...InspectionOutput.capacity)
      alertLimit = limit == 0 ? InspectionOutput.capacity : limit
    default: try applyFamily(setting)
    }
  }

  /// Names whose last part says which of several.
  private mutating func applyFamily(_ setting: SettingText) throws(RuleCompilationError) {
    if setting.name.hasPrefix("host-os-policy.") {
      let system = setting.name.dropFirst("host-os-policy.".count)
      if system == "default" {
        defaultPolicy = try setting.policy(setting.text)
        return
      }
      let policy = try setting.policy(system)
      for network in try setting.networks() { hostPolicies.append(HostPolicy(network: network, policy: policy)) }
      return
    }
    for tunnel in DecodeSettings.Tunnel.allCases {
      if setting.name == "decoder.\(tunnel.rawValue).enabled" {
        decoding.setEnabled(try setting.boolean(), tunnel)
        return
      }
      if setting.name == "decoder.\(tunnel.rawValue).ports" {
        decoding.setPorts(try setting.ports(), of: tunnel)
        return
      }
    }
    guard let field = Self.timeoutFields[setting.name] else { throw setting.unknown(Self.names) }
    timeouts[keyPath: field] = Int64(try setting.number(in: 0...1_000_000)) * FlowTimeouts.second
  }

  private static var timeoutFields: [String: WritableKeyPath<FlowTimeouts, Int64>] {
    [
      "flow-timeouts.tcp.new": \.tcpNew, "flow-timeouts.tcp.established": \.tcpEstablished,
      "flow-timeouts.tcp.closed": \.tcpClosed, "flow-timeouts.udp.new": \.udpNew,
      "flow-timeouts.udp.established": \.udpEstablished, "flow-timeouts.icmp.new": \.icmpNew,
      "flow-timeouts.icmp.established": \.icmpEstablished, "flow-timeouts.default.new": \.otherNew,
      "flow-timeouts.default.established": \.otherEstablished,
    ]
  }

  /// Every name that can be set, in order.
  public static var names: [String] {
    let single = [
      "defrag.max-frags", "defrag.memcap", "defrag.memcap-policy", "defrag.min-ttl", "defrag.timeout",
      "defrag.trackers",
      "exception-policy", "flow.memcap-policy", "flow.rate-tracking.bytes", "flow.rate-tracking.interval",
      "host-os-policy.default", "packet-alert-max", "profiling.rules.enabled",
      "stream.async-oneside",
      "stream.checksum-validation", "stream.drop-invalid", "stream.inline", "stream.max-window",
      "stream.memcap", "stream.memcap-policy", "stream.midstream", "stream.midstream-policy", "stream.min-ttl",
      "stream.overlap-limit", "stream.reassembly.depth",
      "stream.reassembly.memcap",
      "stream.reassembly.memcap-policy", "stream.reassembly.toclient-chunk-size",
      "stream.reassembly.toserver-chunk-size", "stream.reassembly.urgent.policy", "stream.small-segments.count",
      "stream.small-segments.maximum-size", "stream.ttl-limit",
    ]
    let tunnels = DecodeSettings.Tunnel.allCases.flatMap {
      ["decoder.\($0.rawValue).enabled", "decoder.\($0.rawValue).ports"]
    }
    return (single + tunnels + timeoutFields.keys + OverlapPolicy.names.map { "host-os-policy.\($0.0)" }).sorted()
  }
}

/// One setting's text, and how it is read.
private struct SettingText {
  var name: String
  var text: String

  init(_ name: String, _ text: String) {
    self.name = name
    self.text = text
  }

  func boolean() throws(RuleCompilationError) -> Bool {
    switch text.lowercased() {
    case "yes", "true", "on", "1": return true
    case "no", "false", "off", "0": return false
    default: throw mistake("yes or no")
    }
  }

  func number(in range: ClosedRange<Int>) throws(RuleCompilationError) -> Int {
    guard let value = Int(text), range.contains(value) else {
      throw mistake("a number of \(range.lowerBound) to \(range.upperBound)")
    }
    return value
  }

  /// Bytes, with `kb`, `mb` or `gb` (powers of 1,024) behind the number or nothing.
  func size(in range: ClosedRange<Int>) throws(RuleCompilationError) -> Int {
    let digits = text.prefix { $0.isASCII && $0.isNumber }
    let unit = text.dropFirst(digits.count).filter { $0 != " " }.lowercased()
    let shifts = ["": 0, "b": 0, "kb": 10, "kib": 10, "mb": 20, "mib": 20, "gb": 30, "gib": 30]
    guard let number = Int(digits), let shift = shifts[unit], number <= Int.max >> 31,
      range.contains(number << shift)
    else { throw mistake("\(range.lowerBound) to \(range.upperBound) bytes, with kb, mb or gb if wanted") }
    return number << shift
  }

  func choice<Choice: CaseIterable & RawRepresentable<String>>(
    _: Choice.Type
  ) throws(RuleCompilationError) -> Choice {
    guard let value = Choice(rawValue: text.lowercased()) else {
      throw mistake("one of " + Choice.allCases.map(\.rawValue).joined(separator: ", "))
    }
    return value
  }

  func exceptionPolicy(isInline: Bool) throws(RuleCompilationError) -> ExceptionPolicy {
    if text.lowercased() == "auto" { return isInline ? .dropFlow : .ignore }
    guard let value = ExceptionPolicy(rawValue: text.lowercased()) else {
      throw mistake("auto, " + ExceptionPolicy.allCases.map(\.rawValue).joined(separator: ", "))
    }
    // What cannot be dropped is at least inspected.
    return isInline || ![.dropFlow, .dropPacket, .reject].contains(value) ? value : .ignore
  }

  func policy(_ system: some StringProtocol) throws(RuleCompilationError) -> OverlapPolicy {
    guard let found = OverlapPolicy.names.first(where: { $0.0 == system.lowercased() }) else {
      throw RuleCompilationError(
        .badSetting, "setting \(name.escapedForDisplay): there is no system \(String(system).escapedForDisplay)",
        remedy: "one of " + OverlapPolicy.names.map(\.0).joined(separator: ", "))
    }
    return found.1
  }

  /// Addresses and networks with commas or blanks between, brackets around them or not.
  func networks() throws(RuleCompilationError) -> [IPNetwork] {
    var result: [IPNetwork] = []
    for part in text.split(whereSeparator: { ", []\t".contains($0) }) {
      let word = part.filter { $0 != "\"" && $0 != "'" }
      guard let network = IPNetwork(word) else {
        throw mistake("addresses or networks (10.0.0.0/8, 2001:db8::/32), with commas between")
      }
      result.append(network)
    }
    return result
  }

  /// Ports with commas or blanks between, brackets around them or not.
  func ports() throws(RuleCompilationError) -> [UInt16] {
    var result: [UInt16] = []
    for part in text.split(whereSeparator: { ", []\t".contains($0) }) {
      guard let port = UInt16(part), port > 0, result.count < DecodeSettings.portMaximum else {
        throw mistake("at most \(DecodeSettings.portMaximum) ports, with commas between")
      }
      result.append(port)
    }
    return result
  }

  func mistake(_ expected: String) -> RuleCompilationError {
    RuleCompilationError(
      .badSetting, "setting \(name.escapedForDisplay) is \(text.escapedForDisplay)", remedy: "it can be \(expected)")
  }

  func unknown(_ names: [String]) -> RuleCompilationError {
    var search = NearestName()
    let nearest = search.find(name, among: names)
    return RuleCompilationError(
      .badSetting, "there is no setting \(name.escapedForDisplay)",
      remedy: nearest.map { "is \($0) meant?" } ?? "known are: " + names.joined(separator: ", "))
  }
}
