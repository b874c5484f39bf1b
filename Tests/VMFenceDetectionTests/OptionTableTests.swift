import Testing
import VMFenceCore
import VMFenceDetection

/// Every option of the three dialects: with a right value it is evaluated, or makes its rule one that is not supported yet; with a wrong
/// one it is a mistake with a place. None is passed over in silence.
@Suite("The table of options") struct OptionTableTests {
  /// A digest of so many bytes, none of which matters here.
  private static func zeros(_ count: Int) -> String { String(repeating: "00", count: count) }

  /// Dialects (2: Snort 2, 3: Snort 3, s: Suricata), names, a right value, and a wrong one; nil: no value.
  typealias Row = (dialects: String, names: String, right: String?, wrong: String?)

  static let evaluated: [Row] = [
    ("23s", "msg", "\"x\"", nil),
    ("23s", "sid", "7", "0"),
    ("23s", "gid", "3", "x"),
    ("23s", "rev", "1", "x"),
    ("23s", "classtype", "bad-unknown", nil),
    ("23s", "priority", "1", "0"),
    ("23s", "reference", "cve,2014-6271", "cve"),
    ("23s", "metadata", "a b", nil),
    ("3", "target", "dst_ip", "dest_ip"),
    ("s", "target", "dest_ip", "dst_ip"),
    ("3", "rem", "\"x\"", "x"),
    ("s", "requires", "version >= 7", "x"),
    ("2", "activated_by activates count", "1", "x"),
    ("s", "alert bypass noalert prefilter", nil, "x"),
    ("2s", "threshold", "type limit, track by_src, count 1, seconds 1", "type limit"),
    ("23s", "detection_filter", "track by_src, count 1, seconds 1", "track by_src"),
    ("23s", "content", "\"a\"", "\"\""),
    ("2s", "nocase rawbytes", nil, "x"),
    ("2s", "distance offset", "1", "x"),
    ("2s", "depth within", "9", "x"),
    ("s", "endswith startswith", nil, "x"),
    ("2s", "fast_pattern", nil, "9,9"),
    ("23s", "replace", "\"fedcba\"", "x"),
    ("23s", "pcre", "\"/a/\"", "\"/(/\""),
    ("3", "regex", "\"/a/\"", "\"/(/\""),
    ("2", "sd_pattern", "2,us_social", "x"),
    ("3", "sd_pattern", "\"us_social\", threshold 2", "us_social"),
    ("23s", "byte_test", "1,>,2,0", "1,>"),
    ("23s", "byte_jump", "1,0", "x"),
    ("23s", "byte_extract", "1,0,name", "1,0"),
    ("23s", "byte_math", "bytes 1, offset 0, oper +, rvalue 1, result a", "bytes 1"),
    ("23s", "isdataat", "5", "x y"),
    ("s", "bsize", "5", "x"),
    ("3", "bufferlen", "5", "x"),
    ("23s", "base64_decode", "bytes 4", "x"),
    ("23s", "base64_data pkt_data", nil, "x"),
    ("3", "raw_data", nil, "x"),
    ("s", "entropy", "value >= 7.5", "x"),
    ("3", "md5", "\"\(zeros(16))\", length 4", "\"00\", length 4"),
    ("3", "sha256", "\"\(zeros(32))\", length 4", "\"00\", length 4"),
    ("3", "sha512", "\"\(zeros(64))\", length 4", "\"00\", length 4"),
    ("2", "protected_content", "\"\(zeros(16))\"", "\"00\""),
    ("2", "hash", "md5", "x"),
    ("2", "react", "block,msg,proxy 8080", "page"),
    ("2", "resp", "rst_all,icmp_host", "rst_none"),
    ("3", "enable", "yes", "maybe"),
    ("2", "length", "4", "x"),
    ("23s", "rpc", "100000,*,*", "x"),
    ("2s", "asn1", "double_overflow", "x"),
    ("3", "ber_data ber_skip", "2", "x"),
    ("23", "cvs", "invalid-entry", "x"),
    ("s", "absent", "or_else", "x"),
    ("s", "dataset", "isset,a,type ip", "isset,a"),
    ("s", "datarep", "a,>,5,type ip", "a,>"),
    (
      "s",
      """
      compress_whitespace domain dotprefix header_lowercase strip_pseudo_headers strip_whitespace tld to_lowercase
      to_md5 to_sha1 to_sha256 to_uppercase url_decode
      """, nil, "x"
    ),
    ("s", "gunzip zlib_deflate", "max-size 9", "x"),
    ("s", "from_base64", "mode strict", "x"),
    ("s", "xor", "\"0a\"", "\"0\""),
    ("s", "pcrexform", "\"(a)\"", "\"(a\""),
    ("s", "subslice", "1,2", "x"),
    (
      "s",
      """
      ether.hdr icmpv4.hdr icmpv6.hdr igmp.hdr ip.dst ip.src ipv4.hdr ipv6.hdr sctp.chunk_data sctp.hdr tcp.hdr
      udp.hdr
      """, nil, "x"
    ),
    ("23s", "flags", "S", "X"),
    ("s", "tcp.flags", "S", "X"),
    ("23s", "dsize", "5", "x"),
    ("23s", "fragbits", "M", "X"),
    ("23s", "ipopts", "rr", "x"),
    ("2s", "sameip", nil, "x"),
    ("23s", "ip_proto", "6", "nothing"),
    ("23s", "tos", "8", "y"),
    ("s", "l3_proto", "ipv4", "x"),
    ("s", "vlan.id", "5", "5,9"),
    ("s", "sctp.chunk_type", "data", "x"),
    ("23s", "ack fragoffset icmp_id icmp_seq icode id itype seq ttl window", "5", "x"),
    ("3", "mss pkt_num urg wscale", "5", "x"),
    (
      "s",
      """
      icmpv6.mtu igmp.type sctp.chunk_cnt sctp.vtag tcp.ack tcp.mss tcp.seq tcp.window tcp.wscale
      """, "5", "x"
    ),
    ("s", "vlan.layers", "2", "x"),
    ("s", "vxlan_vni", "4096", "16777216"),
    (
      "s",
      """
      icmpv4-csum icmpv6-csum igmp-csum ipv4-csum tcpv4-csum tcpv6-csum udpv4-csum udpv6-csum
      """, "valid", "x"
    ),
    ("23s", "flow", "to_server", "x"),
    ("23s", "flowbits", "set,a", "set"),
    ("s", "flowint", "a,+,1", "a,?,1"),
    ("s", "xbits", "set,a,track ip_src", "set,a"),
    ("s", "hostbits", "set,a", "x,a"),
    ("s", "flowvar pktvar", "a,\"b\"", "a"),
    ("s", "flow.age", "5", "x"),
    ("s", "flow.bytes flow.pkts", "toserver,5", "5"),
    (
      "s",
      """
      flow.bytes_toclient flow.bytes_toserver flow.pkts_toclient flow.pkts_toserver
      """, "5", "x"
    ),
    ("2s", "stream_size", "client,>,5", "5"),
    ("3", "stream_size", ">5,to_server", "5,x"),
    ("2", "stream_reassemble", "disable,client", "disable"),
    ("3", "stream_reassemble", "action disable,direction client", "disable"),
    ("s", "tcp.session", "setup", "x"),
    ("2s", "tag", "session,5,packets", "x"),
    ("3", "tag", "session,packets 5", "x"),
    ("s", "flow.elephant", "toserver", "x"),
    ("s", "stream-event", "pkt_retransmission", "x"),
    ("s", "decode-event engine-event", "ipv4.trunc_pkt", "x"),
  ]

  /// Those of application layers, scripts, and what needs files that were not given. A wrong value of `-`: there is none.
  static let unsupported: [Row] = [
    ("2", "appid logto", "a", nil),
    ("2", "file_group", "a|b", "a b"),
    ("2", "http_encode", "uri,utf8|!bare_byte", "uri,utf9"),
    ("2", "session", "all", "maybe"),
    ("2", "http_raw_cookie", nil, "x"),
    (
      "23",
      """
      cip_attribute cip_class cip_conn_path_class cip_instance cip_service cip_status enip_command gtp_version
      modbus_unit sip_stat_code
      """, "1", "x"
    ),
    ("23", "file_type", "a", nil),
    ("23", "gtp_info gtp_type", "17,create_pdp_context_request", "256"),
    ("23", "modbus_func", "read_coils", "read_coil"),
    ("23", "sip_method", "invite,!bye", "in vite"),
    ("23", "soid", "3|13415", "3,4 5"),
    ("23", "dnp3_ind", "need_time", "x"),
    ("23", "cip_req cip_rsp enip_req enip_rsp modbus_data sip_body sip_header", nil, "x"),
    ("23s", "dce_opnum", "1", "x"),
    ("23s", "dce_iface", "4b324fc8-1670-01d3-1278-5a47bf6ee188", "4b324fc8"),
    ("23s", "dnp3_func", "direct_operate", "direct"),
    ("2s", "dnp3_obj", "10,255", "10,256"),
    ("3", "dnp3_obj", "group 10, var 3", "10, 3"),
    ("23s", "ssl_state", "client_hello", "x"),
    ("23s", "ssl_version", "tls1.2", "x"),
    ("23s", "dce_stub_data dnp3_data file_data", nil, "x"),
    ("2s", "uricontent", "\"a\"", "a"),
    ("2s", "urilen", "5", "x"),
    (
      "2s",
      """
      ftpbounce http_client_body http_cookie http_header http_method http_raw_header http_raw_uri http_stat_code
      http_stat_msg http_uri
      """, nil, "x"
    ),
    ("3", "http_param", "\"a\"", "a"),
    (
      "3",
      """
      opcua_node_id opcua_node_namespace_index socks_remote_port socks_version
      """, "1", "x"
    ),
    (
      "3",
      """
      http_max_header_line http_max_trailer_line http_num_cookies http_num_headers http_num_trailers
      """, "5", "x"
    ),
    (
      "3",
      """
      appids http_version_match socks_remote_address
      """, "a", nil
    ),
    ("3", "file_meta", "type \"PDF\", id 9", "kind \"PDF\""),
    ("3", "iec104_apci_type", "u", "x"),
    (
      "3",
      """
      iec104_asdu_func mms_func opcua_msg_service opcua_msg_type s7commplus_func s7commplus_opcode socks_address_type
      socks_command socks_state
      """, "M_SP_NA_1", "65536"
    ),
    ("3", "service", "http,dns", "http dns"),
    ("3", "so", "3_13415", "3 4"),
    (
      "3",
      """
      http_client_body http_cookie http_decoded_uri http_header http_header_test http_method http_raw_body
      http_raw_cookie http_raw_header http_raw_request http_raw_status http_raw_trailer http_raw_uri http_stat_code
      http_stat_msg http_trailer http_trailer_test http_true_ip http_uri http_version
      """, "request", "x"
    ),
    (
      "3",
      """
      http2_frame_data http2_frame_header js_data mms_data s7commplus_content vba_data
      """, nil, "x"
    ),
    ("s", "fileext filemagic filename tls.fingerprint tls.issuerdn tls.subject", "\"a\"", "a"),
    ("s", "nfq_set_mark", "0x8/0xff,packet", "x"),
    (
      "s",
      """
      dcerpc.opnum dhcp.leasetime dhcp.rebinding_time dhcp.renewal_time enip.capabilities enip.cip_attribute
      enip.cip_class enip.cip_extendedstatus enip.cip_instance enip.cip_status enip.device_type enip.identity_status
      enip.product_code enip.protocol_version enip.serial enip.state enip.vendor_id filesize ftp.dynamic_port
      http2.priority http2.size_update http2.window ike.exchtype ike.key_exchange_payload_length
      ike.nonce_payload_length krb5_err_code krb5_msg_type ldap.responses.count mqtt.protocol_version mqtt.qos
      mqtt.reason_code nfs.version nfs_version ntp.stratum ntp.version rfb.sectype tls.cert_chain_len websocket.mask
      """, "1", "x"
    ),
    (
      "s",
      """
      dns.opcode dns.rcode dns.rrtype enip.status enip_command http2.errorcode http2.frametype nfs_procedure ntp.mode
      rfb.secresult snmp.pdu_type snmp.trap_type websocket.opcode
      """, "!1,all_or_absent", "1,some"
    ),
    ("s", "dcerpc.iface", "4b324fc8-1670-01d3-1278-5a47bf6ee188", "4b324fc8"),
    ("s", "template", "a", "-"),
    ("s", "filestore", "both,tx", "sideways"),
    ("s", "app-layer-event frame ssh.protoversion", "http1.response", "http1 response"),
    ("s", "app-layer-protocol", "!http,to_server", "http,to_nobody"),
    ("s", "app-layer-state", ">request_started", ">request started"),
    ("s", "cip_service", "16,246,6", "128"),
    ("s", "dnp3.func", "direct_operate_nr", "direct"),
    ("s", "dnp3.ind dnp3_ind", "need_time,!reserved_1", "no_time"),
    ("s", "dnp3.obj", "99,99", "99"),
    ("s", "enip.revision", ">1", "65536"),
    ("s", "http2.settings", "SETTINGS_HEADER_TABLE_SIZE>4096", "SETTINGS_TABLE=1"),
    ("s", "ike.chosen_sa_attribute", "alg_hash=2", "alg_hash"),
    ("s", "krb5.ticket_encryption", "weak", "very weak"),
    ("s", "ldap.request.operation ldap.responses.operation", "search_result_done", "search"),
    ("s", "ldap.responses.result_code", "success,-1", "failure"),
    ("s", "lua luaxform ssh.softwareversion", "a", nil),
    ("s", "modbus", "access write holding, address 500, value >200", "access write 500"),
    ("s", "mqtt.connect.flags", "username,!will", "username,!wont"),
    ("s", "mqtt.flags", "dup,!retain", "dup,qos"),
    ("s", "mqtt.type", "!CONNECT", "CONNECTED"),
    ("s", "smb.version", "2", "4"),
    ("s", "snmp.version", "<3", "v2"),
    ("s", "tls.version", "1.2", "1.4"),
    ("s", "tls_cert_notafter tls_cert_notbefore", "2015-10-22T23:59:59<>2020-05", "yesterday"),
    ("s", "websocket.flags", "fin,!comp", "fin,!comm"),
    ("s", "filemd5 filesha1 filesha256", "a.txt", nil),
    ("s", "ftp.mode", "active", "maybe"),
    ("s", "config", "logging disable, type tx, scope flow", "logging enable"),
    ("s", "ftpdata_command", "retr", "maybe"),
    ("s", "ftp.reply_received mqtt.connack.session_present", "yes", "maybe"),
    (
      "s",
      """
      dcerpc.stub_data dnp3.data dns.additionals.rrname dns.answer.name dns.answers.rrname dns.authorities.rrname
      dns.queries.rrname dns.query dns.query.name dns.response.rrname dns_query email.body_md5 email.cc email.date
      email.from email.message_id email.received email.subject email.to email.url email.x_mailer enip.product_name
      enip.service_name file.data file.magic file.name ftp.command ftp.command_data ftp.completion_code ftp.reply
      http.accept http.accept_enc http.accept_lang http.connection http.content_len http.content_type http.cookie
      http.header http.header.raw http.header_names http.host http.host.raw http.location http.method http.protocol
      http.referer http.request_body http.request_header http.request_line http.response_body http.response_header
      http.response_line http.server http.start http.stat_code http.stat_msg http.uri http.uri.normalized http.uri.raw
      http.user_agent http2.header_name http_accept http_accept_enc http_accept_lang http_connection http_content_len
      http_content_type http_header_names http_host http_protocol http_raw_host http_referer http_request_line
      http_response_line http_server_body http_start http_user_agent ike.init_spi ike.key_exchange_payload
      ike.nonce_payload ike.resp_spi ike.vendor ja3.hash ja3.string ja3_hash ja3_string ja3s.hash ja3s.string ja4.hash
      ja4_hash krb5.cname krb5.sname ldap.request.attribute_type ldap.request.dn ldap.responses.attribute_type
      ldap.responses.dn ldap.responses.message llmnr.additionals.rrname llmnr.answers.rrname llmnr.authorities.rrname
      llmnr.queries.rrname llmnr.response.rrname mdns.additionals.rrname mdns.answers.rrname mdns.authorities.rrname
      mdns.queries.rrname mdns.response.rrname mqtt.connect.clientid mqtt.connect.password
      mqtt.connect.protocol_string mqtt.connect.username mqtt.connect.willmessage mqtt.connect.willtopic
      mqtt.publish.message mqtt.publish.topic mqtt.subscribe.topic mqtt.unsubscribe.topic ntp.reference_id pgsql.query
      quic.cyu.hash quic.cyu.string quic.sni quic.ua quic.version rfb.name sdp.attribute sdp.bandwidth
      sdp.connection_data sdp.email sdp.encryption_key sdp.media.connection_data sdp.media.encryption_key
      sdp.media.media sdp.media.media_info sdp.origin sdp.phone_number sdp.repeat_time sdp.session_info
      sdp.session_name sdp.time sdp.timezone sdp.uri sip.content_length sip.content_type sip.from sip.method
      sip.protocol sip.request_line sip.response_line sip.stat_code sip.stat_msg sip.to sip.uri sip.user_agent sip.via
      smb.named_pipe smb.ntlmssp_domain smb.ntlmssp_user smb.share smb_named_pipe smtp.helo smtp.mail_from
      smtp.rcpt_to snmp.community snmp.trap_address snmp.trap_oid snmp.usm ssh.hassh ssh.hassh.server
      ssh.hassh.server.string ssh.hassh.string ssh.proto ssh.software template.buffer tls.alpn tls.cert_fingerprint
      tls.cert_issuer tls.cert_serial tls.cert_subject tls.certs tls.random tls.random_bytes tls.random_time tls.sni
      tls.store tls.subjectaltname tls_cert_expired tls_cert_fingerprint tls_cert_issuer tls_cert_serial
      tls_cert_subject tls_cert_valid tls_sni tls_store websocket.payload
      """, nil, "x"
    ),
    ("s", "iprep", "src,Bad,>,5", "src,Bad"),
    ("s", "geoip", "src,SE", "sweden"),
  ]

  /// What stands before and after an option that needs others.
  private static let before = [
    "base64_data": "base64_decode;", "absent": "CHOOSE", "hash": "protected_content:\"\(zeros(16))\"; length:4;",
    "length": "protected_content:\"\(zeros(16))\";", "activated_by": "count:1;", "count": "activated_by:1;",
  ]
  private static let after = ["protected_content": "length:4;"]

  private static func parse(_ dialect: RuleDialect, _ name: String, _ value: String?) -> ParsedRules {
    let action = ["activates": "activate", "activated_by": "dynamic", "count": "dynamic"][name] ?? "alert"
    let transport = ["itype", "icode"].contains(name) ? "icmp" : "tcp"
    let before = (before[name] ?? "").replacing("CHOOSE", with: "tcp.hdr;")
    let option = name + (value.map { ":\($0)" } ?? "")
    let text =
      "\(action) \(transport) any any -> any any (content:\"abcdef\"; \(before) \(option); \(after[name] ?? "") \(name == "sid" ? "" : "sid:7;"))"
    return RuleFileParser.parse(
      RuleSource(file: "test.rules", text: Array(text.utf8), dialect: dialect), variables: [:])
  }

  private static func forEach(_ rows: [Row], _ body: (RuleDialect, String, Row) -> Void) {
    for row in rows {
      for (letter, dialect) in [("2", RuleDialect.snort2), ("3", .snort3), ("s", .suricata)]
      where row.dialects.contains(letter) {
        for name in row.names.split(whereSeparator: \.isWhitespace) { body(dialect, String(name), row) }
      }
    }
  }

  @Test func `the table has every option of every dialect, once`() {
    var listed: [RuleDialect: [String]] = [:]
    Self.forEach(Self.evaluated + Self.unsupported) { dialect, name, _ in listed[dialect, default: []].append(name) }
    for dialect in RuleDialect.allCases {
      let names = listed[dialect] ?? []
      #expect(Set(names) == OptionNames.known(in: dialect), "\(dialect)")
      #expect(Set(names).count == names.count, "\(dialect)")
    }
  }

  @Test func `what is evaluated makes a rule`() {
    Self.forEach(Self.evaluated) { dialect, name, row in
      let result = Self.parse(dialect, name, row.right)
      #expect(result.rules.map(\.metadata.sid) == [7], "\(dialect) \(name): \(result.diagnostics)")
    }
  }

  @Test func `what is not evaluated refuses its rule by name and sid`() {
    Self.forEach(Self.unsupported) { dialect, name, row in
      let result = Self.parse(dialect, name, row.right)
      #expect(result.rules.isEmpty && result.unsupported.map(\.sid) == [7], "\(dialect) \(name): \(result.diagnostics)")
      #expect(
        result.unsupported.first?.features.contains { $0.contains("`\(name)`") } == true,
        "\(dialect) \(name): \(result.unsupported)")
    }
  }

  @Test func `a wrong value of any option is a mistake with its place`() {
    Self.forEach(Self.evaluated + Self.unsupported) { dialect, name, row in
      if row.wrong == "-" { return }
      let result = Self.parse(dialect, name, row.wrong)
      let mistake = result.diagnostics.first { $0.severity == .error }
      #expect(
        result.rules.isEmpty && result.unsupported.isEmpty && mistake != nil, "\(dialect) \(name) \(row.wrong ?? "")")
      #expect(mistake?.place?.line == 1 && (mistake?.place?.column ?? 0) > 1, "\(dialect) \(name)")
      #expect(mistake?.message.isEmpty == false)
    }
  }
}
