/// The version of VMFence, as semantic versioning has it.
public enum VMFenceVersion {
  public static let text = "0.1.0"
}
