#if Daemon
import VMFenceCore

/// Numbers for the interfaces of a configuration, and the dispatch table for the domains that are there.
struct HostPorts {
  private(set) var numbers: [String: PortID] = [:]
  /// By number.
  private var names: [String] = []
  private var bridges: Set<String> = []

  /// The number of an interface; a bridge captured as a whole is one too.
  mutating func number(_ interface: String, isBridge: Bool = false) -> PortID {
    if isBridge { bridges.insert(interface) }
    if let known = numbers[interface] { return known }
    let number = PortID(UInt32(names.count))
    numbers[interface] = number
    names.append(interface)
    return number
  }

  /// The interface that has this number; nil when none has.
  func name(of number: PortID) -> String? {
    let index = Int(number.rawValue)
    return index < names.count ? names[index] : nil
  }

  /// Where frames of these domains are captured.
  func dispatchPorts(_ members: [DispatchMember]) -> [DispatchPort] {
    var ports: [DispatchPort] = []
    for member in members {
      for port in member.domain.ports {
        guard let number = numbers[port.interface], !bridges.contains(port.interface) else { continue }
        ports.append(DispatchPort(id: number, kind: .vif(owner: member.domain.incarnation)))
      }
    }
    for bridge in bridges.sorted() {
      if let number = numbers[bridge] { ports.append(DispatchPort(id: number, kind: .bridge(bridge))) }
    }
    return ports
  }
}
#endif
