public import VMFenceCore

/// A guest's page with a session on it.
public struct GuestPage<Session: GuestSession>: Sendable {
  public var session: Session
  /// This side's end of the guest's event channel, if it has one.
  public var port: UInt32?

  public init(session: Session, port: UInt32? = nil) {
    self.session = session
    self.port = port
  }
}

/// How guests' pages come to Dom0, and how one rings. What guests say in it is theirs, and may be anything. Used by one thread.
public protocol GuestPages: Sendable {
  /// Where a guest says that its page is.
  associatedtype Offer: Hashable, Sendable
  associatedtype Session: GuestSession
  /// Readable when a guest rang; -1 when none can.
  var descriptor: Int32 { get }
  /// What a guest offers now; nil when that is nothing.
  ///
  /// - Throws: when it cannot be asked; it is asked again.
  mutating func offer(of domain: Incarnation) throws(ProbeError) -> Offer?
  /// Begins a session on the page of an offer, if the domain with that number is this one still. Where that takes its time, what is wrong with
  /// the page is the session's first event.
  ///
  /// - `epoch`: as of `HostChannel`; `now`: of the system's clock.
  mutating func open(
    _ offer: Offer, of domain: Incarnation, epoch: UInt64, at now: Timestamp
  ) throws(ChannelViolation) -> GuestPage<Session>
  /// Gives up what belongs to a page whose session was closed.
  mutating func close(_ page: GuestPage<Session>)
  mutating func ring(_ page: GuestPage<Session>, of domain: Incarnation)
  /// Ports that guests rang; each stays silent until it is unmasked.
  mutating func takeRings() -> [UInt32]
  mutating func unmask(_ port: UInt32)
}
