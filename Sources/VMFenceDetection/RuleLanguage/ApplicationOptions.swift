import VMFenceCore

/// What the options about application layers take, by dialect.
enum ApplicationOptions {
  /// What an option takes.
  enum Form {
    /// Nothing: it chooses a buffer, or is a flag.
    case nothing
    /// Nothing; it says what the content before it looks at.
    case modifier
    /// A pattern in quotation marks, negated or not.
    case pattern
    /// A text, in quotation marks or not.
    case text
    /// A comparison of a number with at most this one; Suricata's may be followed by an index after a comma.
    case number(UInt64)
    /// A number as `number` has it, or one of these words, negated or not.
    case numberOr(UInt64, Words)
    /// Words with commas (or bars) between, each negated or not; an empty list of known ones: any.
    case list(Words)
    /// One word.
    case word(Words)
    /// Names with commas (or bars) between, each negated or not, of letters, digits and `_.-/`.
    case names
    /// One such name, negated or not.
    case name
    /// Numbers up to this one, or these words (none: any name), with commas between.
    case numbersOr(UInt64, Words)
    /// A comparison of a number as `number` has it, or of its bits by name: words with commas between, each negated or not.
    case bits(UInt64, Words)
    /// So many plain numbers at the most, with commas between, each with a maximum of its own.
    case fields([UInt64])
    /// A group and a variation; Snort 3 writes `group N, var N`.
    case object
    /// Suricata's `modbus`: `function …`, `access …`, `unit …`.
    case modbus
    /// One of these names, an operator, and a number up to this one.
    case attribute(Words, UInt64)
    /// A time, or two with `<>` between: `<2026-01-01T00:00:00`; seconds since 1970, too.
    case date
    /// Suricata: a protocol, negated or not, and after a comma how it was found.
    case applicationProtocol
    /// Suricata's `app-layer-state`: a name, with `<` or `>` before it or without.
    case state
    /// Suricata's `filestore`: nothing, or a direction and a scope.
    case storage
    /// Snort 3's `file_meta`: `type TEXT`, `id N`, `category TEXT`, `group TEXT`, `version TEXT`, with commas between.
    case fileFacts
    /// Snort 2's `http_encode`: where, and the encodings with bars between.
    case encodings
    /// Numbers and ranges of them with commas between.
    case numbers(UInt64)
    /// Snort 3: `field NAME`, `request`, and what has been seen of the message, with commas between.
    case messagePart
    /// Snort 3: a comparison of a number, and `request` and the like.
    case messageNumber
    /// An interface: `uuid UUID` or the bare identifier, then options with commas between.
    case interface
    /// A length, and after a comma `raw` or `norm`.
    case length
    /// Suricata's `config`: `logging disable, type TYPE, scope SCOPE`.
    case configuration
    /// `MARK[/MASK][,packet|flow]`.
    case mark
    /// A digest list's file.
    case file
    /// Something or nothing.
    case anything

    typealias Words = Set<String>
  }

  static func form(of name: String, in dialect: RuleDialect) -> Form? {
    switch dialect {
    case .suricata: suricata[name] ?? (suricataBuffers.contains(name) ? .nothing : nil)
    case .snort3: snort3[name] ?? common[name]
    case .snort2: snort2[name] ?? common[name]
    }
  }

  static func words(_ text: String) -> Set<String> {
    Set(text.split(whereSeparator: \.isWhitespace).map(String.init))
  }

  private static func forms(_ form: Form, _ names: String) -> [String: Form] {
    Dictionary(uniqueKeysWithValues: words(names).map { ($0, form) })
  }

  private static func merged(_ parts: [String: Form]...) -> [String: Form] {
    parts.reduce(into: [:]) { $0.merge($1) { $1 } }
  }

  private static let tlsVersions = words("sslv2 sslv3 tls1.0 tls1.1 tls1.2 tls1.3")
  private static let tlsStates = words("client_hello server_hello client_keyx server_keyx unknown")
  /// What Snort 2 and Snort 3 have in common.
  private static let common = merged(
    forms(
      .nothing,
      """
      file_data js_data vba_data dce_stub_data dnp3_data modbus_data sip_header sip_body cip_req cip_rsp enip_req enip_rsp
      http2_frame_data http2_frame_header mms_data s7commplus_content
      """),
    [
      "ssl_version": .list(tlsVersions), "ssl_state": .list(tlsStates), "dce_iface": .interface,
      "dce_opnum": .numbers(65_535), "dnp3_ind": .list(indications), "dnp3_func": .numbersOr(255, dnp3Functions),
      "dnp3_obj": .object,
      "modbus_func": .numbersOr(255, modbusFunctions), "modbus_unit": .number(255), "sip_method": .names,
      "sip_stat_code": .numbers(999), "gtp_type": .numbersOr(255, []), "gtp_version": .number(2),
      "gtp_info": .numbersOr(255, []), "cip_attribute": .number(65_535),
      "cip_class": .number(65_535), "cip_conn_path_class": .number(65_535), "cip_instance": .number(0xFFFF_FFFF),
      "cip_service": .number(127), "cip_status": .number(255), "enip_command": .number(65_535), "file_type": .list([]),
      "appids": .list([]), "appid": .list([]), "soid": .names,
    ])

  private static let snort2 = merged(
    forms(
      .modifier,
      """
      http_client_body http_cookie http_header http_method http_raw_cookie http_raw_header http_raw_uri http_stat_code
      http_stat_msg http_uri
      """),
    [
      "uricontent": .pattern, "urilen": .length, "http_encode": .encodings, "ftpbounce": .nothing,
      "file_group": .names, "logto": .text, "session": .word(words("all printable binary")),
    ])

  private static let snort3 = merged(
    forms(
      .messagePart,
      """
      http_client_body http_cookie http_decoded_uri http_header http_method http_raw_body http_raw_cookie
      http_raw_header http_raw_request http_raw_status http_raw_trailer http_raw_uri http_stat_code http_stat_msg
      http_trailer http_true_ip http_uri http_version http_header_test http_trailer_test
      """),
    forms(
      .messageNumber,
      """
      http_max_header_line http_max_trailer_line http_num_cookies http_num_headers http_num_trailers
      """),
    [
      "http_param": .pattern, "http_version_match": .list([]), "service": .names, "file_meta": .fileFacts,
      "iec104_apci_type": .numbersOr(255, informationTransfer), "iec104_asdu_func": .numbersOr(255, []),
      "mms_func": .numbersOr(255, []), "s7commplus_func": .numbersOr(65_535, []),
      "s7commplus_opcode": .numbersOr(255, []), "opcua_msg_service": .numbersOr(65_535, []),
      "opcua_msg_type": .numbersOr(255, []), "opcua_node_id": .number(0xFFFF_FFFF),
      "opcua_node_namespace_index": .number(0xFFFF_FFFF), "socks_address_type": .numbersOr(255, []),
      "socks_command": .numbersOr(255, []), "socks_remote_address": .text, "socks_remote_port": .number(65_535),
      "socks_state": .numbersOr(255, []), "socks_version": .number(255), "so": .name,
    ])

  /// Suricata's buffers take nothing.
  private static let suricataBuffers = words(
    """
    dce_stub_data dcerpc.stub_data dnp3.data dnp3_data dns.additionals.rrname dns.answer.name dns.answers.rrname
    dns.authorities.rrname dns.queries.rrname dns.query dns.query.name dns.response.rrname dns_query email.body_md5
    email.cc email.date email.from email.message_id email.received email.subject email.to email.url email.x_mailer
    enip.product_name enip.service_name file.data file.magic file.name file_data ftp.command ftp.command_data
    ftp.completion_code ftp.reply ftpbounce http.accept http.accept_enc http.accept_lang http.connection
    http.content_len http.content_type http.cookie http.header http.header.raw http.header_names http.host
    http.host.raw http.location http.method http.protocol http.referer http.request_body http.request_header
    http.request_line http.response_body http.response_header http.response_line http.server http.start
    http.stat_code http.stat_msg http.uri http.uri.normalized http.uri.raw http.user_agent http2.header_name
    http_accept http_accept_enc http_accept_lang http_connection http_content_len http_content_type
    http_header_names http_protocol http_referer http_request_line http_response_line http_start ike.init_spi
    ike.key_exchange_payload ike.nonce_payload ike.resp_spi ike.vendor ja3.hash ja3.string ja3_hash ja3_string
    ja3s.hash ja3s.string ja4.hash ja4_hash krb5.cname krb5.sname ldap.request.attribute_type ldap.request.dn
    ldap.responses.attribute_type ldap.responses.dn ldap.responses.message llmnr.additionals.rrname
    llmnr.answers.rrname llmnr.authorities.rrname llmnr.queries.rrname llmnr.response.rrname
    mdns.additionals.rrname mdns.answers.rrname mdns.authorities.rrname mdns.queries.rrname mdns.response.rrname
    mqtt.connect.clientid mqtt.connect.password mqtt.connect.protocol_string mqtt.connect.username
    mqtt.connect.willmessage mqtt.connect.willtopic mqtt.publish.message mqtt.publish.topic mqtt.subscribe.topic
    mqtt.unsubscribe.topic ntp.reference_id pgsql.query quic.cyu.hash quic.cyu.string quic.sni quic.ua quic.version
    rfb.name sdp.attribute sdp.bandwidth sdp.connection_data sdp.email sdp.encryption_key
    sdp.media.connection_data sdp.media.encryption_key sdp.media.media sdp.media.media_info sdp.origin
    sdp.phone_number sdp.repeat_time sdp.session_info sdp.session_name sdp.time sdp.timezone sdp.uri
    sip.content_length sip.content_type sip.from sip.method sip.protocol sip.request_line sip.response_line
    sip.stat_code sip.stat_msg sip.to sip.uri sip.user_agent sip.via smb.named_pipe smb.ntlmssp_domain
    smb.ntlmssp_user smb.share smb_named_pipe smtp.helo smtp.mail_from smtp.rcpt_to snmp.community
    snmp.trap_address snmp.trap_oid snmp.usm ssh.hassh ssh.hassh.server ssh.hassh.server.string ssh.hassh.string
    ssh.proto ssh.software template.buffer tls.alpn tls.cert_fingerprint tls.cert_issuer tls.cert_serial
    tls.cert_subject tls.certs tls.random tls.random_bytes tls.random_time tls.sni tls.store tls.subjectaltname
    tls_cert_expired tls_cert_fingerprint tls_cert_issuer tls_cert_serial tls_cert_subject tls_cert_valid tls_sni
    tls_store websocket.payload
    """)

  private static let suricata = merged(
    forms(
      .modifier,
      """
      http_client_body http_cookie http_header http_host http_method http_raw_header http_raw_host http_raw_uri
      http_server_body http_stat_code http_stat_msg http_uri http_user_agent
      """),
    forms(.pattern, "uricontent filename fileext filemagic tls.fingerprint tls.issuerdn tls.subject"),
    forms(.file, "filemd5 filesha1 filesha256"),
    forms(
      .number(0xFFFF_FFFF),
      """
      dhcp.leasetime dhcp.rebinding_time dhcp.renewal_time enip.capabilities enip.cip_attribute enip.cip_class
      enip.cip_extendedstatus enip.cip_instance enip.device_type enip.identity_status enip.product_code
      enip.protocol_version enip.serial enip.state enip.vendor_id enip.cip_status ike.exchtype
      ike.key_exchange_payload_length ike.nonce_payload_length http2.size_update http2.window
      ldap.responses.count tls.cert_chain_len websocket.mask
      """),
    forms(.number(65_535), "ftp.dynamic_port ntp.stratum ntp.version mqtt.protocol_version"),
    [
      "urilen": .length, "filesize": .number(.max), "dns.opcode": .numberOr(65_535, []),
      "dns.rcode": .numberOr(65_535, []), "dns.rrtype": .numberOr(65_535, []),
      "enip.status": .numberOr(0xFFFF_FFFF, enipStatus), "enip.revision": .number(65_535),
      "enip_command": .numberOr(65_535, enipCommands), "cip_service": .fields([127, 65_535, 65_535]),
      "dce_iface": .interface, "dcerpc.iface": .interface, "dce_opnum": .numbers(65_535),
      "dcerpc.opnum": .numbers(65_535), "dnp3.func": .numberOr(255, dnp3Functions),
      "dnp3_func": .numberOr(255, dnp3Functions), "dnp3.ind": .bits(65_535, indications),
      "dnp3_ind": .bits(65_535, indications), "dnp3.obj": .object, "dnp3_obj": .object,
      "filestore": .storage, "ftp.mode": .word(words("active passive")),
      "ftp.reply_received": .word(words("yes no true false on off 1 0")),
      "ftpdata_command": .word(words("retr stor")), "http2.errorcode": .numberOr(0xFFFF_FFFF, http2Errors),
      "http2.frametype": .numberOr(255, http2Frames),
      "http2.priority": .number(255), "http2.settings": .attribute(http2Settings, 0xFFFF_FFFF),
      "ike.chosen_sa_attribute": .attribute(ikeAttributes, 0xFFFF_FFFF), "krb5.ticket_encryption": .names,
      "krb5_err_code": .number(0xFFFF_FFFF),
      "krb5_msg_type": .number(255), "ldap.request.operation": .numberOr(255, ldapOperations),
      "ldap.responses.operation": .numberOr(255, ldapOperations),
      "ldap.responses.result_code": .numberOr(0xFFFF_FFFF, ldapResults), "lua": .text, "luaxform": .text,
      "modbus": .modbus,
      "mqtt.connack.session_present": .word(words("yes no true false")),
      "mqtt.connect.flags": .bits(255, words("username password will will_retain clean_session")),
      "mqtt.flags": .bits(255, words("dup retain")), "mqtt.qos": .number(2), "mqtt.reason_code": .number(255),
      "mqtt.type": .numberOr(255, mqttTypes),
      "nfs.version": .number(0xFFFF_FFFF), "nfs_version": .number(0xFFFF_FFFF),
      "nfs_procedure": .numberOr(0xFFFF_FFFF, []),
      "ntp.mode": .numberOr(255, []), "rfb.secresult": .numberOr(0xFFFF_FFFF, words("ok fail toomany unknown")),
      "rfb.sectype": .number(0xFFFF_FFFF), "smb.version": .word(words("1 2 3")),
      "snmp.pdu_type": .numberOr(0xFFFF_FFFF, []),
      "snmp.trap_type": .numberOr(255, []), "snmp.version": .number(3), "ssh.protoversion": .name,
      "ssh.softwareversion": .text,
      "ssl_state": .list(tlsStates), "ssl_version": .list(tlsVersions),
      "tls.version": .word(words("1.0 1.1 1.2 1.3 0x0300 0x0301 0x0302 0x0303 0x0304")),
      "tls_cert_notafter": .date, "tls_cert_notbefore": .date, "websocket.flags": .bits(255, words("fin comp")),
      "websocket.opcode": .numberOr(255, words("continuation text binary close ping pong")),
      "app-layer-event": .name, "app-layer-state": .state,
      "app-layer-protocol": .applicationProtocol, "frame": .name, "config": .configuration, "template": .anything,
      "nfq_set_mark": .mark, "file.magic": .nothing,
    ])
}
