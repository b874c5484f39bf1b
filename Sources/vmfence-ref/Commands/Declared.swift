#if Daemon
import ArgumentParser
import VMFenceControl
import VMFenceCore

/// `vmfence-ref declared`
struct Declared: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "What a guest declared over the policy channel, and how to take it back.",
    discussion: """
      What a guest declares only ever adds, and stands when the guest is owned. What is taken back here does not come again with its next
      declaration, until that is allowed; both outlive a restart. A disk's process watches what stood when it was started.

      EXAMPLES
        vmfence-ref declared web
        vmfence-ref declared web --forget '/tmp/**'      this path, and not again
        vmfence-ref declared web --all                   take everything back, its service type too, and nothing more of it
        vmfence-ref declared web --allow                 take again what it declares from now on
        vmfence-ref declared web --json | jq .paths
      """)
  @OptionGroup var control: ControlOptions
  @Argument(help: "The domain's name or UUID.") var domain: String
  @Option(help: ArgumentHelp("A path to take back; may be given again.", valueName: "path")) var forget: [String] = []
  @Flag(help: "Take everything back, and nothing more of this guest.") var all = false
  @Flag(help: "Take again what it declares from now on.") var allow = false

  func validate() throws {
    guard [!forget.isEmpty, all, allow].count(where: { $0 }) <= 1 else {
      throw ValidationError("one of --forget, --all and --allow")
    }
  }

  func run() throws {
    let request =
      allow
      ? ControlRequest(.declaredAllow, domain: domain)
      : all || !forget.isEmpty
        ? ControlRequest(.declaredForget, domain: domain, files: forget, all: all)
        : ControlRequest(.declared, domain: domain)
    try control.ask(request) { (status: DeclaredStatus) in status.lines }
  }
}

extension DeclaredStatus {
  fileprivate var lines: [String] {
    let name = domain.escapedForDisplay
    var lines = [
      "\(name) declared \(paths.count) paths" + (service.map { ", and that it serves \($0.escapedForDisplay)" } ?? "")
    ]
    lines += paths.map { "  \($0.escapedForDisplay)" }
    if takesNothing { lines.append("nothing is taken of it; take it again: vmfence-ref declared \(name) --allow") }
    lines += refused.map { "not taken: \($0.escapedForDisplay)" }
    return lines
  }
}
#endif
