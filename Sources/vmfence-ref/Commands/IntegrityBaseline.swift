#if Daemon
import ArgumentParser
import Foundation
import VMFenceBlock
import VMFenceControl
import VMFenceCore
import VMFenceIntegrity
import VMFenceStore

/// What the verbs about baselines have in common.
struct BaselineOptions: ParsableArguments {
  @Option(help: "The store with the baselines.")
  var store = "/var/lib/vmfence/state.db"

  @Option(help: "The key that signs them. Keep it where the store is not: whoever reads it can forge a baseline.")
  var key = "/etc/vmfence/integrity.key"

  @Option(help: "The decision log of baselines, the third place that knows how many were signed.")
  var log = "/var/lib/vmfence/integrity.log"

  @Option(help: "The image's format: auto, raw or qcow2.")
  var format = ImageFormat.auto

  @Option(name: .customLong("id"), help: "The name of the disk in the store; the image's path when not given.")
  var name: String?

  func disk(_ image: String) -> String { name ?? URL(filePath: image).standardizedFileURL.path }

  func openStore() throws -> SQLiteStore {
    do throws(StateStoreError) { return try SQLiteStore(path: store) } catch {
      throw Self.failure(error, error.code == .permissionDenied ? Exit.noPermission : Exit.cannotCreate)
    }
  }

  func openLog() throws -> BaselineLog {
    do throws(DecisionLogError) {
      let (log, recovery) = try FileDecisionLog.open(path: log)
      if let damage = recovery.damage { Terminal.error.print([damage]) }
      return BaselineLog(log, holding: recovery.decisions)
    } catch { throw Self.failure(error, error.code == .permissionDenied ? Exit.noPermission : Exit.cannotCreate) }
  }

  func openKey() throws -> IntegrityKey {
    do throws(BaselineError) { return try IntegrityKey(path: key) } catch { throw Self.failure(error) }
  }

  func scan(_ image: String, _ patterns: [String]) throws -> BaselineScan {
    do throws(IntegrityError) {
      let scan = BaselineScan(try ProtectionPolicy(patterns.map { .init($0) }))
      try scan.read(format.open(image))
      return scan
    } catch { throw Self.failure(error, error.exit) }
  }

  static func failure(_ error: any DescribedError, _ code: ExitCode) -> ExitCode {
    Terminal.error.print([Diagnostic(.error, at: error.place, error.message, remedy: error.remedy)])
    return code
  }

  static func failure(_ error: BaselineError) -> ExitCode {
    switch error.code {
    case .full, .inputOutput: failure(error, Exit.cannotCreate)
    case .noKey, .noBaseline: failure(error, Exit.noInput)
    case .weakKey: failure(error, Exit.noPermission)
    default: failure(error, Exit.badData)
    }
  }
}

/// `vmfence-ref integrity init`
struct IntegrityInit: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "init",
    abstract: "Take a baseline: what the protected files of a disk are now is right.",
    discussion: """
      Makes the key if there is none. A baseline that is there is replaced only with --replace; to accept what has changed, `update`
      shows it first.

      EXAMPLES
        vmfence-ref integrity init /dev/vg0/web --id web --protect '/etc/**' '/usr/**' '/boot/**'
      """)

  @Argument(help: "A disk image or block device; best while its guest does not run.")
  var image: String

  @Option(name: .customLong("protect"), parsing: .upToNextOption, help: "Paths or patterns of paths, as /etc/**.")
  var protected: [String]

  @Flag(help: "Replace the baseline that is there.")
  var replace = false

  @OptionGroup var options: BaselineOptions

  func run() throws {
    let disk = options.disk(image)
    let scan = try options.scan(image, protected)
    let store = try options.openStore()
    let log = try options.openLog()
    do throws(BaselineError) {
      let key: IntegrityKey
      do throws(BaselineError) { key = try IntegrityKey(path: options.key) } catch {
        guard error.code == .noKey, !FileManager.default.fileExists(atPath: options.key) else { throw error }
        key = try IntegrityKey.make(path: options.key)
        Terminal.output.print("made the key \(options.key.escapedForDisplay): keep a copy, and keep it from others")
      }
      if !replace {
        do throws(BaselineError) {
          let old = try Baseline.read(disk: disk, from: store, key: key, log: log)
          Terminal.error.print(
            "baseline \(old.generation) of \(disk.escapedForDisplay) is there: use `update`, or --replace")
          throw BaselineError(.inputOutput, "nothing was written")
        } catch { if error.code != .noBaseline { throw error } }
      }
      let baseline = try Baseline.write(
        disk: disk, patterns: protected, entries: scan.entries, at: SystemClock().now, to: store, key: key,
        log: log)
      Terminal.output.print(
        "baseline \(baseline.generation) of \(disk.escapedForDisplay): \(baseline.entries.count) names"
          + (scan.damageCount > 0 ? ", \(scan.damageCount) damages" : ""))
      if baseline.entries.isEmpty {
        Terminal.error.print([
          Diagnostic(
            .warning, "no pattern matches anything, so nothing is compared",
            remedy:
              "look for a misspelling; `integrity list` shows the paths, `integrity test` how much each pattern matches"
          )
        ])
      }
    } catch { throw BaselineOptions.failure(error) }
  }
}

/// `vmfence-ref integrity check`
struct IntegrityCheck: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check",
    abstract: "Compare a disk with its baseline.",
    discussion: """
      What `integrity expect` announced is listed, and counts as no difference.

      EXIT CODES
        0   nothing differs that was not announced
        1   something does
        65  the baseline was edited, or an old one was put back; or the disk is damaged
        66  the disk, the key or the baseline is not there

      EXAMPLES
        vmfence-ref integrity check /dev/vg0/web --id web
        vmfence-ref integrity check /dev/vg0/web --id web --json | jq 'select(.record == "difference")'
      """)

  @Argument(help: "A disk image or block device.")
  var image: String

  @Flag(help: "JSON lines.")
  var json = false

  @OptionGroup var options: BaselineOptions

  func run() throws {
    let report = try Self.compare(image, options).report
    report.print(asJSON: json)
    if report.unexpected > 0 { throw ExitCode(1) }
    if report.scan.damageCount > 0 { throw Exit.badData }
  }

  static func compare(
    _ image: String, _ options: BaselineOptions
  ) throws -> (report: BaselineReport, store: SQLiteStore, key: IntegrityKey, log: BaselineLog) {
    let key = try options.openKey()
    let store = try options.openStore()
    let log = try options.openLog()
    let disk = options.disk(image)
    let baseline: Baseline
    do throws(BaselineError) { baseline = try Baseline.read(disk: disk, from: store, key: key, log: log) } catch {
      throw BaselineOptions.failure(error)
    }
    let scan = try options.scan(image, baseline.patterns)
    let announced = try AnnouncedChanges(of: disk, at: SystemClock().now, in: store)
    return (BaselineReport(baseline, scan, announced: announced), store, key, log)
  }
}

/// `vmfence-ref integrity update`
struct IntegrityUpdate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "update",
    abstract: "Show what differs from the baseline, and make what is there now the new one.",
    discussion: "EXAMPLES\n  vmfence-ref integrity update /dev/vg0/web --id web")

  @Argument(help: "A disk image or block device.")
  var image: String

  @Option(
    name: .customLong("protect"), parsing: .upToNextOption, help: "Protect these from now on; as before when not given."
  )
  var protected: [String] = []

  @Flag(help: "JSON lines.")
  var json = false

  @OptionGroup var options: BaselineOptions

  func run() throws {
    let (report, store, key, log) = try IntegrityCheck.compare(image, options)
    report.print(asJSON: json)
    let scan = protected.isEmpty ? report.scan : try options.scan(image, protected)
    do throws(BaselineError) {
      let baseline = try Baseline.write(
        disk: report.baseline.disk, patterns: protected.isEmpty ? report.baseline.patterns : protected,
        entries: scan.entries, at: SystemClock().now, to: store, key: key,
        log: log)
      Terminal.error.print("baseline \(baseline.generation): \(baseline.entries.count) names")
    } catch { throw BaselineOptions.failure(error) }
  }
}

/// `vmfence-ref integrity test`
struct IntegrityTest: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "test",
    abstract:
      "Try a configuration, and change nothing: the key, the store, the baseline, and what each pattern matches.",
    discussion: "EXAMPLES\n  vmfence-ref integrity test /dev/vg0/web --id web --protect '/etc/**'")

  @Argument(help: "A disk image or block device.")
  var image: String

  @Option(
    name: .customLong("protect"), parsing: .upToNextOption,
    help: "Patterns to try; those of the baseline when not given.")
  var protected: [String] = []

  @OptionGroup var options: BaselineOptions

  func run() throws {
    let key = try options.openKey()
    guard FileManager.default.fileExists(atPath: options.store) else {
      throw BaselineOptions.failure(
        StateStoreError(
          .inputOutput, "there is no store", at: SourcePlace(file: options.store), remedy: "`integrity init` makes it"),
        Exit.noInput)
    }
    var patterns = protected
    let log = try options.openLog()
    do throws(BaselineError) {
      let baseline = try Baseline.read(disk: options.disk(image), from: try open(), key: key, log: log)
      Terminal.output.print("key, store and baseline \(baseline.generation): good, \(baseline.entries.count) names")
      if patterns.isEmpty { patterns = baseline.patterns }
    } catch {
      guard error.code == .noBaseline, !protected.isEmpty else { throw BaselineOptions.failure(error) }
      Terminal.output.print("key and store: good; no baseline yet")
    }
    var isEmpty = false
    for pattern in patterns {
      let count = try options.scan(image, [pattern]).entries.count
      Terminal.output.print("\(pattern.escapedForDisplay): \(count) names")
      if count == 0 { isEmpty = true }
    }
    guard isEmpty else { return }
    Terminal.error.print([
      Diagnostic(
        .warning, "a pattern matches nothing", remedy: "look for a misspelling; `integrity list` shows the paths")
    ])
  }

  private func open() throws(BaselineError) -> SQLiteStore {
    do throws(StateStoreError) { return try SQLiteStore(path: options.store) } catch {
      throw BaselineError(.inputOutput, error.message, at: error.place, remedy: error.remedy)
    }
  }
}

/// `vmfence-ref integrity expect`
struct IntegrityExpect: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "expect",
    abstract: "Announce changes: for some time, what happens to these paths is recorded and alerts nobody.",
    discussion: """
      Told to the disk's process that runs (what its events say is `announced` then), and written into the store for `check`. A process
      that is restarted meanwhile knows it still if it has a file for that (`vmfence-disk --state`). What a policy refuses stays refused.

      EXAMPLES
        vmfence-ref integrity expect web '/usr/**' '/etc/**' --for 2h
      """)

  @Argument(help: "The name of the disk, in the store and of its process.")
  var disk: String

  @Argument(help: "Paths or patterns of paths.")
  var paths: [String]

  @Option(name: .customLong("for"), help: "How long, with a unit: 30m, 2h; at most 7d.")
  var duration: String

  @Option(help: "The store with the baselines.")
  var store = "/var/lib/vmfence/state.db"

  @OptionGroup var process: DiskProcessOptions

  func validate() throws {
    guard seconds != nil else {
      throw ValidationError("--for: '\(duration)' is no duration of at most 7d, as 30m or 2h")
    }
    do throws(IntegrityError) { _ = try ProtectionPolicy(paths.map { .init($0) }) } catch {
      throw ValidationError(error.message)
    }
  }

  private var seconds: Int64? {
    let units: [Character: Int64] = ["s": 1, "m": 60, "h": 3600, "d": 86_400]
    guard let unit = duration.last.flatMap({ units[$0] }), let count = Int64(duration.dropLast()), count > 0,
      count <= 7 * 86_400 / unit
    else { return nil }
    return count * unit
  }

  func run() throws {
    var options = BaselineOptions()
    options.store = store
    let opened = try options.openStore()
    let now = SystemClock().now
    try AnnouncedChanges.add(paths, of: disk, from: now, until: now + .seconds(seconds ?? 0), to: opened)
    let isTold =
      try process.tell(disk, DiskControlRequest(.expect, paths: paths, duration: Double(seconds ?? 0))) != nil
    Terminal.output.print(
      "announced for \(duration): \(paths.joined(separator: " ").escapedForDisplay)"
        + (isTold ? "" : " (for `check`: no disk process runs under that name)"))
  }
}
#endif
