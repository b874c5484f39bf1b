import Testing
import VMFenceBlock

@Suite struct TraceLineTests {
  private func parse(_ text: String) throws(TraceSyntaxError) -> TraceLine {
    try TraceLineParser.parse(Array(text.utf8))
  }

  @Test func requestsOfEveryKindAreRead() throws {
    let write = try parse(
      #"{"seq": 5, "t_ns": 237, "op": "write", "off": 1024, "len": 512, "fua": true, "pos": 77}"#)
    #expect(
      write
        == .request(
          TraceRequest(
            sequence: 5, time: 237, operation: .write, offset: 1024, length: 512, isForcedUnitAccess: true, position: 77
          )))
    #expect(
      try parse(#"{"op":"flush","seq":0,"t_ns":0}"#)
        == .request(TraceRequest(sequence: 0, time: 0, operation: .flush)))
    for operation in ["read", "trim", "zero"] {
      guard case .request(let request) = try parse(#"{"seq":1,"t_ns":2,"op":"\#(operation)","off":3,"len":4}"#) else {
        Issue.record("\(operation) is no request")
        continue
      }
      #expect(request.operation.rawValue == operation && request.offset == 3 && request.length == 4)
    }
  }

  @Test func marksMayCarryAnything() throws {
    #expect(
      try parse(#"{"seq": 9, "t_ns": 1, "op": "mark", "ev": "end", "x": [1, {"y": null}, -2.5e3], "p": "a\u00e9\"b"}"#)
        == .mark(sequence: 9))
  }

  @Test(arguments: [
    "", "{", "{}", "[]", "null", "{\"seq\":1}", #"{"seq":1,"t_ns":1,"op":"write","off":0,"len":1}"#,
    #"{"seq":-1,"t_ns":1,"op":"flush"}"#, #"{"seq":1.0,"t_ns":1,"op":"flush"}"#, #"{"seq":01,"t_ns":1,"op":"flush"}"#,
    #"{"seq":18446744073709551616,"t_ns":1,"op":"flush"}"#, #"{"seq":1,"t_ns":9223372036854775808,"op":"flush"}"#,
    #"{"seq":1,"t_ns":1,"op":"flush"} x"#, #"{"seq":1,"seq":1,"t_ns":1,"op":"flush"}"#,
    #"{"seq":1,"t_ns":1,"op":"sync"}"#, #"{"seq":1,"t_ns":1,"op":"flush","extra":1}"#,
    #"{"seq":1,"t_ns":1,"op":"read","off":0,"len":1,"fua":1}"#,
    #"{"seq":1,"t_ns":1,"op":"mark","a":[[[[[[[[[1]]]]]]]]]}"#,
    #"{"seq":1,"t_ns":1,"op":"mark","a":"\x"}"#, "{\"seq\":1,\"t_ns\":1,\"op\":\"mark\",\"a\":\"\u{1}\"}",
    #"{"seq":1,"t_ns":1,"op":"mark","a":"}"#, #"{"seq":1,"t_ns":1,"op":"mark","a":tru}"#,
    #"{"seq":1,"t_ns":1,"op":"mark","a":[1,]}"#, #"{"seq":1,"t_ns":1,"op":"mark","a":1.}"#,
  ]) func malformedLinesAreRefused(text: String) {
    #expect(throws: TraceSyntaxError.self) { try TraceLineParser.parse(Array(text.utf8)) }
  }
}
