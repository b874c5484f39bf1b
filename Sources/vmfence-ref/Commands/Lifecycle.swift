#if Daemon
import ArgumentParser
import VMFenceCore

/// `vmfence-ref dfa`
struct Lifecycle: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "dfa",
    abstract: "Print the automaton of a detector's life, from the table in the code.",
    discussion: """
      EXAMPLES
        vmfence-ref dfa
        vmfence-ref dfa --format dot | dot -Tsvg > lifecycle.svg
      """)

  enum Format: String, CaseIterable, ExpressibleByArgument { case table, mermaid, dot }

  @Option(help: "table, mermaid or dot.")
  var format: Format = .table

  func run() {
    let style: LifecycleTable.Format =
      switch format {
      case .table: .table
      case .mermaid: .mermaid
      case .dot: .dot
      }
    Terminal.output.print(LifecycleTable.rendered(as: style))
  }
}
#endif
