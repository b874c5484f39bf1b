/// The words that options about application layers know, in lower case.
extension ApplicationOptions {
  /// Why an option will not be evaluated.
  static let reasons: [String: String] = {
    let script = "a script would be a program for bytes of the guest to work on, and a detector runs none"
    let object = "shared objects are machine code for another engine"
    let log = "logs are EVE events; `tag` has what follows a match logged"
    return [
      "lua": script, "luaxform": script, "so": object, "soid": object, "logto": log, "session": log,
      "nfq_set_mark": "no packet comes by way of NFQUEUE here", "template": "it is a sample for whoever writes options",
    ]
  }()

  /// DNP3's internal indications (IEEE 1815 §4.5.3).
  static let indications = words(
    """
    all_stations class_1_events class_2_events class_3_events need_time local_control device_trouble device_restart
    no_func_code_support object_unknown parameter_error event_buffer_overflow already_executing config_corrupt
    reserved_2 reserved_1
    """)

  /// DNP3's function codes (IEEE 1815 §4.4).
  static let dnp3Functions = words(
    """
    confirm read write select operate direct_operate direct_operate_nr immed_freeze immed_freeze_nr freeze_clear
    freeze_clear_nr freeze_at_time freeze_at_time_nr cold_restart warm_restart initialize_data initialize_appl
    start_appl stop_appl save_config enable_unsolicited disable_unsolicited assign_class delay_measure
    record_current_time open_file close_file delete_file get_file_info authenticate_file abort_file activate_config
    authenticate_req authenticate_err response unsolicited_response authenticate_resp
    """)

  /// Modbus' public functions (MODBUS Application Protocol V1.1b3 §5.1).
  static let modbusFunctions = words(
    """
    read_coils read_discrete_inputs read_holding_registers read_input_registers write_single_coil
    write_single_register read_exception_status diagnostics get_comm_event_counter get_comm_event_log
    write_multiple_coils write_multiple_registers report_slave_id read_file_record write_file_record
    mask_write_register read_write_multiple_registers read_fifo_queue encapsulated_interface_transport
    """)

  /// Frames of IEC 60870-5-104 §5.
  static let informationTransfer = words(
    "u unnumbered_control_function s numbered_supervisory_function i information_transfer_format")

  /// What Snort 2's `http_encode` knows.
  static let encodings = words("utf8 double_encode non_ascii uencode bare_byte iis_encode ascii base36")

  /// Encapsulation commands of EtherNet/IP (CIP volume 2, table 2-3.2), and the names for the rest.
  static let enipCommands = words(
    """
    nop list_services list_identity list_interfaces register_session unregister_session send_rrdata send_rr_data
    send_unit_data indicate_status cancel
    """)

  /// Statuses of EtherNet/IP (CIP volume 2, table 2-3.3).
  static let enipStatus = words(
    """
    success invalid_cmd no_resources incorrect_data invalid_session invalid_length unsupported_prot_rev
    encap_header_error
    """)

  /// RFC 9113 §6, RFC 7838 §4 and RFC 8336 §2.
  static let http2Frames = words(
    "data headers priority rststream rst_stream settings pushpromise push_promise ping goaway windowupdate window_update "
      + "continuation altsvc origin")

  /// RFC 9113 §7.
  static let http2Errors = words(
    """
    no_error protocol_error internal_error flow_control_error settings_timeout stream_closed frame_size_error
    refused_stream cancel compression_error connect_error enhance_your_calm inadequate_security http_1_1_required
    """)

  /// RFC 9113 §6.5.2.
  static let http2Settings = words(
    """
    settings_header_table_size settings_enable_push settings_max_concurrent_streams settings_initial_window_size
    settings_max_frame_size settings_max_header_list_size
    """)

  /// Attributes of IKE's security associations (RFC 2409 appendix A), as Suricata names them.
  static let ikeAttributes = words(
    """
    alg_enc alg_hash alg_auth alg_dh alg_prf alg_intg alg_esn sa_group_type sa_life_type sa_life_duration
    sa_key_length sa_field_size
    """)

  /// RFC 4511 §4.
  static let ldapOperations = words(
    """
    bind_request bind_response unbind_request search_request search_result_entry search_result_done modify_request
    modify_response add_request add_response del_request del_response mod_dn_request mod_dn_response compare_request
    compare_response abandon_request search_result_reference extended_request extended_response
    intermediate_response
    """)

  /// RFC 4511 appendix A and IANA's registry of LDAP result codes.
  static let ldapResults = words(
    """
    success operations_error protocol_error time_limit_exceeded size_limit_exceeded compare_false compare_true
    auth_method_not_supported stronger_auth_required referral admin_limit_exceeded unavailable_critical_extension
    confidentiality_required sasl_bind_in_progress no_such_attribute undefined_attribute_type inappropriate_matching
    constraint_violation attribute_or_value_exists invalid_attribute_syntax no_such_object alias_problem
    invalid_dns_syntax is_leaf alias_dereferencing_problem inappropriate_authentication invalid_credentials
    insufficient_access_rights busy unavailable unwilling_to_perform loop_detect sort_control_missing
    offset_range_error naming_violation object_class_violation not_allowed_on_non_leaf not_allowed_on_rdn
    entry_already_exists object_class_mods_prohibited results_too_large affects_multiple_dsas control_error other
    server_down local_error encoding_error decoding_error timeout auth_unknown filter_error user_canceled param_error
    no_memory connect_error not_supported control_not_found no_results_returned more_results_to_return client_loop
    referral_limit_exceeded invalid_response ambiguous_response tls_not_supported intermediate_response unknown_type
    canceled no_such_operation too_late cannot_cancel assertion_failed authorization_denied e_sync_refresh_required
    no_operation
    """)

  /// MQTT 5.0 §2.1.2; `unassigned` is 0.
  static let mqttTypes = words(
    """
    unassigned connect connack publish puback pubrec pubrel pubcomp subscribe suback unsubscribe unsuback pingreq
    pingresp disconnect auth
    """)
}
