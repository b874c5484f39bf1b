import VMFenceCore

// One program for all targets, because what they need takes minutes to build. It runs the target by whose name it is called: `scripts/fuzz` makes a link
// for each.

/// What each target does with an input.
private let targets: [String: @Sendable (RawSpan) -> Void] = [
  "fuzz-capture": fuzzCapture,
  "fuzz-channel": fuzzChannel,
  "fuzz-control": fuzzControl,
  "fuzz-decisions": fuzzDecisions,
  "fuzz-decode": fuzzDecode,
  "fuzz-defrag": fuzzDefrag,
  "fuzz-ext2": fuzzExt2,
  "fuzz-inspect": fuzzInspect,
  "fuzz-journal": fuzzJournal,
  "fuzz-nbd": fuzzNBD,
  "fuzz-partitions": fuzzPartitions,
  "fuzz-records": fuzzRecords,
  "fuzz-ring": fuzzRing,
  "fuzz-rules": fuzzRuleFile,
  "fuzz-state": fuzzState,
  "fuzz-stream": fuzzStream,
  "fuzz-xenstore": fuzzXenStore,
]

private let target: @Sendable (RawSpan) -> Void = {
  let name = CommandLine.arguments[0].split(separator: "/").last.map(String.init) ?? ""
  guard let target = targets[name] else { fatalError("no target is called \(name)") }
  return target
}()

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
  // SAFETY: libFuzzer gives `count` readable bytes, valid for the duration of the call.
  target(unsafe UnsafeRawBufferPointer(start: start, count: count).bytes)
  return 0
}
