// One inspector over a capture file: packets per second, processor time, wall time as a ratio to `gzip -1 -c` of the same file in the
// same run and to reading it alone, allocations per packet, memory, how long the rules took to load, and which of them fired.
//
//   swift run -c release inspect [--alerts OUT.json] FILE.pcap [RULES …]
//
// With --alerts, what fired in the first pass is written as a list of gid, sid, ends, protocol and count.
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
  /// Seconds of this process, system included.
  var processor = 0.0
  var alerts: [AlertKey: Int] = [:]
}

/// One rule between two ends.
struct AlertKey: Hashable {
  var rule: UInt32
  var source: IPAddress
  var destination: IPAddress
  var sourcePort: UInt16
  var destinationPort: UInt16
  var ipProtocol: UInt8
}

func processorSeconds() -> Double {
  var usage = rusage()
  // SAFETY: the structure is filled in by the call.
  unsafe _ = getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
  func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1_000_000 }
  return seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// How long `gzip -1 -c` of the file takes, in seconds; nil when it cannot be run.
func gzipSeconds(_ path: String) -> Double? {
  let text =
    "gzip -1 -c '\(path.split(separator: "'", omittingEmptySubsequences: false).joined(separator: "'\\''"))' >/dev/null"
  let start = ContinuousClock.now
  // SAFETY: a string that ends in zero, for the call.
  guard unsafe system(text) == 0 else { return nil }
  return Double((ContinuousClock.now - start).wholeNanoseconds) / 1e9
}

/// Writes the alerts as JSON, sorted, so that two runs can be compared.
func write(_ alerts: [AlertKey: Int], _ rules: SnortRules, to path: String) -> Bool {
  let lines = alerts.map { key, count in
    let metadata = rules.metadata(at: Int(key.rule))
    return """
      {"gid": \(metadata.gid), "sid": \(metadata.sid), "src": "\(key.source)", "sport": \(key.sourcePort), \
      "dst": "\(key.destination)", "dport": \(key.destinationPort), "proto": \(key.ipProtocol), "count": \(count)}
      """
  }
  let text = "[\n" + lines.sorted().joined(separator: ",\n") + "\n]\n"
  // SAFETY: a stream of the C library, closed once.
  guard let file = unsafe fopen(path, "w") else { return false }
  defer { unsafe _ = fclose(file) }
  return unsafe fputs(text, file) >= 0
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

func inspect(
  _ path: String, _ inspector: inout SnortInspector, _ rules: SnortRules, keepsAlerts: Bool
) throws(PacketSourceError) -> Pass {
  var file = try CaptureFile.open(path: path)
  var output = InspectionOutput()
  var pass = Pass()
  pass.fired = Array(repeating: 0, count: rules.ruleCount)
  let half: UInt64 = 300_000
  var before: UInt64 = 0
  let processor = processorSeconds()
  let start = ContinuousClock.now
  while true {
    let outcome = try file.nextBatch(limit: 1024) { frame, bytes in
      output.reset()
      inspector.inspect(frame, bytes, into: &output)
      for index in 0..<output.count {
        let alert = output[index]
        pass.fired[Int(alert.ruleIndex)] += 1
        guard keepsAlerts else { continue }
        let key = AlertKey(
          rule: alert.ruleIndex, source: alert.source, destination: alert.destination, sourcePort: alert.sourcePort,
          destinationPort: alert.destinationPort, ipProtocol: alert.ipProtocol)
        pass.alerts[key, default: 0] += 1
      }
      pass.packets += 1
      if pass.packets == half { before = baseline_allocation_count() }
    }
    if outcome.isAtEnd { break }
  }
  pass.time = ContinuousClock.now - start
  pass.processor = processorSeconds() - processor
  pass.allocations = pass.packets > half ? baseline_allocation_count() - before : 0
  return pass
}

func thousands(_ pass: Pass) -> Int { Int(Double(pass.packets) / Double(pass.time.wholeNanoseconds) * 1_000_000) }

/// Every network is "any"; ports are those that Snort's own defaults name, where a rule set needs them.
let variables: [String: String] = {
  var all: [String: String] = [:]
  for name in ["HOME_NET", "EXTERNAL_NET"] { all[name] = "any" }
  for name in ["HTTP", "SMTP", "SQL", "TELNET", "DNS", "SSH", "FTP", "SIP", "AIM"] { all["\(name)_SERVERS"] = "any" }
  all["HTTP_PORTS"] =
    "[80,81,311,383,591,593,901,1220,1414,1830,2301,2381,2809,3037,3128,3702,4343,4848,5250,6988,7000,7001,7144,7145,7510,7777,7779,8000,8008,8014,8028,8080,8085,8088,8090,8118,8123,8180,8181,8243,8280,8300,8800,8888,8899,9000,9060,9080,9090,9091,9443,9999,11371,34443,34444,41080,50002,55555]"
  all["SHELLCODE_PORTS"] = "!80"
  all["ORACLE_PORTS"] = "1024:"
  all["SSH_PORTS"] = "22"
  all["FTP_PORTS"] = "[21,2100,3535]"
  all["SIP_PORTS"] = "[5060,5061,5600]"
  all["FILE_DATA_PORTS"] = "[$HTTP_PORTS,110,143]"
  return all
}()

func run() throws -> Int32 {
  var arguments = Array(CommandLine.arguments.dropFirst())
  var alertsPath: String?
  if arguments.first == "--alerts", arguments.count > 1 {
    alertsPath = arguments[1]
    arguments.removeFirst(2)
  }
  guard let path = arguments.first else {
    complain("usage: inspect [--alerts OUT.json] FILE.pcap [RULES …]")
    return 64
  }
  var sources: [RuleSource] = []
  for file in arguments.dropFirst() {
    guard let text = read(file) else {
      complain("cannot read \(file)")
      return 66
    }
    sources.append(RuleSource(file: file, text: text))
  }
  // Without rules: one that asks for what no packet has.
  if sources.isEmpty {
    let text = "alert tcp 0.0.0.0 1 -> 0.0.0.0 1 (msg:\"none\"; sid:1;)"
    sources.append(RuleSource(file: "none", text: Array(text.utf8), dialect: .snort2))
  }
  let begin = ContinuousClock.now
  let request = RuleCompilationRequest(
    sources: sources,
    variables: variables)
  let compilation = try SnortRuleEngine().compile(request)
  let rules = compilation.rules
  print(
    "\(compilation.loaded) rules loaded, \(compilation.rejected) rejected, in \(ContinuousClock.now - begin);",
    "image \(rules.image.byteCount >> 10) KiB")
  let idle = privateMemory()
  var inspector = try SnortInspector.make(
    rules: rules, configuration: InspectorConfiguration(verifiesChecksums: true, hashKey: (1, 2)))
  print("an inspector adds \(privateMemory() - idle) KiB of private memory before its first packet")

  let reading = try readAlone(path)
  print("reading alone: \(reading.packets) packets, \(thousands(reading)) thousand a second")
  let gzip = gzipSeconds(path)
  for number in 1...3 {
    let pass = try inspect(path, &inspector, rules, keepsAlerts: number == 1 && alertsPath != nil)
    let seconds = Double(pass.time.wholeNanoseconds) / 1e9
    let ratio = Double(pass.time.wholeNanoseconds) / Double(reading.time.wholeNanoseconds)
    let toGzip = gzip.map { "\(Int(seconds / $0 * 1000)) thousandths of gzip -1;" } ?? ""
    print(
      "pass \(number): \(thousands(pass)) thousand packets a second, \(pass.processor) CPU s, \(seconds) s;", toGzip,
      "\(Int(ratio * 100)) % of reading alone;",
      "\(pass.allocations) allocations after the first 300,000 packets; \(pass.fired.reduce(0, +)) alerts")
    guard number == 1 else { continue }
    if let alertsPath, !write(pass.alerts, rules, to: alertsPath) { complain("cannot write \(alertsPath)") }
    for index in pass.fired.indices where pass.fired[index] > 0 {
      print("  \(rules.metadata(at: index).sid): \(pass.fired[index])")
    }
  }
  print("peak memory \(memory("VmHWM") >> 10) MiB")
  for (name, value) in inspector.statistics { print("  \(name): \(value)") }
  return 0
}

exit(try run())
