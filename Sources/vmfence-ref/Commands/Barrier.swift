#if Daemon
import ArgumentParser
import Foundation
import VMFenceConfiguration
import VMFenceControl
import VMFenceCore

/// `vmfence-ref barrier`
struct Barrier: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Wait until a guest is guarded at a port.",
    discussion: """
      For scripts that plug a guest's card in (vif-vmfence of this package): returns when the detector, what is blocked and what may not be pretended are
      in force there. Exits with 75 when that does not come in time, and with 69 when no daemon answers.

      EXAMPLES
        vmfence-ref barrier vif3.0 --timeout 10s
      """)
  @OptionGroup var control: ControlOptions
  @Argument(help: "The network interface in this host.") var port: String
  @Option(help: "How long to wait, at most 60s.") var timeout: String = "10s"

  func run() throws {
    guard let time = Duration(configuration: timeout) else {
      throw ValidationError("--timeout: not a time: \(timeout)")
    }
    let client = try control.client()
    let request = ControlRequest(.barrier, duration: Double(time.wholeNanoseconds) / 1e9, port: port)
    do throws(ControlFailure) {
      let status = try client.ask(request, BarrierStatus.self)
      let without = status.isInspected ? "" : ", without rules"
      Terminal.output.print("\(status.port): \(status.domain) is guarded\(without)".escapedForDisplay)
    } catch {
      ControlOptions.print(error)
      throw Exit.temporary
    }
  }
}
#endif
