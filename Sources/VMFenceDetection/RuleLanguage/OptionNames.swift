import VMFenceCore

/// The names of the options that each dialect has, so that one which is not evaluated yet is told from one that is
/// misspelt and from one of another dialect.
package enum OptionNames {
  package static func known(in dialect: RuleDialect) -> Set<String> {
    switch dialect {
    case .snort2: snort2
    case .snort3: snort3
    case .suricata: suricata
    }
  }

  /// The dialects that have an option of this name.
  static func dialects(with name: String) -> [RuleDialect] {
    RuleDialect.allCases.filter { known(in: $0).contains(name) }
  }

  /// What Snort 3 writes inside `content`, after commas, and the other dialects as options of their own.
  static let contentModifiers = names(
    """
    nocase offset depth distance within fast_pattern fast_pattern_offset fast_pattern_length width endian
    """)

  private static func names(_ text: String) -> Set<String> {
    Set(text.split(whereSeparator: \.isWhitespace).map(String.init))
  }

  private static let snort2 = names(
    """
    ack activated_by activates appid asn1 base64_data base64_decode byte_extract byte_jump byte_math byte_test
    cip_attribute cip_class cip_conn_path_class cip_instance cip_req cip_rsp cip_service cip_status classtype
    content count cvs dce_iface dce_opnum dce_stub_data depth detection_filter distance dnp3_data dnp3_func dnp3_ind
    dnp3_obj dsize enip_command enip_req enip_rsp fast_pattern file_data file_group file_type flags flow flowbits
    fragbits fragoffset ftpbounce gid gtp_info gtp_type gtp_version hash http_client_body http_cookie http_encode
    http_header http_method http_raw_cookie http_raw_header http_raw_uri http_stat_code http_stat_msg http_uri
    icmp_id icmp_seq icode id ip_proto ipopts isdataat itype length logto metadata modbus_data modbus_func
    modbus_unit msg nocase offset pcre pkt_data priority protected_content rawbytes react reference replace resp rev
    rpc sameip sd_pattern seq session sid sip_body sip_header sip_method sip_stat_code soid ssl_state ssl_version
    stream_reassemble stream_size tag threshold tos ttl uricontent urilen window within
    """)
  private static let snort3 = names(
    """
    ack appids base64_decode ber_data ber_skip bufferlen byte_extract byte_jump byte_math byte_test cip_attribute
    cip_class cip_conn_path_class cip_instance cip_req cip_rsp cip_service cip_status classtype content cvs
    dce_iface dce_opnum dce_stub_data detection_filter dnp3_data dnp3_func dnp3_ind dnp3_obj dsize enable
    enip_command enip_req enip_rsp file_data file_meta file_type flags flow flowbits fragbits fragoffset gid
    gtp_info gtp_type gtp_version http2_frame_data http2_frame_header http_client_body http_cookie http_decoded_uri
    http_header http_header_test http_max_header_line http_max_trailer_line http_method http_num_cookies
    http_num_headers http_num_trailers http_param http_raw_body http_raw_cookie http_raw_header http_raw_request
    http_raw_status http_raw_trailer http_raw_uri http_stat_code http_stat_msg http_trailer http_trailer_test
    http_true_ip http_uri http_version http_version_match icmp_id icmp_seq icode id iec104_apci_type
    iec104_asdu_func ip_proto ipopts isdataat itype js_data md5 metadata mms_data mms_func modbus_data modbus_func
    modbus_unit msg mss opcua_msg_service opcua_msg_type opcua_node_id opcua_node_namespace_index pcre pkt_data
    pkt_num priority raw_data reference regex rem replace rev rpc s7commplus_content s7commplus_func
    s7commplus_opcode sd_pattern seq service sha256 sha512 sid sip_body sip_header sip_method sip_stat_code so
    socks_address_type socks_command socks_remote_address socks_remote_port socks_state socks_version soid ssl_state
    ssl_version stream_reassemble stream_size tag target tos ttl urg vba_data window wscale base64_data
    """)
  private static let suricata = names(
    """
    absent ack alert app-layer-event app-layer-protocol app-layer-state asn1 base64_data base64_decode bsize bypass
    byte_extract byte_jump byte_math byte_test cip_service classtype compress_whitespace config content datarep
    dataset dce_iface dce_opnum dce_stub_data dcerpc.iface dcerpc.opnum dcerpc.stub_data decode-event depth
    detection_filter dhcp.leasetime dhcp.rebinding_time dhcp.renewal_time distance dnp3.data dnp3.func dnp3.ind
    dnp3.obj dnp3_data dnp3_func dnp3_ind dnp3_obj dns.additionals.rrname dns.answer.name dns.answers.rrname
    dns.authorities.rrname dns.opcode dns.queries.rrname dns.query dns.query.name dns.rcode dns.response.rrname
    dns.rrtype dns_query domain dotprefix dsize email.body_md5 email.cc email.date email.from email.message_id
    email.received email.subject email.to email.url email.x_mailer endswith engine-event enip.capabilities
    enip.cip_attribute enip.cip_class enip.cip_extendedstatus enip.cip_instance enip.cip_status enip.device_type
    enip.identity_status enip.product_code enip.product_name enip.protocol_version enip.revision enip.serial
    enip.service_name enip.state enip.status enip.vendor_id enip_command entropy ether.hdr fast_pattern file.data
    file.magic file.name file_data fileext filemagic filemd5 filename filesha1 filesha256 filesize filestore flags
    flow flow.age flow.bytes flow.bytes_toclient flow.bytes_toserver flow.elephant flow.pkts flow.pkts_toclient
    flow.pkts_toserver flowbits flowint flowvar fragbits fragoffset frame from_base64 ftp.command ftp.command_data
    ftp.completion_code ftp.dynamic_port ftp.mode ftp.reply ftp.reply_received ftpbounce ftpdata_command geoip gid
    gunzip header_lowercase hostbits http.accept http.accept_enc http.accept_lang http.connection http.content_len
    http.content_type http.cookie http.header http.header.raw http.header_names http.host http.host.raw
    http.location http.method http.protocol http.referer http.request_body http.request_header http.request_line
    http.response_body http.response_header http.response_line http.server http.start http.stat_code http.stat_msg
    http.uri http.uri.normalized http.uri.raw http.user_agent http2.errorcode http2.frametype http2.header_name
    http2.priority http2.settings http2.size_update http2.window http_accept http_accept_enc http_accept_lang
    http_client_body http_connection http_content_len http_content_type http_cookie http_header http_header_names
    http_host http_method http_protocol http_raw_header http_raw_host http_raw_uri http_referer http_request_line
    http_response_line http_server_body http_start http_stat_code http_stat_msg http_uri http_user_agent icmp_id
    icmp_seq icmpv4-csum icmpv4.hdr icmpv6-csum icmpv6.hdr icmpv6.mtu icode id igmp-csum igmp.hdr igmp.type
    ike.chosen_sa_attribute ike.exchtype ike.init_spi ike.key_exchange_payload ike.key_exchange_payload_length
    ike.nonce_payload ike.nonce_payload_length ike.resp_spi ike.vendor ip.dst ip.src ip_proto ipopts iprep ipv4-csum
    ipv4.hdr ipv6.hdr isdataat itype ja3.hash ja3.string ja3_hash ja3_string ja3s.hash ja3s.string ja4.hash ja4_hash
    krb5.cname krb5.sname krb5.ticket_encryption krb5_err_code krb5_msg_type l3_proto ldap.request.attribute_type
    ldap.request.dn ldap.request.operation ldap.responses.attribute_type ldap.responses.count ldap.responses.dn
    ldap.responses.message ldap.responses.operation ldap.responses.result_code llmnr.additionals.rrname
    llmnr.answers.rrname llmnr.authorities.rrname llmnr.queries.rrname llmnr.response.rrname lua luaxform
    mdns.additionals.rrname mdns.answers.rrname mdns.authorities.rrname mdns.queries.rrname mdns.response.rrname
    metadata modbus mqtt.connack.session_present mqtt.connect.clientid mqtt.connect.flags mqtt.connect.password
    mqtt.connect.protocol_string mqtt.connect.username mqtt.connect.willmessage mqtt.connect.willtopic mqtt.flags
    mqtt.protocol_version mqtt.publish.message mqtt.publish.topic mqtt.qos mqtt.reason_code mqtt.subscribe.topic
    mqtt.type mqtt.unsubscribe.topic msg nfq_set_mark nfs.version nfs_procedure nfs_version noalert nocase ntp.mode
    ntp.reference_id ntp.stratum ntp.version offset pcre pcrexform pgsql.query pkt_data pktvar prefilter priority
    quic.cyu.hash quic.cyu.string quic.sni quic.ua quic.version rawbytes reference replace requires rev rfb.name
    rfb.secresult rfb.sectype rpc sameip sctp.chunk_cnt sctp.chunk_data sctp.chunk_type sctp.hdr sctp.vtag
    sdp.attribute sdp.bandwidth sdp.connection_data sdp.email sdp.encryption_key sdp.media.connection_data
    sdp.media.encryption_key sdp.media.media sdp.media.media_info sdp.origin sdp.phone_number sdp.repeat_time
    sdp.session_info sdp.session_name sdp.time sdp.timezone sdp.uri seq sid sip.content_length sip.content_type
    sip.from sip.method sip.protocol sip.request_line sip.response_line sip.stat_code sip.stat_msg sip.to sip.uri
    sip.user_agent sip.via smb.named_pipe smb.ntlmssp_domain smb.ntlmssp_user smb.share smb.version smb_named_pipe
    smtp.helo smtp.mail_from smtp.rcpt_to snmp.community snmp.pdu_type snmp.trap_address snmp.trap_oid
    snmp.trap_type snmp.usm snmp.version ssh.hassh ssh.hassh.server ssh.hassh.server.string ssh.hassh.string
    ssh.proto ssh.protoversion ssh.software ssh.softwareversion ssl_state ssl_version startswith stream-event
    stream_size strip_pseudo_headers strip_whitespace subslice tag target tcp.ack tcp.flags tcp.hdr tcp.mss tcp.seq
    tcp.session tcp.window tcp.wscale tcpv4-csum tcpv6-csum template template.buffer threshold tld tls.alpn
    tls.cert_chain_len tls.cert_fingerprint tls.cert_issuer tls.cert_serial tls.cert_subject tls.certs
    tls.fingerprint tls.issuerdn tls.random tls.random_bytes tls.random_time tls.sni tls.store tls.subject
    tls.subjectaltname tls.version tls_cert_expired tls_cert_fingerprint tls_cert_issuer tls_cert_notafter
    tls_cert_notbefore tls_cert_serial tls_cert_subject tls_cert_valid tls_sni tls_store to_lowercase to_md5 to_sha1
    to_sha256 to_uppercase tos ttl udp.hdr udpv4-csum udpv6-csum uricontent urilen url_decode vlan.id vlan.layers
    vxlan_vni websocket.flags websocket.mask websocket.opcode websocket.payload window within xbits xor zlib_deflate
    """)
}
