import VMFenceCore

/// The options that each dialect has, so that one which is not evaluated yet is told from one that is misspelt.
enum OptionNames {
  static func known(in dialect: RuleDialect) -> Set<String> {
    switch dialect {
    case .snort2: snort2
    case .snort3: snort3
    case .suricata: suricata
    }
  }

  private static func names(_ text: String) -> Set<String> {
    Set(text.split(whereSeparator: \.isWhitespace).map(String.init))
  }

  private static let common = names(
    """
    msg sid gid rev classtype priority reference metadata content pcre isdataat byte_test byte_jump byte_extract byte_math
    base64_decode base64_data pkt_data file_data rpc replace dsize flags flow flowbits fragbits fragoffset ttl tos id ipopts
    ip_proto seq ack window itype icode icmp_id icmp_seq stream_size detection_filter ssl_state ssl_version cvs
    """)
  private static let snort2 = common.union(
    names(
      """
      nocase offset depth distance within rawbytes fast_pattern uricontent urilen http_client_body http_cookie
      http_raw_cookie http_header http_raw_header http_method http_uri http_raw_uri http_stat_code http_stat_msg http_encode
      threshold logto session resp react tag activates activated_by count sameip asn1 sip_method sip_stat_code sip_header
      sip_body dce_iface dce_opnum dce_stub_data gtp_type gtp_info gtp_version modbus_func modbus_unit modbus_data dnp3_func
      dnp3_obj dnp3_ind dnp3_data ftpbounce cvs protected_content hash length stream_reassemble sd_pattern file_type
      soid appid nocase
      """))
  private static let snort3 = common.union(
    names(
      """
      service soid so enable rem target bufferlen regex raw_data ber_skip ber_data md5 sha256 sha512 sd_pattern js_data
      vba_data http_uri http_raw_uri http_header http_raw_header http_client_body http_raw_body http_cookie http_raw_cookie
      http_method http_stat_code http_stat_msg http_version http_param http_trailer http_raw_trailer http_true_ip
      http_raw_request http_raw_status http_num_headers http_num_trailers http_num_cookies http_version_match
      http_header_test http_trailer_test http_max_header_line http_max_trailer_line file_type file_meta appids
      dce_iface dce_opnum dce_stub_data dnp3_func dnp3_obj dnp3_ind dnp3_data modbus_func modbus_unit modbus_data
      gtp_type gtp_info gtp_version sip_method sip_stat_code sip_header sip_body s7commplus_content s7commplus_func
      s7commplus_opcode iec104_apci_type iec104_asdu_func cip_attribute cip_class cip_conn_path_class cip_instance
      cip_req cip_rsp cip_service cip_status enip_command enip_req enip_rsp mms_data mms_func opcua_msg_type
      opcua_msg_service opcua_node_id opcua_node_namespace_index tag mss wscale urg pkt_num flowbits
      """))
  private static let suricata = common.union(
    names(
      """
      nocase offset depth distance within rawbytes fast_pattern startswith endswith bsize absent noalert alert target
      requires config prefilter threshold tag sameip asn1 entropy dataset datarep lua luajit flowvar pktvar flowint xbits
      hostbits geoip iprep urilen uricontent http_client_body http_cookie http_header http_raw_header http_header_names
      http_method http_uri http_raw_uri http_stat_code http_stat_msg http_user_agent http_host http_raw_host http_protocol
      http_accept http_accept_lang http_accept_enc http_connection http_content_type http_content_len http_referer
      http_request_line http_response_line http_start http_server_body http_location http_server app-layer-protocol
      app-layer-event app-layer-state decode-event stream-event engine-event bypass filename fileext filemagic filestore
      filemd5 filesha1 filesha256 filesize ipv4-csum tcpv4-csum tcpv6-csum udpv4-csum udpv6-csum icmpv4-csum icmpv6-csum
      icmpv6.mtu l3_proto replace dotprefix to_lowercase to_uppercase to_md5 to_sha1 to_sha256 strip_whitespace
      compress_whitespace url_decode xor pcrexform header_lowercase strip_pseudo_headers from_base64 luaxform
      gunzip zlib_deflate dns_query dns.query dns.opcode dns.rcode dns.rrtype tls_sni tls_cert_issuer tls_cert_subject
      tls_cert_serial tls_cert_fingerprint tls_cert_notbefore tls_cert_notafter tls_cert_expired tls_cert_valid ja3_hash
      ja3_string tls.version tls.subject tls.issuerdn tls.fingerprint tls.store ssh_proto ssh_software ssh.protoversion
      ssh.softwareversion smb_named_pipe smb_share smb_ntlmssp_user smb_ntlmssp_domain dce_iface dce_opnum dce_stub_data
      krb5_msg_type krb5_cname krb5_sname krb5_err_code modbus dnp3_func dnp3_ind dnp3_obj dnp3_data enip_command
      cip_service nfs_procedure nfs_version rfb.name snmp.version mqtt.type ftpbounce ftpdata_command pkt_data base64_data
      base64_decode sip.method sip.uri ttl ip.src ip.dst per-signature
      """))

  /// Suricata names buffers and fields `protocol.field`; new ones come with every release, so any of this shape counts as known.
  static func isDottedBuffer(_ name: String) -> Bool {
    let parts = name.split(separator: ".", omittingEmptySubsequences: false)
    let protocols: Set<Substring> = [
      "http", "http2", "dns", "mdns", "tls", "ja3", "ja3s", "ja4", "ssh", "ssh.hassh", "file", "smtp", "email", "ftp",
      "smb", "dcerpc",
      "krb5", "snmp", "sip", "rfb", "mqtt", "quic", "ike", "nfs", "rpc", "tcp", "udp", "ipv4", "ipv6", "icmpv4",
      "icmpv6", "ether", "vlan", "igmp", "sctp", "ip", "flow", "flowint", "app-layer", "websocket", "ldap", "pgsql",
      "pop3", "imap", "enip",
      "modbus", "dnp3", "dhcp", "tftp", "telnet", "bittorrent_dht", "sdp", "arp", "cip", "stream", "decode",
      "krb5.ticket", "luaxform",
      "xbits", "hostbits", "frame",
    ]
    return parts.count >= 2 && protocols.contains(parts[0])
  }

  /// The known name that is nearest to a misspelt one, if one is near.
  static func suggestion(for name: String, in dialect: RuleDialect) -> String? {
    var best: (name: String, distance: Int)?
    for candidate in known(in: dialect).sorted() where abs(candidate.utf8.count - name.utf8.count) <= 2 {
      let distance = editDistance(Array(candidate.utf8), Array(name.lowercased().utf8))
      if distance <= 2, distance < best?.distance ?? 3 { best = (candidate, distance) }
    }
    return best?.name
  }

  private static func editDistance(_ a: [UInt8], _ b: [UInt8]) -> Int {
    var row = Array(0...b.count)
    for (i, x) in a.enumerated() {
      var diagonal = row[0]
      row[0] = i + 1
      for (j, y) in b.enumerated() {
        let next = min(diagonal + (x == y ? 0 : 1), row[j] + 1, row[j + 1] + 1)
        diagonal = row[j + 1]
        row[j + 1] = next
      }
    }
    return row[b.count]
  }
}
