// Inspectors over a capture file: packets per second, processor time, wall time as a ratio to `gzip -1 -c` of the same file in the
// same run and to reading it alone, allocations per packet, memory, how long the rules took to load, and which of them fired.
//
//   swift run -c release inspect [OPTION …] FILE.pcap [RULES …]
//
//   --alerts OUT.json   what fired in the first pass, as a list of gid, sid, ends, protocol and count (`Benchmarks/compare-alerts`)
//   --cores N           then N inspectors side by side, the packets split by their hosts, against one
//   --passes N          over the file; 3 unless it is said
//   --flood KIND        instead of a file: a flood of SYNs (`syn`), of first fragments (`fragments`), of segments behind gaps (`segments`),
//                       or one flow whose packets nearly match (`near`)
//   --gzip no           leaves out what the time is compared with, for profiles
//   --set NAME=VALUE    a setting of the engine; `stream.midstream` is on, as in the runs that this is compared with
//
// It ends with 64 when the command line is wrong, 65 when the capture, rules or settings are, 66 when a file cannot be read, and 73 when one
// cannot be written.
import CBaseline
import Glibc
import VMFenceCapture
import VMFenceCore
import VMFenceDetection

struct Options {
  var alerts: String?
  var cores = 1
  var passes = 3
  var runsGzip = true
  var flood: Flood?
  var settings = ["stream.midstream": "yes"]
  var capture = ""
  var rules: [String] = []

  init?(_ arguments: [String]) {
    var rest = arguments[...]
    while let first = rest.first, first.hasPrefix("--") {
      guard let value = rest.dropFirst().first else { return nil }
      rest = rest.dropFirst(2)
      switch first {
      case "--alerts": alerts = value
      case "--cores":
        guard let number = Int(value), (1...64).contains(number) else { return nil }
        cores = number
      case "--passes":
        guard let number = Int(value), number > 0 else { return nil }
        passes = number
      case "--flood":
        guard let kind = Flood(rawValue: value) else { return nil }
        flood = kind
      case "--gzip": runsGzip = value != "no"
      case "--set":
        let parts = value.split(separator: "=", maxSplits: 1)
        guard parts.count == 2 else { return nil }
        settings[String(parts[0])] = String(parts[1])
      default: return nil
      }
    }
    if flood != nil {
      rules = Array(rest)
      return
    }
    guard let path = rest.first else { return nil }
    capture = path
    rules = Array(rest.dropFirst())
  }
}

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

/// `text`: the rules when there are no files.
func compile(_ files: [String], or text: String) throws -> SnortRules? {
  var sources: [RuleSource] = []
  for file in files {
    guard let text = read(file) else {
      complain("\(file): error: it cannot be read (name a rule file that is there and may be read)")
      return nil
    }
    sources.append(RuleSource(file: file, text: text))
  }
  if sources.isEmpty {
    sources.append(RuleSource(file: "none", text: Array(text.utf8), dialect: .snort2))
  }
  let begin = ContinuousClock.now
  let processor = processorSeconds()
  let compilation = try SnortRuleEngine().compile(RuleCompilationRequest(sources: sources, variables: variables))
  print(
    "\(compilation.loaded) rules loaded, \(compilation.rejected) rejected, in \(ContinuousClock.now - begin),",
    "\(processorSeconds() - processor) CPU s; image \(compilation.rules.image.byteCount >> 10) KiB")
  return compilation.rules
}

/// A ratio in parts of the whole; of a capture so short that no time was measured there is none.
func ratio(_ part: Double, _ whole: Double, _ parts: Double) -> String {
  whole > 0 ? "\(Int(part / whole * parts))" : "-"
}

func report(
  _ number: Int, _ pass: Pass, _ reading: Pass, warming: UInt64, _ gzip: (wall: Double, processor: Double)?
) {
  let toGzip =
    gzip.map {
      "\(ratio(pass.seconds, $0.wall, 1000)) thousandths of gzip -1 (\(ratio(pass.processor, $0.processor, 1000)) of its CPU s);"
    } ?? ""
  print(
    "pass \(number): \(pass.thousandsPerSecond) thousand packets a second, \(pass.thousandsPerProcessorSecond) thousand a CPU",
    "second, \(pass.processor) CPU s, \(pass.seconds) s;", toGzip,
    "\(ratio(pass.processor, reading.processor, 100)) % of reading alone;",
    "\(pass.allocations) allocations after the first \(warming) packets; \(pass.fired.reduce(0, +)) alerts")
}

func run() async throws -> Int32 {
  guard let options = Options(Array(CommandLine.arguments.dropFirst())) else {
    complain(
      "usage: inspect [--flood KIND] [--alerts OUT.json] [--cores N] [--passes N] [--gzip no] [--set NAME=VALUE] FILE.pcap [RULES …]"
    )
    return 64
  }
  // Without rules: one that asks for what no packet has.
  let none = "alert tcp 0.0.0.0 1 -> 0.0.0.0 1 (msg:\"none\"; sid:1;)"
  guard let rules = try compile(options.rules, or: options.flood == nil ? none : Flood.rules) else { return 66 }
  if let flood = options.flood {
    try run(flood, rules, settings: options.settings)
    return 0
  }
  let configuration = InspectorConfiguration(verifiesChecksums: true, hashKey: (1, 2), settings: options.settings)
  let idle = privateMemory()
  var inspector = try SnortInspector.make(rules: rules, configuration: configuration)
  print("an inspector adds \(privateMemory() - idle) KiB of private memory before its first packet")

  let reading = try readAlone(options.capture)
  print("reading alone: \(reading.packets) packets, \(reading.thousandsPerProcessorSecond) thousand a CPU second")
  // In a short capture half of it is taken for warming up.
  let warming = min(300_000, reading.packets / 2)
  for number in 1...options.passes {
    // Before each pass, because a shared machine is not always as fast.
    let gzip = options.runsGzip ? timeGzip(options.capture) : nil
    let pass = try inspect(
      options.capture, &inspector, rules, warming: warming, keepsAlerts: number == 1 && options.alerts != nil)
    report(number, pass, reading, warming: warming, gzip)
    guard number == 1 else { continue }
    if let path = options.alerts, !write(pass.alerts, rules, to: path) {
      complain("\(path): error: it cannot be written (name a file in a folder that is there and may be written)")
      return 73
    }
    for index in pass.fired.indices where pass.fired[index] > 0 {
      print("  \(rules.metadata(at: index).sid): \(pass.fired[index])")
    }
  }
  print("peak memory \(memory("VmHWM") >> 10) MiB")
  for (name, value) in inspector.statistics { print("  \(name): \(value)") }
  if options.cores > 1 {
    let one = reportShares(try await inspectSideBySide(try shares(options.capture, 1), rules, configuration), nil)
    _ = reportShares(
      try await inspectSideBySide(try shares(options.capture, options.cores), rules, configuration), one)
  }
  return 0
}

/// How it ends when something is wrong with what it was given: the values of sysexits.h.
func status(of error: any Error) -> Int32 {
  switch error {
  case let error as PacketSourceError:
    complain(error.diagnostic.description)
    return error.code == .inputOutput || error.code == .permissionDenied ? 66 : 65
  case let error as RuleCompilationError:
    for diagnostic in error.diagnostics { complain(diagnostic.description) }
    complain(error.diagnostic.description)
    return 65
  default:
    complain("\(error)")
    return 70
  }
}

do { exit(try await run()) } catch { exit(status(of: error)) }
