#if Daemon
internal import CYaml

/// Where a YAML text has its first alias (`*name`, for what `&name` marked), found before anything is put together: a few lines of aliases stand for more than
/// any memory holds, and where one is a key, its whole is hashed.
enum YAMLAliases {
  /// - Returns: the place, counted from 1; nil when there is none before the end, or before what is not YAML.
  static func first(in text: String) -> (line: Int, column: Int)? {
    var text = text
    // SAFETY: the bytes are read while they are lent.
    return text.withUTF8 { bytes in unsafe first(in: bytes) }
  }

  private static func first(in bytes: UnsafeBufferPointer<UInt8>) -> (line: Int, column: Int)? {
    // SAFETY: the parser knows its own place, so it stays in one, until it is deleted below; it reads the bytes, which live during this function. Each event
    // is deleted once, after its last use.
    let parser = UnsafeMutablePointer<yaml_parser_t>.allocate(capacity: 1)
    defer { unsafe parser.deallocate() }
    guard unsafe yaml_parser_initialize(parser) == 1 else { return nil }
    defer { unsafe yaml_parser_delete(parser) }
    unsafe yaml_parser_set_encoding(parser, YAML_UTF8_ENCODING)
    unsafe yaml_parser_set_input_string(parser, bytes.baseAddress, bytes.count)
    while true {
      var event = unsafe yaml_event_t()
      guard unsafe yaml_parser_parse(parser, &event) == 1 else { return nil }
      defer { unsafe yaml_event_delete(&event) }
      switch unsafe event.type {
      case YAML_ALIAS_EVENT: return unsafe (Int(event.start_mark.line) + 1, Int(event.start_mark.column) + 1)
      case YAML_STREAM_END_EVENT: return nil
      default: continue
      }
    }
  }
}
#endif
