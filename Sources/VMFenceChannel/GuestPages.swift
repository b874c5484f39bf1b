public import VMFenceCore

/// A guest's page, as long as it is mapped.
public struct GuestPage: Sendable {
  public var page: SharedPage
  /// This side's end of the guest's event channel, if it has one.
  public var port: UInt32?

  public init(page: SharedPage, port: UInt32? = nil) {
    self.page = page
    self.port = port
  }
}

/// How guests' pages come to Dom0, and how one rings. What guests say in it is theirs, and may be anything. Used by one thread.
public protocol GuestPages: Sendable {
  /// Where a guest says that its page is.
  associatedtype Offer: Hashable, Sendable
  /// Readable when a guest rang; -1 when none can.
  var descriptor: Int32 { get }
  /// What a guest offers now; nil when that is nothing.
  ///
  /// - Throws: when it cannot be asked; it is asked again.
  mutating func offer(of domain: Incarnation) throws(ProbeError) -> Offer?
  /// Maps the page of an offer, if the domain with that number is this one still.
  mutating func map(_ offer: Offer, of domain: Incarnation) throws(ProbeError) -> GuestPage
  /// Gives up what belongs to a page; the page itself goes with the last reference to it.
  mutating func close(_ page: GuestPage)
  mutating func ring(_ page: GuestPage, of domain: Incarnation)
  /// Ports that guests rang; each stays silent until it is unmasked.
  mutating func takeRings() -> [UInt32]
  mutating func unmask(_ port: UInt32)
}
