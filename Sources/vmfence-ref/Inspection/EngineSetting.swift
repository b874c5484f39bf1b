#if Daemon
import ArgumentParser
import VMFenceCore

/// A setting of the detection engine, from the command line.
struct EngineSetting: ExpressibleByArgument {
  var name: String
  var value: String

  init?(argument: String) {
    guard let pair = RuleVariable(argument: argument) else { return nil }
    (name, value) = (pair.name, pair.value)
  }
}
#endif
