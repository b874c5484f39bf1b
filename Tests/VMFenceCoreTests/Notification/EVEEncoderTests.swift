import Testing
import VMFenceCore

private let web = Incarnation(
  uuid: DomainUUID("7f3c0001-0000-4000-8000-000000000001").unwrapped, domainID: DomainID(3))
private let guest = IPAddress("192.0.2.10").unwrapped
/// 2026-11-23 04:46:55.123456789 UTC
private let moment = Timestamp(seconds: 1_795_409_215, nanoseconds: 123_456_789)

extension Optional {
  fileprivate var unwrapped: Wrapped { self! }
}

private func directory() -> DomainDirectory {
  let directory = DomainDirectory([
    DomainDescription(
      incarnation: web, name: "web", tenant: TenantID("acme"), serviceType: "http",
      ports: [
        NetworkPort(interface: "vif3.0", mac: MACAddress("00:16:3e:00:00:01").unwrapped),
        NetworkPort(
          interface: "vif3.1", mac: MACAddress("00:16:3e:00:00:02").unwrapped, addresses: [guest]),
      ])
  ])
  directory.setState(.inspecting, of: web)
  return directory
}

private func encoder(isInline: Bool = false) -> EVEEncoder {
  EVEEncoder(node: "host-1", isInline: isInline, directory: directory())
}

private func alert(
  _ message: String = "ATTACK", verdict: Verdict = .pass, payload: [UInt8] = [], protocolNumber: UInt8 = 6
) -> Alert {
  Alert(
    time: moment, incarnation: web, packetID: 41,
    rule: RuleMetadata(
      sid: 1_000_001, revision: 2, message: message, classification: "web-application-attack",
      classificationText: "Web Application Attack", priority: 1, references: ["cve,2021-44228"],
      metadata: ["tag": ["b", "a"], "affected": ["x"]]),
    flowID: 77, source: attacker, destination: guest, sourcePort: 40_000, destinationPort: 80,
    ipProtocol: protocolNumber, direction: .toServer, isEstablished: true, verdict: verdict, payloadExcerpt: payload)
}

private func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

private let about =
  #""node":"host-1","vm":{"uuid":"7f3c0001-0000-4000-8000-000000000001","name":"web","domid":3,"#
  + #""vif":"vif3.1","mac":"00:16:3e:00:00:02"},"state":"inspecting","tenant":"acme","service":"http""#
private let aboutFirstPort =
  about.replacing("vif3.1", with: "vif3.0").replacing("00:00:02", with: "00:00:01")

@Suite("EVE JSON")
struct EVEEncoderTests {
  @Test("an alert is one line with the members of EVE in their order")
  func alertLine() {
    let line = text(encoder().encode(.alert(alert(payload: Array("GET /\r\n\u{1}é".utf8)))))
    #expect(
      line == #"{"timestamp":"2026-11-23T04:46:55.123456+0000","flow_id":77,"event_type":"alert","#
        + #""src_ip":"203.0.113.7","src_port":40000,"dest_ip":"192.0.2.10","dest_port":80,"proto":"TCP","ip_v":4,"#
        + #""direction":"to_server","host":"host-1","pkt_src":"wire/pcap","alert":{"action":"allowed","gid":1,"signature_id":1000001,"#
        + #""rev":2,"#
        + #""signature":"ATTACK","category":"Web Application Attack","severity":1,"#
        + #""metadata":{"affected":["x"],"tag":["b","a"]},"references":["cve,2021-44228"]},"#
        + #""verdict":{"action":"alert"},"payload_printable":"GET /\r\n...","vmfence":{"# + about
        + #","packet":41,"established":true}}"#)
  }

  @Test("what a rule captured for its alert stands with it, by name")
  func captures() {
    var told = alert()
    told.captures = [AlertCapture(name: "user", value: Array("ro\"ot\u{1}".utf8)), AlertCapture(name: "n", value: [])]
    let line = text(encoder().encode(.alert(told)))
    #expect(
      line.contains(#""references":["cve,2021-44228"],"context":{"user":"ro\"ot.","n":""}},"verdict""#), "\(line)")
    // A detector's record, of which nothing is believed: a number that no name has, and a length that ends behind the end.
    var record = AlertRecord(
      timestamp: moment, ruleIndex: 0, flowID: 1, source: attacker, destination: guest, sourcePort: 1,
      destinationPort: 2, ipProtocol: 6, flags: [])
    for (number, value) in [(9, "lost"), (1, "kept")] as [(UInt8, String)] {
      record.addCapture(number, Array(value.utf8))
    }
    record.captures[12] = 0
    record.captures[13] = 60
    record.captureLength = 63
    #expect(record.captures(["a", "b"]) == [AlertCapture(name: "b", value: Array("kept".utf8))])
  }

  @Test("a drop rule that is not inline says that the packet went through")
  func dropOffline() {
    let line = text(encoder().encode(.alert(alert(verdict: .drop))))
    #expect(line.contains(#""action":"allowed""#))
    #expect(line.contains(#""verdict":{"action":"alert"}"#))
    #expect(line.hasSuffix(#""established":true,"rule_verdict":"drop","inline":false}}"#))
    #expect(encoder().encodeDrop(alert(verdict: .drop)) == nil)
  }

  @Test("inline, the alert is blocked, and a drop event goes beside it")
  func dropInline() throws {
    let line = text(encoder(isInline: true).encode(.alert(alert(verdict: .reject))))
    #expect(line.contains(#""inline":true,"verdict_from":"inline""#))
    var cut = alert(verdict: .reject)
    cut.isFlowCut = true
    #expect(text(encoder().encode(.alert(cut))).contains(#""inline":false,"verdict_from":"next-packet""#))
    #expect(line.contains(#""action":"blocked""#))
    #expect(line.contains(#""verdict":{"action":"drop","reject_target":"to_client","reject":["tcp-reset"]}"#))
    let drop = text(try #require(encoder(isInline: true).encodeDrop(alert(verdict: .reject))))
    #expect(drop.contains(#""event_type":"drop""#))
    #expect(drop.contains(#""drop":{"reason":"rules"},"alert":{"action":"blocked","gid":1"#))
    #expect(drop.contains(#""verdict":{"action":"drop","reject_target":"to_client","reject":["tcp-reset"]}"#))
    #expect(encoder(isInline: true).encodeDrop(alert()) == nil)
  }

  @Test("evidence that was asked for tells the packet, what was inspected of it, and what carried it")
  func evidence() {
    var evidence = PacketEvidence(linkType: .ethernet)
    (evidence.captureFile, evidence.captureNumber) = ("a.pcap", 7)
    (evidence.packet, evidence.payload, evidence.vlans) = ([0, 1, 2, 3], Array("hello".utf8), [5, 6])
    evidence.icmp = (8, 0)
    evidence.tunnel = .init(
      source: IPAddress("192.0.2.1")!, destination: IPAddress("192.0.2.2")!, sourcePort: 5, destinationPort: 4789,
      ipProtocol: 17, depth: 1)
    var alert = alert(protocolNumber: 1)
    (alert.evidence, alert.origin, alert.isInStream) = (evidence, .vxlan, true)
    let line = text(encoder().encode(.alert(alert)))
    for part in [
      #""pcap_cnt":7,"pcap_filename":"a.pcap","vlan":[5,6],"src_ip""#, #""icmp_type":8,"icmp_code":0"#,
      #""pkt_src":"vxlan encapsulation""#, #""payload":"aGVsbG8=","payload_printable":"hello","stream":1"#,
      #""packet":"AAECAw==","packet_info":{"linktype":1,"linktype_name":"EN10MB"}"#,
      #""tunnel":{"src_ip":"192.0.2.1","src_port":5,"dest_ip":"192.0.2.2","dest_port":4789,"proto":"UDP","depth":1}"#,
    ] { #expect(line.contains(part), "\(part)") }
  }

  @Test("a packet without addresses has none in its event, and IPv6 has all its digits")
  func addresses() {
    var alert = alert()
    alert.source = IPAddress("2001:db8::1")!
    #expect(text(encoder().encode(.alert(alert))).contains(#""src_ip":"2001:0db8:0000:0000:0000:0000:0000:0001""#))
    var evidence = PacketEvidence(linkType: .ethernet)
    evidence.hasAddresses = false
    alert.evidence = evidence
    #expect(!text(encoder().encode(.alert(alert))).contains("src_ip"))
  }

  @Test("a drop event tells its reason, and needs no rule", arguments: DropReason.allCases)
  func dropReasons(reason: DropReason) {
    let drop = DroppedPacket(
      time: .zero, incarnation: alert().incarnation, packetID: 3, source: .anyV4, destination: .anyV4, sourcePort: 1,
      destinationPort: 2, ipProtocol: 6, reason: reason, verdict: .drop)
    let line = text(encoder(isInline: true).encode(drop))
    #expect(line.contains(#""drop":{"reason":"\#(reason.eveName)"},"verdict":{"action":"drop"}"#))
    #expect(!line.contains("direction"))
  }

  @Test(
    "protocols have the names that EVE gives them, and only those with ports have ports",
    arguments: [
      (1, "ICMP", false), (17, "UDP", true), (58, "IPv6-ICMP", false), (132, "SCTP", true), (200, "200", false),
    ])
  func protocols(number: UInt8, name: String, hasPorts: Bool) {
    let line = text(encoder().encode(.alert(alert(protocolNumber: number))))
    #expect(line.contains(#""proto":"\#(name)""#))
    #expect(line.contains("src_port") == hasPorts)
  }

  @Test("a file event lies under vmfence, with old and new values")
  func fileLine() {
    let event = FileEvent(
      time: moment, incarnation: web, disk: "xvda", sequence: 9, operation: .chmod, path: Array("/etc/passwd".utf8),
      oldPath: nil, inode: 12, offset: 4, length: 5,
      changes: [.init(attribute: "mode", old: "0644", new: "0666")], verdict: .deny)
    #expect(
      text(encoder().encode(.file(event)))
        == #"{"timestamp":"2026-11-23T04:46:55.123456+0000","event_type":"vmfence_file","host":"host-1","vmfence":{"#
        + aboutFirstPort
        + #","file":{"operation":"chmod","disk":"xvda","path":"/etc/passwd","inode":12,"offset":4,"length":5,"#
        + #""changes":[{"attribute":"mode","old":"0644","new":"0666"}],"request":9,"verdict":"deny","severity":2}}}"#)
  }

  @Test("an announced change says so")
  func announced() {
    let event = FileEvent(
      time: moment, incarnation: web, disk: "xvda", sequence: 9, operation: .write, path: [0x2F], inode: 1, severity: 1,
      isAnnounced: true)
    #expect(text(encoder().encode(.file(event))).contains(#""severity":1,"announced":true"#))
  }

  @Test("a path that is not UTF-8 is shown with replacements and kept in hexadecimal")
  func hostilePath() {
    let event = FileEvent(
      time: moment, incarnation: web, disk: "xvda", sequence: 9, operation: .write, path: [0x2F, 0xFF, 0x0A], inode: 1)
    #expect(text(encoder().encode(.file(event))).contains("\"path\":\"/\u{FFFD}\\n\",\"path_hex\":\"2fff0a\""))
  }

  @Test("a decision says what, whom, until when and why")
  func decisionLine() {
    let network = IPNetwork(attacker)
    let decision = Decision(
      id: 5, time: moment, incarnation: web, measure: .block(network), status: .enforced, policy: "brute",
      reason: "3 in 60 s", step: 1, expires: moment + .seconds(60), trigger: "1:1000001", source: network,
      isLogged: false)
    #expect(
      text(encoder().encode(.decision(decision))).hasSuffix(
        #","decision":{"id":5,"measure":"block","network":"203.0.113.7","status":"enforced","policy":"brute","#
          + #""reason":"3 in 60 s","step":1,"expires":"2026-11-23T04:47:55.123456+0000","trigger":"1:1000001","#
          + #""source":"203.0.113.7","logged":false}}}"#))
    var lift = decision
    lift.measure = .lift(.init(scope: .domain(web.uuid), kind: .block(network)))
    lift.expires = nil
    #expect(
      text(encoder().encode(.decision(lift))).contains(
        #""measure":"lift","lifted":{"scope":"7f3c0001-0000-4000-8000-000000000001","measure":"block","#
          + #""network":"203.0.113.7"},"status""#))
  }

  @Test("lifecycle and platform events have types of their own")
  func otherLines() {
    let transition = LifecycleReport(
      time: moment, incarnation: web, domainName: "web",
      kind: .transition(from: .unguarded, event: .configured, to: .inspecting))
    #expect(
      text(encoder().encode(.lifecycle(transition))).hasSuffix(
        #","lifecycle":{"kind":"transition","from":"unguarded","event":"configured","to":"inspecting"}}}"#))
    let stuck = LifecycleReport(
      time: moment, incarnation: web, domainName: "web", kind: .stuck(state: .orphaned, for: .milliseconds(1_500)))
    #expect(
      text(encoder().encode(.lifecycle(stuck))).hasSuffix(
        #""lifecycle":{"kind":"stuck","state":"orphaned","for_ms":1500}}}"#))
    let platform = PlatformAlert(
      time: moment, incarnation: nil, kind: .packetsDropped, message: "ring full", count: 7, source: attacker)
    #expect(
      text(encoder().encode(.platform(platform))).hasSuffix(
        #""vmfence":{"node":"host-1","platform":{"kind":"packets-dropped","message":"ring full","severity":2,"#
          + #""count":7,"source":"203.0.113.7"}}}"#))
  }

  @Test("the summary of a run is a stats event")
  func statistics() {
    let record = EVEStatistics(
      time: moment, uptime: .seconds(90), packets: 10, bytes: 1_000, drops: 1, alerts: 2,
      counters: [("flows", 3)])
    #expect(
      text(encoder().encode(record)).hasSuffix(
        #""event_type":"stats","host":"host-1","stats":{"uptime":90,"capture":{"kernel_packets":10,"kernel_drops":1},"#
          + #""decoder":{"pkts":10,"bytes":1000},"detect":{"alert":2}},"vmfence":{"node":"host-1","#
          + #""counters":{"flows":3}}}"#))
    var inspected = record
    inspected.inspector = [("work_limit_hits", 4)]
    #expect(text(encoder().encode(inspected)).hasSuffix(#""counters":{"flows":3},"inspector":{"work_limit_hits":4}}}"#))
  }

  @Test("a domain that nobody described is named by its number")
  func unknownDomain() {
    let line = text(EVEEncoder(node: "n", directory: DomainDirectory()).encode(.alert(alert())))
    #expect(line.contains(#""vm":{"uuid":"7f3c0001-0000-4000-8000-000000000001","domid":3},"packet""#))
  }

  @Test(
    "hostile text cannot break the line, the string or the terminal",
    arguments: [
      ("a\"b\\c", #"a\"b\\c"#), ("line\nfeed\r\t", #"line\nfeed\r\t"#),
      ("\u{0}\u{1B}[2J\u{7F}", #"\u0000\u001b[2J\u007f"#),
      ("\u{85}\u{9B}", #"\u0085\u009b"#), ("\u{2028}\u{2029}", #"\u2028\u2029"#), ("\u{202E}evil", #"\u202eevil"#),
      ("\u{E0041}", #"\udb40\udc41"#), ("grüße 😀", "grüße 😀"), ("\u{FEFF}", #"\ufeff"#), ("</script>", "</script>"),
      (
        String(decoding: [0x61, 0xC3, 0x28, 0xED, 0xA0, 0x80] as [UInt8], as: UTF8.self),
        "a\u{FFFD}(\u{FFFD}\u{FFFD}\u{FFFD}"
      ),
    ])
  func hostileText(message: String, expected: String) {
    let line = encoder().encode(.alert(alert(message)))
    #expect(text(line).contains(#""signature":"\#(expected)","category""#))
    #expect(!line.contains { $0 < 0x20 })
  }

  @Test("an endless text is cut")
  func longText() {
    let line = encoder().encode(.alert(alert(String(repeating: "x", count: 100_000))))
    #expect(line.count < 20_000)
    #expect(text(line).contains("xxx…\""))
  }

  @Test(
    "times have the prescribed form over the whole range",
    arguments: [
      (0, 0, "1970-01-01T00:00:00.000000+0000"), (951_782_400, 999_999_999, "2000-02-29T00:00:00.999999+0000"),
      (-1, 0, "1969-12-31T23:59:59.000000+0000"), (4_107_542_399, 0, "2100-02-28T23:59:59.000000+0000"),
      (4_107_542_400, 0, "2100-03-01T00:00:00.000000+0000"),
    ])
  func times(seconds: Int64, nanoseconds: Int64, expected: String) {
    #expect(Timestamp(seconds: seconds, nanoseconds: nanoseconds).eveDescription == expected)
  }

  @Test("the ends of the range of times do not trap")
  func extremeTimes() {
    #expect(Timestamp(nanoseconds: .min).eveDescription == "1677-09-21T00:12:43.145224+0000")
    #expect(Timestamp(nanoseconds: .max).eveDescription == "2262-04-11T23:47:16.854775+0000")
  }

  @Test("Snort's fast format")
  func fast() {
    #expect(
      text(FastAlertEncoder().encode(alert("A \"B\"\n", verdict: .drop)))
        == #"11/23-04:46:55.123456 [**] [1:1000001:2] "A "B"\u{a}" [**] [Classification: Web Application Attack] "#
        + #"[Priority: 1] {TCP} 203.0.113.7:40000 -> 192.0.2.10:80"#)
    #expect(
      text(FastAlertEncoder(isInline: true).encode(alert(verdict: .drop, protocolNumber: 1))).contains(
        "123456 [drop] [**] [1:1000001:2]"))
    #expect(text(FastAlertEncoder().encode(alert(protocolNumber: 1))).hasSuffix("{ICMP} 203.0.113.7 -> 192.0.2.10"))
  }
}
