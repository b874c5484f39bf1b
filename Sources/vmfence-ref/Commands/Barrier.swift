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
      in force there. A daemon that has no room, or is not there for the moment, is asked again until the time is over. Exits with 75 when that is over, and
      with 69 when no daemon answered.

      EXAMPLES
        vmfence-ref barrier vif3.0 --timeout 10s
      """)
  @OptionGroup var control: ControlOptions
  @Argument(help: "The network interface in this host.") var port: String
  @Option(help: "How long to wait, at most 60s.") var timeout: String = "10s"

  /// Between two tries.
  private static let pause = Duration.milliseconds(100)
  /// How much longer than it was told the daemon may take to say that the time is over.
  private static let grace = Duration.seconds(1)

  func validate() throws {
    guard let time = Duration(configuration: timeout), time <= BarrierWait.longest else {
      throw ValidationError("--timeout: `\(timeout)` is not a duration of at most 60s, such as 500ms or 10s")
    }
  }

  func run() throws {
    let end = ContinuousClock.now + (Duration(configuration: timeout) ?? .zero)
    while true {
      do throws(ControlFailure) {
        let status = try ask(within: end - .now)
        let without = status.isInspected ? "" : ", without rules"
        Terminal.output.print("\(status.port): \(status.domain) is guarded\(without)".escapedForDisplay)
        return
      } catch {
        guard error.cause == .busy || error.cause == .unreachable, ContinuousClock.now < end else {
          if error.cause != nil { throw ControlOptions.end(error) }
          ControlOptions.print(error)
          throw Exit.temporary
        }
        Thread.sleep(forTimeInterval: Self.pause / .seconds(1))
      }
    }
  }

  private func ask(within time: Duration) throws(ControlFailure) -> BarrierStatus {
    let rest = max(time, .zero)
    // `run` tries again, with less time left.
    let client = try ControlClient(path: control.path, patience: rest + Self.grace, admission: .zero)
    return try client.ask(ControlRequest(.barrier, duration: rest / .seconds(1), port: port), BarrierStatus.self)
  }
}
#endif
