#if Daemon
import ArgumentParser
import VMFenceCore

/// A setting of the detection engine, from the command line.
struct EngineSetting: ExpressibleByArgument {
  var name: String
  var value: String

  private static let known = ["checksum-validation"]

  init?(argument: String) {
    guard let pair = RuleVariable(argument: argument) else { return nil }
    (name, value) = (pair.name, pair.value)
  }

  /// Changes `configuration`; what is wrong with the setting, if anything is.
  func apply(to configuration: inout InspectorConfiguration) -> Diagnostic? {
    guard name == "checksum-validation" else {
      return Diagnostic(
        .error, "there is no setting `\(name.escapedForDisplay)`",
        remedy: "there are: \(Self.known.joined(separator: ", "))")
    }
    guard ["yes", "no"].contains(value) else {
      return Diagnostic(
        .error, "\(name): `\(value.escapedForDisplay)` is neither yes nor no", remedy: "write \(name)=yes")
    }
    configuration.verifiesChecksums = value == "yes"
    return nil
  }
}
#endif
