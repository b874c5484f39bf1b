/// What goes wrong on a guest's channel, as it is counted by guest.
public enum ChannelError: String, Sendable, Hashable, CaseIterable {
  /// As `ChannelViolation.Code` has them: the channel was closed, or could not be opened.
  case page, version, index, header, checksum, order, message, unexpected
  /// The guest answered that a policy is not in force.
  case notApplied = "not_applied"
  /// The guest did not answer to a policy.
  case unanswered
  /// The guest could not be asked what it offers.
  case unreadable

  init(_ code: ChannelViolation.Code) {
    guard let error = Self(rawValue: code.name) else { preconditionFailure("a violation is not counted: \(code.name)") }
    self = error
  }
}
