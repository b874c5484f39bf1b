import FuzzSupport
import VMFenceChannel
import VMFenceCore

// Both sides of the policy channel over one page, and a hand that writes into the page between their steps. The first byte says who is attacked: even,
// Dom0's side by its guest; odd, the guest's side by its host. Then one operation after the other: a byte that says which, and its operands.
// Checked besides "no trap": a side says no more than it may in one step, and one that closed says nothing any more.

private let domain = DomainUUID(high: 1, low: 2)

private func policy(_ version: UInt64) -> GuestPolicy {
  do throws(GuestPolicyError) {
    return try GuestPolicy(
      domain: domain, version: version, issued: Timestamp(seconds: 1000),
      measures: (0..<30).map {
        .init(.block(IPNetwork(IPAddress(v4: 0x0A00_0000 + UInt32($0)))), expires: nil, decision: UInt64($0))
      })
  } catch { fatalError("\(error)") }
}

private let view = PageView()
private let (first, second) = (policy(1), policy(2))

/// Takes operands from the input; zeroes when it is over.
private struct ChannelOperands {
  let input: [UInt8]
  var position: Int
  var isAtEnd: Bool { position >= input.count }

  mutating func byte() -> UInt8 {
    defer { position += 1 }
    return position < input.count ? input[position] : 0
  }
  mutating func word() -> UInt64 { (0..<8).reduce(0) { result, _ in result << 8 | UInt64(byte()) } }
}

func fuzzChannel(_ input: RawSpan) {
  guard input.byteCount > 1 else { return }
  var operands = ChannelOperands(input: (0..<input.byteCount).map { input.u8($0) }, position: 1)
  do throws(ChannelViolation) {
    let page = try SharedPage.mapping(descriptor: view.descriptor)
    view.clear()
    var guest = GuestChannel(preparing: page, session: 5)
    var now = Timestamp(seconds: 2000)
    var host = try HostChannel(page, epoch: 7, at: now)
    host.offer(first)
    if input.u8(0) & 2 == 0 {
      // A session that is open, with a policy on its way.
      _ = guest.step()
      _ = host.step(at: now)
    }
    while !operands.isAtEnd { attack(&operands, &host, &guest, &now) }
  } catch { fatalError("\(error)") }
}

private func attack(
  _ operands: inout ChannelOperands, _ host: inout HostChannel, _ guest: inout GuestChannel,
  _ now: inout Timestamp
) {
  switch operands.byte() % 8 {
  case 0:
    // A word anywhere, or one of the indices.
    view.store(operands.word(), at: Int(operands.byte()) << 1 | Int(operands.byte()) & 1)
  case 1:
    // A small number in one of the first words.
    view.store(UInt64(operands.byte()) * 8, at: Int(operands.byte()) % 16)
  case 2:
    view.forge(
      fromGuest: operands.input[0] & 1 == 0, behind: UInt64(operands.byte()) * 8, type: operands.byte(),
      sequence: UInt64(operands.byte()), payload: (0..<Int(operands.byte())).map { _ in operands.byte() })
  case 3: guest.report(InForceReport(policy: nil, standing: UInt16(operands.byte())))
  case 4: try? guest.declare(TenantDeclaration(serviceType: "web", protectedPaths: ["/a\(operands.byte())"]))
  case 5:
    host.offer(operands.byte() % 2 == 0 ? first : second)
    host.query()
  case 6:
    now = now + .milliseconds(Int(operands.byte()))
    let wasClosed = host.state == .closed
    let events = host.step(at: now)
    precondition(events.count <= 130 && !(wasClosed && !events.isEmpty), "too many events")
  default:
    let events = guest.step()
    precondition(events.count <= 66, "too many events")
    for case .policy(let policy, _) in events {
      // Whoever can write the whole page can write a whole policy, but no other bytes become one.
      precondition(policy == first || policy == second, "a policy that nobody sent")
      guest.acknowledge(PolicyAcknowledgement(version: policy.version, digest: policy.digest, status: .applied))
    }
  }
}
