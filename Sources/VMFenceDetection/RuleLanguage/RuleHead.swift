import VMFenceCore

/// What stands before a rule's parenthesis, after its action.
struct RuleHead {
  var ipProtocol: RuleProtocol
  var source: RuleEndpoint
  var destination: RuleEndpoint
  var isBidirectional: Bool
  var view: RuleView?
  var text: String

  /// What of it is not supported yet.
  var unsupported: RuleFeature?
  /// What is to be said when nothing stands before the parenthesis, unless the rule is a built-in one.
  var missing: RuleProblem?
  /// Where ports stand that the dialect takes no notice of.
  var ignoredPorts: Int?

  private static let form = "write ACTION PROTOCOL ADDRESS PORT -> ADDRESS PORT ("

  static func parse(
    _ scanner: inout RuleScanner, variables: inout RuleVariables, dialect: RuleDialect, nearest: inout NearestName
  ) throws(RuleProblem) -> RuleHead {
    var words: [ArraySlice<UInt8>] = []
    while let word = try word(&scanner, dialect) {
      guard words.count < 6 else {
        throw RuleProblem(word.startIndex, "\(word.shown) is too much before the `(`", form)
      }
      words.append(word)
    }
    var head = RuleHead(
      ipProtocol: .ip, source: .any, destination: .any, isBidirectional: false,
      text: words.isEmpty ? "ip" : words.map(\.text).joined(separator: " "))
    guard let name = words.first else {
      // A rule of Snort without a head is about events of the decoders or of streams, whose gid and sid it names.
      guard dialect != .suricata else { throw RuleProblem(scanner.position, "the protocol is missing", form) }
      head.ipProtocol = .any
      head.missing = RuleProblem(scanner.position, "the protocol is missing", form)
      return head
    }
    let transport = try RuleTransport.find(name, dialect, &nearest)
    head.ipProtocol = transport.ipProtocol
    head.view = transport.view
    if !transport.isSupported {
      head.unsupported = RuleFeature(name: "protocol `\(name.text.escapedForDisplay)`", offset: name.startIndex)
    }
    if words.count == 1, dialect == .snort3 {
      head.text += " any any -> any any"
      return head
    }
    guard words.count == 6 else {
      throw RuleProblem(scanner.position, "the rule's head has \(words.count + 1) of its 7 parts", form)
    }
    try head.ends(words, &variables, dialect)
    if let family = transport.family {
      head.source.addresses = head.source.addresses.limited(to: family)
      head.destination.addresses = head.destination.addresses.limited(to: family)
      guard !head.source.addresses.isEmpty, !head.destination.addresses.isEmpty else {
        throw RuleProblem(
          name.startIndex, "\(name.shown) and the addresses exclude each other", "name addresses of that IP version")
      }
    }
    return head
  }

  /// Addresses, ports and direction.
  private mutating func ends(
    _ words: [ArraySlice<UInt8>], _ variables: inout RuleVariables, _ dialect: RuleDialect
  ) throws(RuleProblem) {
    let arrow = words[3]
    if arrow.isText("=>"), dialect == .suricata {
      unsupported = unsupported ?? RuleFeature(name: "direction `=>`", offset: arrow.startIndex)
    } else if !arrow.isText("->"), !arrow.isText("<>") {
      throw RuleProblem(
        arrow.startIndex, "\(arrow.shown) is no direction",
        arrow.isText("<-") ? "write `->` and swap the ends" : "use `->` or `<>`")
    }
    isBidirectional = arrow.isText("<>")
    source.addresses = try variables.addresses(words[1], dialect)
    source.ports = try variables.ports(words[2], dialect)
    destination.addresses = try variables.addresses(words[4], dialect)
    destination.ports = try variables.ports(words[5], dialect)
    // Only these have ports, whatever the rule says.
    let hasPorts = [.tcp, .udp, .sctp].contains(ipProtocol) || ipProtocol == .ip && dialect != .snort3
    if !hasPorts {
      if ipProtocol == .ip, !source.ports.isAny || !destination.ports.isAny {
        ignoredPorts = (source.ports.isAny ? words[5] : words[2]).startIndex
      }
      source.ports = .any
      destination.ports = .any
    }
  }

  /// The next word; a list in brackets with blanks in it is one. Nil at the parenthesis.
  private static func word(
    _ scanner: inout RuleScanner, _ dialect: RuleDialect
  ) throws(RuleProblem) -> ArraySlice<UInt8>? {
    scanner.skipBlanks(acrossLines: dialect == .snort3)
    let from = scanner.position
    var depth = 0
    while let byte = scanner.peek() {
      // A list ends in its line.
      if byte == 0x0A, dialect != .snort3 || depth > 0 { break }
      if byte == UInt8(ascii: "[") { depth += 1 }
      if byte == UInt8(ascii: "]") { depth -= 1 }
      if depth <= 0, byte == 0x20 || byte == 0x09 || byte == 0x0D || byte == 0x0A || byte == UInt8(ascii: "(") { break }
      scanner.position += 1
    }
    if depth > 0 { throw RuleProblem(from, "the list is not closed", "close it with `]`") }
    guard let byte = scanner.peek(), byte != 0x0A || dialect == .snort3 else {
      throw RuleProblem(scanner.position, "the rule has no `(`", "the options stand in parentheses after the head")
    }
    return from == scanner.position ? nil : scanner.bytes[from..<scanner.position]
  }
}

/// The protocols that heads name.
struct RuleTransport {
  var ipProtocol: RuleProtocol
  /// The IP version that the name restricts the rule to.
  var family: IPAddress.Family?
  var view: RuleView?
  var isSupported = true

  private static let transports: [String: RuleTransport] = [
    "tcp": RuleTransport(ipProtocol: .tcp), "udp": RuleTransport(ipProtocol: .udp),
    "icmp": RuleTransport(ipProtocol: .icmp), "ip": RuleTransport(ipProtocol: .ip),
  ]
  private static let suricataTransports: [String: RuleTransport] = [
    "icmpv4": RuleTransport(ipProtocol: .icmp, family: .v4), "icmpv6": RuleTransport(ipProtocol: .icmp, family: .v6),
    "ipv4": RuleTransport(ipProtocol: .ip, family: .v4), "ip4": RuleTransport(ipProtocol: .ip, family: .v4),
    "ipv6": RuleTransport(ipProtocol: .ip, family: .v6), "ip6": RuleTransport(ipProtocol: .ip, family: .v6),
    "tcp-pkt": RuleTransport(ipProtocol: .tcp, view: .packets),
    "tcp-stream": RuleTransport(ipProtocol: .tcp, view: .streams), "sctp": RuleTransport(ipProtocol: .sctp),
    "igmp": RuleTransport(ipProtocol: .igmp), "arp": RuleTransport(ipProtocol: .arp),
    "ether": RuleTransport(ipProtocol: .ether), "pkthdr": RuleTransport(ipProtocol: .any),
  ]
  /// What dialects have besides, so that a misspelt name is told from one that is not supported yet.
  private static let services: [RuleDialect: Set<String>] = [
    .snort2: [],
    .snort3: names(
      """
      bgp cip dce_http_proxy dce_http_server dce_smb dce_tcp dce_udp dcerpc dhcp dnp3 dns enip file finger ftp ftp-data
      gtp http http2 http3 icap iec104 ident imap irc kerberos ldap mms modbus mysql netbios-dgm netbios-ns netbios-ssn
      netflow nntp ntp opcua pop3 postgresql quic radius rdp rpc rsync rtp rtsp s7commplus sip smtp snmp socks ssdp ssh
      ssl sunrpc syslog telnet tftp tls user wins
      """),
    .suricata: names(
      """
      bittorrent-dht dcerpc dhcp dnp3 dns doh2 enip file ftp ftp-data http http1 http2 ike imap irc jabber krb5 ldap
      llmnr mdns modbus mqtt msn nfs ntp pgsql pop3 quic rdp rfb rpc sip smb smtp snmp ssh ssl telnet tftp tls websocket
      """),
  ]

  private static func names(_ text: String) -> Set<String> {
    Set(text.split(whereSeparator: \.isWhitespace).map(String.init))
  }

  static func find(
    _ name: ArraySlice<UInt8>, _ dialect: RuleDialect, _ nearest: inout NearestName
  ) throws(RuleProblem) -> RuleTransport {
    // `IP` is `ip`.
    let text = name.text.lowercased()
    if let found = transports[text] ?? (dialect == .suricata ? suricataTransports[text] : nil) { return found }
    // Suricata adds a hook of the protocol after a colon.
    let base = dialect == .suricata ? String(text.prefix { $0 != ":" }) : text
    let services = services[dialect] ?? []
    let known = services.contains(base) || (base != text && (transports[base] ?? suricataTransports[base]) != nil)
    if known { return RuleTransport(ipProtocol: .ip, isSupported: false) }
    let suggestion = nearest.find(text, among: Array(transports.keys) + services)
    throw RuleProblem(
      name.startIndex, "\(name.shown) is no protocol of \(dialect.rawValue) rules",
      suggestion.map { "did you mean `\($0)`?" } ?? "use tcp, udp, icmp or ip")
  }
}
