#if Daemon
import ArgumentParser
import Foundation
import VMFenceBlock
import VMFenceCore
import VMFenceDetection
import VMFenceIntegrity

/// `vmfence-ref integrity replay`
struct IntegrityReplay: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "replay",
    abstract: "Run the integrity monitor over a recorded stream of block requests.",
    discussion: """
      The base image is not written. Events go out as EVE JSON, in order; the same input gives the same output. Time is the recording's.

      EXAMPLES
        vmfence-ref integrity replay --image base.img --trace writes.jsonl --protect '/etc/**' --eve events.json
        vmfence-ref integrity replay --image base.img --trace writes.jsonl --protect '/bin/**' --deny-data --eve - | jq .vmfence
        vmfence-ref integrity replay --image base.img --trace writes.jsonl --protect '/var/www/**' --rules webshell.rules --eve events.json
      """)

  @Option(help: "The disk as it was when the recording began.")
  var image: String

  @Option(help: "The recording: a .jsonl file, with its data beside it in a .bin file.")
  var trace: String

  @Option(
    name: .customLong("protect"), parsing: .upToNextOption,
    help: "Paths or patterns of paths, as /etc/**; with ! before it, what is left out.")
  var protected: [String]

  @Option(help: "Where to write EVE JSON; - for standard output.")
  var eve: String

  @Option(
    help: "What is told of protected files: attributes and groups as AIDE has them, joined by + and -, as R or p+u+g.")
  var attributes: String?

  @Flag(name: .customLong("deny-data"), help: "Refuse changes of protected contents.")
  var deniesData = false

  @Flag(name: .customLong("deny-metadata"), help: "Refuse transactions that change protected files in any way.")
  var deniesMetadata = false

  @Option(
    parsing: .upToNextOption,
    help: "Rule files that what is written to protected files is compared with, as the body of an HTTP transfer.")
  var rules: [String] = []

  @OptionGroup var ruleOptions: RuleOptions

  @Option(name: .customLong("list"), help: "Write a listing of the disk after the recording, as JSON lines.")
  var list: String?

  @Flag(help: "Compare what the monitor knows at the end with what a fresh reading of the disk finds.")
  var verify = false

  func validate() throws {
    if protected.isEmpty { throw ValidationError("name at least one path: --protect /etc/passwd") }
    do throws(IntegrityError) {
      _ = try ProtectionPolicy(protected.map { .init($0) })
      _ = try attributes.map { text throws(IntegrityError) in try FileAttributes(text) }
    } catch { throw ValidationError("\(error.message) (\(error.remedy))") }
    try OutputFile.check(
      [("--eve", eve), ("--list", list)], apartFrom: [image, trace] + rules + ruleOptions.lists)
  }

  func run() throws {
    let action: ProtectionPolicy.Action = deniesMetadata ? .denyMetadata : deniesData ? .denyData : .alert
    var disk: OverlaidDisk<DiskMonitor>
    do throws(IntegrityError) {
      let overlay = ImageOverlay(try FileDiskReader(path: image))
      var wanted = try attributes.map { text throws(IntegrityError) in try FileAttributes(text) } ?? .standard
      if !rules.isEmpty { wanted.formUnion(.content) }
      let policy = try ProtectionPolicy(protected.map { .init($0, action: action, attributes: wanted) })
      let monitor = DiskMonitor(
        overlay, configuration: .init(incarnation: .none, disk: "disk", policy: policy), at: .zero)
      disk = OverlaidDisk(monitor, overlay: overlay)
    } catch { throw failure(error, error.exit) }
    var inspection = try inspection()
    var output = ReplayOutput(file: try LineFile(path: eve))
    do throws(BlockSourceError) {
      var source = try RecordedBlockSource.open(path: trace)
      while try !source.deliver(limit: 1, until: nil, to: &disk).isAtEnd {
        output.tell(disk.observer.drainEvents())
        tellMatches(&disk.observer, &inspection, &output)
      }
    } catch {
      output.tell(disk.observer.drainEvents())
      try output.file.close()
      throw failure(error, error.code == .inputOutput ? Exit.noInput : Exit.badData)
    }
    disk.observer.finish(at: disk.lastTime)
    output.tell(disk.observer.drainEvents())
    tellMatches(&disk.observer, &inspection, &output)
    try output.file.close()
    let statistics = disk.observer.statistics
    Terminal.error.print(
      "requests: \(statistics.requests), on protected blocks: \(statistics.hits), refused: \(statistics.denied), "
        + "events: \(output.count), lost: \(statistics.lostEvents)")
    if verify { try compare(disk) }
    if let blindness = disk.observer.watched.compactMap(\.blindness).first { throw failure(blindness, blindness.exit) }
    if let failed = disk.failure { throw failure(failed, failed.exit) }
    guard let list else { return }
    let listing = ImageListing(hashes: true, output: try LineFile(path: list))
    do throws(IntegrityError) {
      for part in try DiskLayout(disk.overlay).parts { _ = listing.list(part.reader, partition: part.partition) }
    } catch { throw failure(error, error.exit) }
    try listing.finish()
  }

  private func inspection() throws -> ContentInspection<SnortInspector>? {
    guard !rules.isEmpty else { return nil }
    do {
      let (engine, request) = try ruleOptions.request(rules, onBadRule: .skip)
      let compilation = try engine.compile(request)
      Terminal.error.print(compilation.diagnostics.filter { $0.severity != .note })
      return try ContentInspection(rules: compilation.rules)
    } catch let error as RuleLoading.Failure {
      Terminal.error.print(error.diagnostics)
      throw Exit.noInput
    } catch let error as RuleCompilationError {
      Terminal.error.print(error.diagnostics.isEmpty ? [error.diagnostic] : error.diagnostics)
      throw Exit.badData
    }
  }

  /// Compares what was written with the rules.
  private func tellMatches(
    _ monitor: inout DiskMonitor, _ inspection: inout ContentInspection<SnortInspector>?, _ output: inout ReplayOutput
  ) {
    guard inspection != nil else { return }
    while let contents = monitor.nextContents() {
      for rule in inspection?.inspect(contents) ?? [] { output.tell([contents.event(matching: rule)]) }
    }
  }

  private func compare(_ disk: borrowing OverlaidDisk<DiskMonitor>) throws {
    var fresh: [FileSystemView.ProtectedFile] = []
    do throws(IntegrityError) {
      let policy = try ProtectionPolicy(protected.map { .init($0) })
      for part in try DiskLayout(disk.overlay).parts {
        if let view = try? FileSystemView(part.reader, policy: policy) { fresh += view.protectedFiles }
      }
    } catch { throw failure(error, error.exit) }
    let known = disk.observer.watched.flatMap(\.files)
    let isSame =
      known.count == fresh.count
      && zip(known, fresh).allSatisfy { $0.path == $1.path && $0.number == $1.number && $0.inode == $1.inode }
    guard !isSame else { return }
    let error = IntegrityError(
      .damaged, "the monitor knows \(known.count) files, a fresh reading finds \(fresh.count), or other ones",
      remedy: "report this, with the image and the recording")
    throw failure(error, Exit.internalError)
  }
}

private struct ReplayOutput {
  let file: LineFile
  private let encoder = EVEEncoder(node: "integrity", directory: DomainDirectory())
  private(set) var count = 0

  init(file: LineFile) { self.file = file }

  mutating func tell(_ events: [FileEvent]) {
    count += events.count
    for event in events { file.write(encoder.encode(.file(event))) }
  }
}
#endif
