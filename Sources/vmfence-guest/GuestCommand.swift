internal import Glibc
import VMFenceCore
import VMFenceGuest

/// The command line. Every function returns an exit code of sysexits.h, or throws `Failure`.
enum GuestCommand {
  struct Failure: Error {
    var code: Int32
    var diagnostic: Diagnostic

    init(_ code: Int32, _ message: String, at place: SourcePlace? = nil, remedy: String = "") {
      self.code = code
      diagnostic = Diagnostic(.error, at: place, message, remedy: remedy)
    }

    init(_ code: Int32, _ error: some DescribedError, at place: SourcePlace? = nil) {
      self.init(code, error.message, at: error.place ?? place, remedy: error.remedy)
    }
  }

  static let usage = """
    usage: vmfence-guest apply FILE [--check] [--allow-older] [--uuid UUID]
           vmfence-guest show [--json]
           vmfence-guest remove
           vmfence-guest check [--config FILE]
           vmfence-guest run [--page FILE | --event-channel] [--config FILE] [--uuid UUID] [--write-back SECONDS]
           vmfence-guest --help | --version

    Enforces, in a guest, the policy that the host's VMFence made for it: in nftables, in the table inet vmfence_guest,
    as one transaction. Nothing of anybody else's is touched.

      apply FILE      puts the policy of a file ('-': standard input) in force in the place of the one before
        --check         says what is in the file and changes nothing; needs no permission
        --allow-older   takes a policy that is older than the one in force, too
        --uuid UUID     this guest's UUID; /sys/hypervisor/uuid when not given
      show            what is in force, with the time that is left, and what was dropped
        --json          as one line of JSON
      remove          takes the policy out of force
      check           says what the tenant's file declares, or what is wrong with it; changes nothing, and needs no permission
        --config FILE   another than /etc/vmfence-guest.yaml
      run             takes policies from the host as they come, puts them in force, and answers, until a signal ends it
        --page FILE     the page that the host maps too: the memory of an ivshmem device; when not given, a page that
                        this guest grants to Xen's Dom0
        --event-channel ring over an event channel of Xen, too; only in a guest that is never saved or migrated
        --write-back SECONDS
                        has this kernel write to disk what is older than 1 to 60 seconds, until the program ends: the host sees a
                        change of a file when it reaches the disk
        --config FILE   what the tenant wants (/etc/vmfence-guest.yaml): service-type, protected-paths; SIGHUP reads it again. One that is
                        wrong is said, and declares nothing new
    A value may stand behind its option or behind '=': --uuid=UUID.

    examples
      vmfence-guest apply web.policy --check
      vmfence-guest show --json
      vmfence-guest check && systemctl reload vmfence-guest

    exit codes
      0 done · 64 the command line is wrong · 65 the policy is wrong, older, or another guest's, or the configuration is wrong
      66 a file cannot be read
      69 the kernel lacks something, or the table is somebody else's · 70 the packet filter failed · 73 the output cannot be written
      77 a permission is missing

    """

  static func run(_ arguments: [String]) -> Int32 {
    do throws(Failure) {
      try command(arguments)
      return 0
    } catch {
      Output.write("vmfence-guest: \(error.diagnostic)\n", to: 2)
      return error.code
    }
  }

  private static func command(_ arguments: [String]) throws(Failure) {
    let options = try Options(arguments)
    switch options.words.first {
    case "apply":
      guard options.words.count == 2 else { throw wrong("apply needs one FILE") }
      try options.allow(["check", "allow-older", "uuid"])
      try apply(options.words[1], options)
    case "show":
      guard options.words.count == 1 else { throw wrong("show takes no file") }
      try options.allow(["json"])
      try show(json: options.flags.contains("json"))
    case "remove":
      guard options.words.count == 1 else { throw wrong("remove takes no file") }
      try options.allow([])
      try remove()
    case "check":
      guard options.words.count == 1 else { throw wrong("check takes no word behind it: name a file with --config") }
      try options.allow(["config"])
      try check(options.values["config"] ?? TenantFile.standardPath)
    case "run":
      guard options.words.count == 1 else { throw wrong("run takes no word behind it") }
      try options.allow(["page", "event-channel", "config", "uuid", "write-back"])
      let usesEvents = options.flags.contains("event-channel")
      let seconds = options.values["write-back"].map { Int($0) ?? 0 }
      if let seconds, !(1...WriteBack.longest).contains(seconds) {
        throw wrong("--write-back takes 1 to \(WriteBack.longest) seconds")
      }
      if let page = options.values["page"] {
        guard !usesEvents else { throw wrong("a page in a file has no event channel") }
        try work(try PageFileTransport(page), options, writeBackSeconds: seconds)
      } else {
        try work(try XenTransport(usesEventChannel: usesEvents), options, writeBackSeconds: seconds)
      }
    case nil where options.flags.contains("help"): try say(usage)
    case nil where options.flags.contains("version"): try say("\(VMFenceVersion.text)\n")
    case nil: throw wrong("a command is needed")
    case let word?:
      throw wrong(
        "there is no command '\(word.escapedForDisplay)'",
        meant: ["apply", "show", "remove", "check", "run"].nearest(to: word, within: 2))
    }
  }

  /// - `meant`: the word for which another was mistyped, perhaps.
  static func wrong(_ message: String, meant: String? = nil) -> Failure {
    let guess = meant.map { "did you mean '\($0)'? " } ?? ""
    return Failure(64, message, remedy: guess + "see vmfence-guest --help")
  }

  static func say(_ text: String) throws(Failure) {
    guard Output.write(text, to: 1) else {
      throw Failure(73, "standard output cannot be written: \(describeError(errno))")
    }
  }

  // MARK: apply

  private static func apply(_ file: String, _ options: Options) throws(Failure) {
    let place = SourcePlace(file: file)
    let bytes = try Input.read(file, atMost: GuestPolicy.byteLimit)
    let policy: GuestPolicy
    do throws(GuestPolicyError) {
      policy = try GuestPolicy(bytes)
    } catch {
      throw Failure(65, error, at: place)
    }
    if let own = try Identity.uuid(options.values["uuid"]), own != policy.domain {
      throw Failure(
        65, "a policy for guest \(policy.domain), and this is \(own)", at: place, remedy: "take this guest's own policy"
      )
    }
    let now = SystemClock().now
    if options.flags.contains("check") {
      return try say(Listing.text(policy, at: now))
    }
    do throws(GuestFirewallError) {
      var firewall = try GuestFirewall()
      let result = try firewall.apply(policy, at: now, allowsOlder: options.flags.contains("allow-older"))
      let over = result.over == 0 ? "" : ", \(result.over) were over"
      try? say("policy \(policy.version) is in force: \(result.standing) measures\(over)\n")
    } catch {
      throw failure(error)
    }
  }

  // MARK: show and remove

  private static func show(json: Bool) throws(Failure) {
    let policy: PolicyInForce?
    do throws(GuestFirewallError) {
      var firewall = try GuestFirewall()
      policy = try firewall.inForce()
    } catch {
      throw failure(error)
    }
    try say(json ? Listing.json(policy) : Listing.text(policy))
  }

  private static func remove() throws(Failure) {
    let wasThere: Bool
    do throws(GuestFirewallError) {
      var firewall = try GuestFirewall()
      wasThere = try firewall.remove()
    } catch {
      throw failure(error)
    }
    try say(wasThere ? "no policy is in force any more\n" : "no policy was in force\n")
  }

  // MARK: check

  private static func check(_ file: String) throws(Failure) {
    // SAFETY: access(2) reads the path up to its zero.
    if unsafe access(file, F_OK) != 0, errno == ENOENT {
      throw Failure(66, "there is no such file, so nothing is declared", at: SourcePlace(file: file))
    }
    let declared = try TenantFile.read(file)
    var text = declared.serviceType.map { "serves \($0)\n" } ?? ""
    for path in declared.protectedPaths { text += "protects \(path.escapedForDisplay)\n" }
    try say(text.isEmpty ? "nothing is declared\n" : text)
  }

  // MARK: run

  private static func work(
    _ transport: some ChannelTransport, _ options: Options, writeBackSeconds: Int?
  ) throws(Failure) {
    let own = try Identity.uuid(options.values["uuid"])
    Signals.install()
    var agent = Agent(
      transport, own: own, configuration: options.values["config"] ?? TenantFile.standardPath)
    // Without the option, too: a program that was killed may have had it.
    let writeBack = try WriteBack(seconds: writeBackSeconds)
    defer { writeBack.restore() }
    agent.run()
  }

  private static func failure(_ error: GuestFirewallError) -> Failure {
    switch error.code {
    case .permissionDenied: Failure(77, error)
    case .unsupported, .foreign: Failure(69, error)
    case .stale: Failure(65, error)
    default: Failure(70, error)
    }
  }
}

/// The words and options of a command line.
struct Options {
  private(set) var words: [String] = []
  private(set) var flags: Set<String> = []
  /// Of options that have a value.
  private(set) var values: [String: String] = [:]

  private static let known: Set<String> = ["check", "allow-older", "json", "event-channel", "help", "version"]
  private static let withValue: Set<String> = ["uuid", "page", "config", "write-back"]

  init(_ arguments: [String]) throws(GuestCommand.Failure) {
    var rest = arguments[...]
    while let argument = rest.popFirst() {
      guard argument.hasPrefix("-"), argument != "-" else {
        words.append(argument)
        continue
      }
      let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      let name = argument.hasPrefix("--") ? String(parts[0].dropFirst(2)) : argument == "-h" ? "help" : ""
      if Self.withValue.contains(name) {
        guard let value = parts.count > 1 ? String(parts[1]) : rest.popFirst() else {
          throw GuestCommand.wrong("--\(name) needs a value")
        }
        values[name] = value
      } else if Self.known.contains(name), parts.count == 1 {
        flags.insert(name)
      } else {
        throw GuestCommand.wrong(
          "there is no option '\(argument.escapedForDisplay)'",
          meant: Self.known.union(Self.withValue).map { "--\($0)" }.nearest(to: String(parts[0]), within: 2))
      }
    }
    if flags.contains("help") { words = [] }
  }

  /// Says so when an option is given that is none of the command's.
  func allow(_ names: Set<String>) throws(GuestCommand.Failure) {
    for name in flags.union(values.keys).subtracting(names).sorted() {
      throw GuestCommand.wrong("--\(name) is no option of '\(words[0])'")
    }
  }
}
