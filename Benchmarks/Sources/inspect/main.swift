// One inspector over a capture file: packets per second, as a ratio to reading the same file, allocations per packet, memory, and
// which rules fired.
//
//   swift run -c release inspect FILE.pcap [RULES …]
import CBaseline
import Glibc
import VMFenceCapture
import VMFenceCore
import VMFenceDetection

struct Pass {
  var packets: UInt64 = 0
  var time = Duration.zero
  /// Allocations in the second half of the file: the steady state.
  var allocations: UInt64 = 0
  var fired: [UInt64] = []
}

func complain(_ text: String) {
  // SAFETY: the bytes are valid for the call.
  unsafe _ = write(2, text + "\n", text.utf8.count + 1)
}

func read(_ path: String) -> [UInt8]? {
  // SAFETY: a stream of the C library, closed once.
  guard let file = unsafe fopen(path, "r") else { return nil }
  defer { unsafe _ = fclose(file) }
  var bytes: [UInt8] = []
  var block = [UInt8](repeating: 0, count: 1 << 16)
  while true {
    let count = unsafe fread(&block, 1, block.count, file)
    if count == 0 { return bytes }
    bytes += block[..<count]
  }
}

/// A line of /proc/self/status, such as `VmHWM`, in KiB.
func memory(_ name: String) -> Int {
  let text = String(decoding: read("/proc/self/status") ?? [], as: UTF8.self)
  let line = text.split(separator: "\n").first { $0.hasPrefix(name + ":") }
  return line?.split(whereSeparator: { $0 == " " || $0 == "\t" }).dropFirst().first.flatMap { Int($0) } ?? 0
}

/// Memory of this process alone, in KiB.
func privateMemory() -> Int {
  let text = String(decoding: read("/proc/self/smaps_rollup") ?? [], as: UTF8.self)
  var sum = 0
  for line in text.split(separator: "\n") where line.hasPrefix("Private_") {
    sum += line.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0
  }
  return sum
}

func readAlone(_ path: String) throws(PacketSourceError) -> Pass {
  var file = try CaptureFile.open(path: path)
  var pass = Pass()
  var sum: UInt64 = 0
  let start = ContinuousClock.now
  while true {
    let outcome = try file.nextBatch(limit: 1024) { frame, bytes in
      pass.packets += 1
      sum &+= UInt64(bytes.byteCount) &+ UInt64(frame.originalLength)
    }
    if outcome.isAtEnd { break }
  }
  pass.time = ContinuousClock.now - start
  baseline_keep(sum)
  return pass
}

func inspect(_ path: String, _ inspector: inout SnortInspector, _ rules: SnortRules) throws(PacketSourceError) -> Pass {
  var file = try CaptureFile.open(path: path)
  var output = InspectionOutput()
  var pass = Pass()
  pass.fired = Array(repeating: 0, count: rules.ruleCount)
  let half: UInt64 = 300_000
  var before: UInt64 = 0
  let start = ContinuousClock.now
  while true {
    let outcome = try file.nextBatch(limit: 1024) { frame, bytes in
      output.reset()
      inspector.inspect(frame, bytes, into: &output)
      for index in 0..<output.count { pass.fired[Int(output[index].ruleIndex)] += 1 }
      pass.packets += 1
      if pass.packets == half { before = baseline_allocation_count() }
    }
    if outcome.isAtEnd { break }
  }
  pass.time = ContinuousClock.now - start
  pass.allocations = pass.packets > half ? baseline_allocation_count() - before : 0
  return pass
}

func thousands(_ pass: Pass) -> Int { Int(Double(pass.packets) / Double(pass.time.wholeNanoseconds) * 1_000_000) }

func run() throws -> Int32 {
  guard CommandLine.arguments.count >= 2 else {
    complain("usage: inspect FILE.pcap [RULES …]")
    return 64
  }
  let path = CommandLine.arguments[1]
  var sources: [RuleSource] = []
  for file in CommandLine.arguments.dropFirst(2) {
    guard let text = read(file) else {
      complain("cannot read \(file)")
      return 66
    }
    sources.append(RuleSource(file: file, text: text))
  }
  let begin = ContinuousClock.now
  let request = RuleCompilationRequest(
    sources: sources,
    variables: ["HOME_NET": "any", "EXTERNAL_NET": "any", "HTTP_SERVERS": "any", "HTTP_PORTS": "80"])
  let compilation = try SnortRuleEngine().compile(request)
  let rules = compilation.rules
  print(
    "\(compilation.loaded) rules loaded, \(compilation.rejected) rejected, in \(ContinuousClock.now - begin);",
    "image \(rules.image.byteCount >> 10) KiB")
  let idle = privateMemory()
  var inspector = try SnortInspector.make(
    rules: rules, configuration: InspectorConfiguration(verifiesChecksums: false, hashKey: (1, 2)))
  print("an inspector adds \(privateMemory() - idle) KiB of private memory before its first packet")

  let reading = try readAlone(path)
  print("reading alone: \(reading.packets) packets, \(thousands(reading)) thousand a second")
  for number in 1...3 {
    let pass = try inspect(path, &inspector, rules)
    let ratio = Double(pass.time.wholeNanoseconds) / Double(reading.time.wholeNanoseconds)
    print(
      "pass \(number): \(thousands(pass)) thousand packets a second, \(Int(ratio * 100)) % of reading alone;",
      "\(pass.allocations) allocations after the first 300,000 packets; \(pass.fired.reduce(0, +)) alerts")
    guard number == 1 else { continue }
    for index in pass.fired.indices where pass.fired[index] > 0 {
      print("  \(rules.metadata(at: index).sid): \(pass.fired[index])")
    }
  }
  print("peak memory \(memory("VmHWM") >> 10) MiB")
  for (name, value) in inspector.statistics { print("  \(name): \(value)") }
  return 0
}

exit(try run())
