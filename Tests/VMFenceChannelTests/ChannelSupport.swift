import VMFenceCore

@testable import VMFenceChannel

let start = Timestamp(seconds: 1_800_000_000)
let guestUUID = DomainUUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")!

func policy(_ version: UInt64, measures: Int = 3) throws -> GuestPolicy {
  try GuestPolicy(
    domain: guestUUID, version: version, issued: start,
    measures: (0..<measures).map {
      .init(
        .block(IPNetwork(IPAddress(v4: 0x0A00_0000 + UInt32($0)))), expires: start + .seconds(600), decision: UInt64($0)
      )
    })
}

/// Both sides over one page, in one thread.
struct Pair {
  let page: SharedPage
  var host: HostChannel
  var guest: GuestChannel
  var now = start

  init(epoch: UInt64 = 0x1234) throws {
    page = try SharedPage.anonymous()
    guest = GuestChannel(preparing: page, session: 77)
    host = try HostChannel(page, epoch: epoch, at: start)
  }

  /// Steps both until neither has said anything for as long as the longest policy takes; the guest answers policies as `answer` says.
  mutating func settle(
    answer: (GuestPolicy) -> PolicyAcknowledgement.Status? = { _ in .applied }
  ) -> (host: [HostChannelEvent], guest: [GuestChannelEvent]) {
    var seen: (host: [HostChannelEvent], guest: [GuestChannelEvent]) = ([], [])
    var idle = 0
    while idle < 64 {
      let fromGuest = guest.step()
      for case .policy(let policy, _) in fromGuest {
        guard let status = answer(policy) else { continue }
        guest.acknowledge(
          PolicyAcknowledgement(
            version: policy.version, digest: policy.digest, status: status, standing: UInt16(policy.measures.count)))
      }
      let fromHost = host.step(at: now)
      seen.host += fromHost
      seen.guest += fromGuest
      idle = fromHost.isEmpty && fromGuest.isEmpty ? idle + 1 : 0
    }
    return seen
  }

  /// A pair whose session is open.
  static func open() throws -> Pair {
    var pair = try Pair()
    _ = pair.settle()
    return pair
  }
}

/// A guest that writes messages of its own making into the lane up, with right indices and checksums unless told otherwise.
struct ForgingGuest {
  let page: SharedPage
  var tail: UInt64 = 0
  var sequence: UInt64 = 0
  var epoch: UInt64

  init(_ page: SharedPage, epoch: UInt64) {
    self.page = page
    self.epoch = epoch
    page.release(epoch, at: ChannelLayout.Guest.epoch)
  }

  mutating func send(_ type: UInt8, _ payload: [UInt8], change: (inout [UInt8]) -> Void = { _ in }) {
    sequence += 1
    let header = FrameHeader(version: 1, type: type, length: payload.count, epoch: epoch, sequence: sequence)
    var bytes = FrameHeader.encode(header, payload)
    change(&bytes)
    write(bytes)
  }

  mutating func write(_ bytes: [UInt8]) {
    bytes.withRawSpan { span in
      for offset in stride(from: 0, to: span.byteCount & ~7, by: 8) {
        page.store(span.u64le(offset), at: Lane.up.place(tail + UInt64(offset)))
      }
    }
    tail += UInt64(bytes.count)
    page.release(tail, at: Lane.up.tail)
  }
}
