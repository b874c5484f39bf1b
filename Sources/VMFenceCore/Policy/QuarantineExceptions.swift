/// Who a quarantined domain may still speak with.
public struct QuarantineExceptions: Hashable, Sendable {
  /// Networks that it reaches and that reach it: a rescue host, for example. Address resolution is let through for their family.
  public var networks: [IPNetwork]
  /// Whether it may still get an address by DHCP (UDP ports 67 and 68).
  public var allowsDHCP: Bool

  public init(networks: [IPNetwork] = [], allowsDHCP: Bool = false) {
    self.networks = networks
    self.allowsDHCP = allowsDHCP
  }
}
