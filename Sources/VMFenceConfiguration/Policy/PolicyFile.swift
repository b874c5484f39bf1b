#if Daemon
public import VMFenceCore

/// A policy in a YAML file, for whoever has none of the daemon's other configuration. `Docs/Operating.md` has the keys.
public enum PolicyFile {
  /// Reads the policy at `path`.
  ///
  /// - `knownClasses`: the classes of the rules in use, by which misspelt ones are found; nil when they are not known.
  /// - Returns: the policy, nil when something is wrong with it, and all that is to be said about it, with its place.
  public static func read(
    path: String, knownClasses: Set<String>? = nil
  ) -> (policy: Policy?, diagnostics: [Diagnostic]) {
    let reader = YAMLReader(file: path)
    guard let map = reader.loadMapping() else { return (nil, reader.diagnostics) }
    let policy = PolicyParser(reader: reader).parse(map, knownClasses: knownClasses)
    return (reader.hasErrors ? nil : policy, reader.diagnostics)
  }
}
#endif
