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

  /// What is counted of a violation.
  init(_ code: ChannelViolation.Code) {
    // Every code by itself, so that one more does not compile before it is counted as something.
    self =
      switch code {
      case .page: .page
      case .version: .version
      case .index: .index
      case .header: .header
      case .checksum: .checksum
      case .order: .order
      case .message: .message
      case .unexpected: .unexpected
      }
  }
}
