public import VMFenceCore

/// Brings lines to where they should go. Used by one thread at a time, which may wait for it.
public protocol Delivery: AnyObject, Sendable {
  /// Delivers lines in their order.
  ///
  /// - Returns: how many of them are over with, from the first: delivered, or refused for good (which is counted in `refused`).
  /// - Throws: when the rest should be tried again later.
  func deliver(_ lines: [[UInt8]]) throws(DeliveryFailure) -> Int

  /// Lines that the other side does not want, and never will.
  var refused: UInt64 { get }

  /// Lets go of what is open: after a rotation, or at the end.
  func reset()
}

/// A line, and whose room it takes.
package struct DeliveryLine: Sendable {
  package var bytes: [UInt8]
  package var kind: EventRoom.Kind
  /// nil: of nobody, or nobody knows.
  package var domain: Incarnation?

  package init(bytes: [UInt8], kind: EventRoom.Kind, domain: Incarnation?) {
    self.bytes = bytes
    self.kind = kind
    self.domain = domain
  }
}

/// A place that answers and can still not take lines: they are over with, and lost.
package protocol RefusingDelivery: Delivery {
  /// Why it takes none, or not all, of the lines that come now; nil when it takes them. Asked by the thread that delivers.
  var refusal: String? { get }
}

/// A place whose own room is shared between domains.
package protocol SharedDelivery: RefusingDelivery {
  /// As `deliver`; a line for which its domain has no room is over with, and `lose` is called for it.
  func deliver(_ lines: [DeliveryLine], losing lose: (Incarnation?) -> Void) throws(DeliveryFailure) -> Int
}

/// Why lines were not delivered, for now.
public struct DeliveryFailure: Error, Sendable, Hashable {
  public var message: String
  /// Lines that were delivered before it.
  public var delivered: Int

  public init(_ message: String, delivered: Int = 0) {
    self.message = message
    self.delivered = delivered
  }
}

/// Which events a place wants.
public struct EventFilter: Sendable, Hashable {
  public enum Kind: String, Sendable, Hashable, CaseIterable {
    case alert, file, decision, lifecycle, platform
    /// What is wrong with packets; packets that a rule wants to be logged.
    case anomaly, packet

    /// Those that people wait for. The others can be as many as there are packets, and are sent to places that name them.
    public static let usual: Set<Kind> = [.alert, .file, .decision, .lifecycle, .platform]
  }

  public var kinds: Set<Kind>
  /// Only what concerns this tenant's guests. What concerns the host as a whole is for the provider only.
  public var tenant: TenantID?

  public init(kinds: Set<Kind> = Kind.usual, tenant: TenantID? = nil) {
    self.kinds = kinds
    self.tenant = tenant
  }

  public func wants(_ event: Event, _ directory: DomainDirectory) -> Bool {
    guard kinds.contains(event.kind) else { return false }
    guard let tenant else { return true }
    return event.incarnation.flatMap(directory.entry)?.description.tenant == tenant
  }
}

extension Event {
  fileprivate var kind: EventFilter.Kind {
    switch self {
    case .alert: .alert
    case .file: .file
    case .decision: .decision
    case .lifecycle: .lifecycle
    case .platform: .platform
    case .packet(let notice): if case .tagged = notice.kind { .packet } else { .anomaly }
    }
  }
}
