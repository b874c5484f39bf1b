import Testing
import VMFenceCore
import VMFenceDetection

/// Options about application layers: right ones make the rule one that is not supported yet, wrong ones are mistakes with a place.
@Suite struct LanguageApplicationTests {
  private func parse(_ dialect: RuleDialect, _ options: String, head: String = "alert tcp any any -> any any")
    -> ParsedRules
  {
    let text = "\(head) (content:\"x\"; \(options); sid:7;)"
    return RuleFileParser.parse(
      RuleSource(file: "test.rules", text: Array(text.utf8), dialect: dialect), variables: [:])
  }

  static let right: [(RuleDialect, String)] = [
    (.suricata, "http.uri; content:\"/a\""), (.suricata, "http_uri"), (.suricata, "uricontent:\"a|20|b\"; nocase"),
    (.suricata, "uricontent:!\"a\""), (.suricata, "dns.rrtype:1,all"), (.suricata, "dns.rrtype:!2"),
    (.suricata, "dns.opcode:1-5"), (.suricata, "dns.rcode:NXDOMAIN"), (.suricata, "tls.sni; content:\"a\""),
    (.suricata, "tls.cert_chain_len:>2"), (.suricata, "ssl_version:!tls1.3,tls1.2"),
    (.suricata, "ssl_state:client_hello|server_hello"),
    (.suricata, "ftp.mode:active"), (.suricata, "ftp.dynamic_port:<=59926"), (.suricata, "ftp.reply_received:yes"),
    (.suricata, "app-layer-protocol:!http,to_server"), (.suricata, "app-layer-event:http.gzip_decompression_failed"),
    (.suricata, "dce_iface:4b324fc8-1670-01d3-1278-5a47bf6ee188,<3,any_frag"), (.suricata, "dcerpc.opnum:0-3,9"),
    (.suricata, "filesize:>100KB"), (.suricata, "filename:\"a.exe\""), (.suricata, "filemd5:!list.md5"),
    (.suricata, "filestore"),
    (.suricata, "filestore:both,file"), (.suricata, "urilen:5<>10,raw"), (.suricata, "lua:script.lua"),
    (.suricata, "xbits:set,a,track tx"), (.suricata, "xbits:isset,a,track tx"),
    (.suricata, "frame:http1.response"),
    (.suricata, "rfb.secresult:ok"), (.suricata, "mqtt.qos:1"), (.suricata, "websocket.opcode:text"),
    (.suricata, "ja3.hash; content:\"a\""),
    (.suricata, "snmp.version:2"), (.suricata, "http2.frametype:PING"), (.suricata, "nfq_set_mark:0x8/0xff"),
    (.suricata, "tls.store"),
    (.snort2, "http_header"), (.snort2, "uricontent:\"/x\""), (.snort2, "urilen:5<>10"),
    (.snort2, "dce_iface:4b324fc8-1670-01d3-1278-5a47bf6ee188"),
    (.snort2, "dce_opnum:0,1-3"), (.snort2, "ssl_version:tls1.0,!sslv3"), (.snort2, "sip_method:invite,!options"),
    (.snort2, "file_data"),
    (.snort2, "http_encode:uri,utf8"), (.snort2, "logto:\"f\""),
    (.snort2, "session:printable"), (.snort2, "dnp3_ind:need_time"),
    (.snort3, "http_uri; content:\"x\""), (.snort3, "http_header:field user-agent,request; content:\"x\""),
    (.snort3, "http_param:\"a\",nocase"),
    (.snort3, "http_num_headers:>5,request"), (.snort3, "http_version_match:1.0 1.1"),
    (.snort3, "dce_iface:uuid 4b324fc8-1670-01d3-1278-5a47bf6ee188, version <3"),
    (.snort3, "dce_opnum:\"1-2,9\""), (.snort3, "service:http,dns"), (.snort3, "sip_stat_code:4,180"),
    (.snort3, "ssl_state:!client_hello"),
    (.snort3, "modbus_unit:3"), (.snort3, "cip_class:3<=>5"), (.snort3, "enip_command:>9"),
    (.snort3, "file_type:\"PDF,EXE\""), (.snort3, "js_data"),
    (.snort3, "appids:\"HTTP\""), (.snort3, "gtp_version:1"), (.snort3, "socks_version:5"),
    (.snort3, "opcua_node_id:7"),
  ]

  @Test(arguments: right.indices)
  func `a right option makes the rule one that is not supported yet`(index: Int) {
    let (dialect, options) = Self.right[index]
    let result = parse(dialect, options)
    #expect(result.rules.isEmpty && result.unsupported.map(\.sid) == [7], "\(options): \(result.diagnostics)")
    #expect(result.diagnostics.allSatisfy { $0.message.contains("not supported yet") }, "\(result.diagnostics)")
  }

  /// The offset counts from the beginning of the option.
  static let wrong: [(RuleDialect, String, Int, String)] = [
    (.suricata, "http.uri:x", 9, "takes no value"), (.suricata, "dns.opcode", 0, "needs a value"),
    (.suricata, "dns.rrtype:-", 11, "not a"),
    (.suricata, "uricontent:x", 11, "not in quotation marks"), (.suricata, "uricontent:\"a", 11, "not closed"),
    (.suricata, "uricontent:\"|0|\"", 12, "hexadecimal"),
    (.suricata, "ssl_version:tls9", 12, "`tls9` is not known"),
    (.suricata, "ftp.mode:maybe", 9, "`maybe` is not known"),
    (.suricata, "dce_iface:1234", 10, "no interface"),
    (.suricata, "xbits:unset,a,track tx", 6, "cannot be with `track tx`"),
    (.suricata, "xbits:set,a,track tx,expire 5", 6, "cannot be with `track tx`"),
    (.suricata, "dce_opnum:70000", 10, "not a number from 0 to 65535"), (.suricata, "mqtt.qos:9", 9, "9"),
    (.suricata, "decode-event:ipv4.trunc", 13, "not known"), (.snort2, "dce_opnum:x", 10, "not a number"),
    (.snort2, "ssl_state:gone", 10, "not known"),
    (.snort3, "http_header:field", 12, "needs a name"), (.snort3, "http_uri:x", 9, "not known"),
    (.snort3, "http_num_headers:x", 17, "`x`"),
    (.snort3, "modbus_unit:999", 12, "999"), (.snort3, "dnp3_ind:x", 9, "not known"),
  ]

  @Test(arguments: wrong.indices)
  func `a wrong argument is told with its place`(index: Int) throws {
    let (dialect, options, column, message) = Self.wrong[index]
    let result = parse(dialect, options)
    let mistake = try #require(result.diagnostics.first { $0.severity == .error })
    #expect(mistake.message.contains(message), "\(options): \(mistake)")
    #expect(mistake.place?.column == 44 + column, "\(options): \(mistake)")
    #expect(result.unsupported.isEmpty && result.rules.isEmpty && result.rejected == 1)
  }

  @Test func `what will never be evaluated says why`() throws {
    for (dialect, options, reason) in [
      (.suricata, "lua:script.lua", "a script"), (.suricata, "nfq_set_mark:0x8/0xff", "NFQUEUE"),
      (.snort3, "so:3_13415", "machine code"), (.snort2, "logto:\"f\"", "EVE"),
    ] as [(RuleDialect, String, String)] {
      let told = try #require(parse(dialect, options).diagnostics.first)
      #expect(told.remedy.contains("left out, and will be") && told.remedy.contains(reason), "\(told)")
    }
    #expect(parse(.suricata, "tls.sni").diagnostics.first?.remedy == "the rule is left out")
  }

  @Test func `a modifier of an application layer needs a content`() {
    let text = "alert tcp any any -> any any (http_uri; sid:7;)"
    let result = RuleFileParser.parse(
      RuleSource(file: "test.rules", text: Array(text.utf8), dialect: .suricata), variables: [:])
    #expect(result.diagnostics.first?.message.contains("before any content") == true)
  }
}
