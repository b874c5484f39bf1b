internal import Glibc
import VMFenceChannel
import VMFenceCore
import VMFenceGuest

/// How the page is shared with Dom0, and how the two ring each other.
protocol ChannelTransport {
  var page: SharedPage { get }
  /// Tells Dom0 where the page is, which is prepared.
  func offer()
  /// Whether what was offered is not there any more, as after a restore: then `page` is another one, which is to be prepared and offered.
  func renew() -> Bool
  /// Takes the offer back.
  func withdraw()
  /// Waits until Dom0 may have written something, or for so long. Ends early at a signal.
  func wait(atMost time: Duration)
  /// Tells Dom0 that something was written.
  func ring()
}

/// The frontend's work: takes policies, puts them in force, answers, reports and declares. Everything that Dom0 says is checked; everything
/// that goes wrong is said on standard error and to Dom0, and ends nothing.
struct Agent<Transport: ChannelTransport> {
  /// The page is looked at this often, should a ring be lost.
  private static var patience: Duration { .seconds(1) }

  private let transport: Transport
  private let own: DomainUUID?
  private let configuration: String
  private var channel: GuestChannel
  /// Whether Dom0 was told, in this session, what the tenant wants.
  private var isDeclared = false

  init(_ transport: Transport, own: DomainUUID?, configuration: String) {
    self.transport = transport
    self.own = own
    self.configuration = configuration
    channel = Self.prepare(transport.page)
  }

  private static func prepare(_ page: SharedPage) -> GuestChannel {
    GuestChannel(preparing: page, session: UInt64.random(in: 1...UInt64.max))
  }

  /// Works until a signal ends it. What is in force stays.
  mutating func run() {
    var wishes = read()
    Agent.say("waiting for the host")
    transport.offer()
    while !Signals.isEnding {
      if transport.renew() {
        Agent.say("the page is not offered any more: offering another")
        channel = Self.prepare(transport.page)
        transport.offer()
      }
      if Signals.takeReload(), let changed = read() { (wishes, isDeclared) = (changed, false) }
      var events = channel.step()
      while !Signals.isEnding {
        for event in events { take(event) }
        let declares = declare(wishes)
        guard !events.isEmpty || declares else { break }
        // What is to be said goes out at once. Dom0 may have sent a policy meanwhile: it comes with the same step, and only once.
        events = channel.step()
        transport.ring()
      }
      transport.wait(atMost: Agent.patience)
    }
    transport.withdraw()
    Agent.say("ended by a signal; the policy stays in force")
  }

  /// What the tenant wants; nil, after saying why, when that is not to be understood. A mistake of the tenant's does not keep the host's policy out of force.
  private func read() -> TenantDeclaration? {
    do throws(GuestCommand.Failure) { return try TenantFile.read(configuration) } catch {
      Agent.say("\(error.diagnostic); what was declared before stands")
      return nil
    }
  }

  private mutating func take(_ event: GuestChannelEvent) {
    switch event {
    case .opened(let version):
      Agent.say("the host began a session, version \(version)")
      isDeclared = false
      report()
    case .policy(let policy, let sentAt):
      channel.acknowledge(apply(policy, sentAt: sentAt))
      report()
    case .query: report()
    case .ended(let reason): Agent.say("the host ended the session\(reason == 0 ? "" : ": reason \(reason)")")
    case .broken(let violation): Agent.say("the host broke the protocol: \(violation.message)")
    }
  }

  private func apply(_ policy: GuestPolicy, sentAt: Timestamp) -> PolicyAcknowledgement {
    var answer = PolicyAcknowledgement(version: policy.version, digest: policy.digest, status: .refused)
    if let own, own != policy.domain {
      answer.reason = "this guest is \(own)"
    } else {
      do throws(GuestFirewallError) {
        var firewall = try GuestFirewall()
        let result = try firewall.apply(policy, at: SystemClock().now, hostTime: sentAt)
        answer.status = .applied
        (answer.standing, answer.over) = (UInt16(result.standing), UInt16(result.over))
        Agent.say("policy \(policy.version) is in force: \(result.standing) measures")
        return answer
      } catch {
        answer.status = error.code == .stale ? .stale : .failed
        answer.reason = error.message
      }
    }
    Agent.say("policy \(policy.version) is not in force: \(answer.reason)")
    return answer
  }

  private mutating func report() {
    do throws(GuestFirewallError) {
      var firewall = try GuestFirewall()
      guard let policy = try firewall.inForce() else { return channel.report(InForceReport(policy: nil)) }
      let dropped = [policy.droppedFrom, policy.droppedTo, policy.droppedInQuarantine, policy.droppedByLimit]
      channel.report(
        InForceReport(
          policy: .init(version: policy.version, digest: policy.digest),
          standing: UInt16(clamping: min(policy.measures.count, policy.measureCount)),
          measures: UInt16(clamping: policy.measureCount), dropped: dropped.map(\.packets)))
    } catch {
      Agent.say("what is in force cannot be told: \(error.message)")
      channel.report(InForceReport(policy: nil))
    }
  }

  /// Declares what was not declared yet; while an earlier declaration is still on its way, the next time.
  ///
  /// - Returns: whether there is something to be sent.
  private mutating func declare(_ wishes: TenantDeclaration?) -> Bool {
    guard let wishes, channel.isOpen, !isDeclared else { return false }
    isDeclared = (try? channel.declare(wishes)) != nil
    return isDeclared
  }

  private static func say(_ text: String) {
    Output.write("vmfence-guest: \(text)\n", to: 2)
  }
}

/// A page that lies in a file which the host maps, too: the memory of an ivshmem device of QEMU (`/sys/bus/pci/devices/…/resource2`), or a memory
/// file between two processes. Nobody can ring there, so the page is looked at every 50 ms, which costs a few loads.
struct PageFileTransport: ChannelTransport {
  private static let interval = Duration.milliseconds(50)

  let page: SharedPage

  init(_ file: String) throws(GuestCommand.Failure) {
    let place = SourcePlace(file: file)
    // SAFETY: open(2) reads the path up to its zero.
    let descriptor = unsafe open(file, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)
    guard descriptor >= 0 else {
      let number = errno
      throw GuestCommand.Failure(
        number == EACCES ? 77 : 66, "the page cannot be opened: \(describeError(number))", at: place)
    }
    defer { close(descriptor) }
    var status = stat()
    // SAFETY: fstat(2) writes the structure.
    guard unsafe fstat(descriptor, &status) == 0, status.st_size >= SharedPage.byteCount else {
      throw GuestCommand.Failure(
        66, "no page lies there: less than \(SharedPage.byteCount) bytes", at: place,
        remedy: "name a file that the host maps, too")
    }
    do throws(ChannelViolation) {
      page = try SharedPage.mapping(descriptor: descriptor)
    } catch {
      throw GuestCommand.Failure(66, error.message, at: place)
    }
  }

  func wait(atMost time: Duration) {
    let milliseconds = min(time, Self.interval).wholeNanoseconds / 1_000_000
    _ = poll(nil, 0, Int32(milliseconds))
  }

  func ring() {}

  // Whoever shares the file knows where it is.
  func offer() {}
  func renew() -> Bool { false }
  func withdraw() {}
}

/// SIGTERM and SIGINT end the frontend, SIGHUP makes it read its configuration again.
enum Signals {
  // SAFETY: written by handlers, read by the main thread; both are of a type that a handler may write.
  nonisolated(unsafe) static var ending: sig_atomic_t = 0
  nonisolated(unsafe) static var reload: sig_atomic_t = 0

  static var isEnding: Bool {
    // SAFETY: see above.
    unsafe ending != 0
  }

  static func takeReload() -> Bool {
    // SAFETY: see above. A signal between the two lines is taken the next time or this time, and never lost.
    guard unsafe reload != 0 else { return false }
    unsafe reload = 0
    return true
  }

  static func install() {
    signal(SIGTERM, noteEnd)
    signal(SIGINT, noteEnd)
    signal(SIGHUP, noteReload)
    // Whoever started this may have had them blocked.
    var signals = sigset_t()
    // SAFETY: the set is written, then read.
    unsafe sigemptyset(&signals)
    for number in [SIGTERM, SIGINT, SIGHUP] { unsafe sigaddset(&signals, number) }
    unsafe sigprocmask(SIG_UNBLOCK, &signals, nil)
  }
}

private func noteEnd(_: Int32) {
  // SAFETY: see `Signals`.
  unsafe Signals.ending = 1
}

private func noteReload(_: Int32) {
  // SAFETY: see `Signals`.
  unsafe Signals.reload = 1
}
