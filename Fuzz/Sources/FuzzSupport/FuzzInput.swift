import VMFenceCore

/// The bytes that the fuzzer gives one run.
public func withFuzzInput(_ start: UnsafePointer<UInt8>?, _ count: Int, _ body: (RawSpan) -> Void) {
  // SAFETY: libFuzzer gives `count` readable bytes, valid for the duration of the call.
  unsafe body(UnsafeRawBufferPointer(start: start, count: count).bytes)
}
