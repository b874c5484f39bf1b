public import VMFenceCore

/// Why a channel was closed: what the other side did that the protocol does not allow.
public struct ChannelViolation: DescribedError, Hashable {
  public struct Code: Hashable, Sendable {
    public let name: String
    /// What the other side is told, in the page's state word.
    let number: UInt16
    init(_ name: String, _ number: UInt16) {
      self.name = name
      self.number = number
    }
    /// The page cannot be mapped, or was not prepared.
    public static let page = Code("page", 1)
    /// No version in common.
    public static let version = Code("version", 2)
    /// An index that goes back, or names what cannot be there.
    public static let index = Code("index", 3)
    /// A header that is wrong.
    public static let header = Code("header", 4)
    /// Bytes that do not belong to their header.
    public static let checksum = Code("checksum", 5)
    /// A message of another session, one that was skipped or came twice.
    public static let order = Code("order", 6)
    /// A message that is not what its type says.
    public static let message = Code("message", 7)
    /// A message that nobody asked for: the acknowledgement of what was never sent.
    public static let unexpected = Code("unexpected", 8)

    static let all: [Code] = [page, version, index, header, checksum, order, message, unexpected]
  }

  public var code: Code
  public var message: String
  public var place: SourcePlace? { nil }
  public var remedy: String { "" }

  public init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }
}
