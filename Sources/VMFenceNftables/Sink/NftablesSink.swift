public import VMFenceCore
internal import Synchronization

/// Dom0's packet filter: measures as elements of sets in a table of our own, `table bridge vmfence`, on the bridges that the
/// guests' ports are plugged into. A second one, `table netdev vmfence`, has a chain at each port (`SpoofingKind.mac`, and ports in quarantine).
///
/// What it promises:
/// - A change is one transaction of the kernel: whole or not at all, and in force when the call returns.
/// - A block cuts both directions between a network and the domain's ports at once, connections that stand included: no state is looked up.
/// - The kernel ends measures by itself, whoever else has died. Clock jumps do not matter to it.
/// - Nothing outside the table is touched. Where the kernel can (6.9 and later), the table is *owned*: nobody else can change or flush it
///   while this process lives, and it stays when this process ends.
/// - Measures of a domain without ports (it reboots) wait in the kernel until `update(ports:)` names its ports.
///
/// Frames are looked at in the bridge's forward hook: what a guest exchanges with others. A domain in quarantine is cut off from the
/// host too; blocks concern the host's own addresses only with `Configuration.protectsHost`.
///
/// Not covered: guests whose traffic is routed rather than bridged, Open vSwitch, and frames with two VLAN tags. Of fragments, those
/// after the first have no ports: a block stops them, a flow that was cut does not.
///
/// Safe to use from any thread; calls go one after another. A call may keep its thread for as long as the kernel needs: some microseconds
/// for a change, up to a second for 100,000 measures. The corresponding C libraries are libnftnl and libmnl.
public final class NftablesSink: FirewallSink {
  public struct Configuration: Hashable, Sendable {
    /// The table's name, in the bridge family.
    public var table: String
    public var quarantineExceptions: QuarantineExceptions
    /// Whether a block also stands between the network and the host's own addresses on a bridge. It then can lock out an administrator.
    public var protectsHost: Bool
    /// Whether to own the table, where the kernel can.
    public var holdsTable: Bool
    /// How many measures fit; more are refused with `full`.
    public var capacity: Int

    public init(
      table: String = "vmfence", quarantineExceptions: QuarantineExceptions = QuarantineExceptions(),
      protectsHost: Bool = false, holdsTable: Bool = true, capacity: Int = 1_000_000
    ) {
      self.table = table
      self.quarantineExceptions = quarantineExceptions
      self.protectsHost = protectsHost
      self.holdsTable = holdsTable
      self.capacity = capacity
    }
  }

  public let configuration: Configuration
  /// What this kernel can.
  public let features: KernelFeatures
  /// What stood in the table when it was opened, from an earlier run.
  public let adoptedMeasures: Int
  let contents: Mutex<SinkContents>
  let additions = CommitQueue<AdditionRequest, AdditionOutcome>()
  private let listener: ChangeListener
  private let foreignChanges: NewsStreams<ForeignChange>

  private init(
    _ configuration: Configuration, _ features: KernelFeatures, _ contents: consuming SinkContents,
    _ listener: ChangeListener, _ foreignChanges: NewsStreams<ForeignChange>
  ) {
    self.configuration = configuration
    self.listener = listener
    self.foreignChanges = foreignChanges
    self.features = features
    adoptedMeasures = contents.standing.count
    self.contents = Mutex(contents)
  }

  /// Opens the packet filter of the network namespace that the calling thread is in: makes the table, or goes on with the one that an
  /// earlier run left, measures included.
  ///
  /// - Throws: `permissionDenied` without CAP_NET_ADMIN; `inUse` when another process owns the table; `unsupported` when the kernel has no nftables
  ///   for bridges.
  public static func open(_ configuration: Configuration = Configuration()) throws(FirewallError) -> NftablesSink {
    do throws(NetlinkError) { return try opening(configuration) } catch {
      throw FirewallError(error, during: openingAction, table: configuration.table)
    }
  }

  static let openingAction = "open the packet filter"

  /// - `heard`: called besides, on the listener's thread, for each change by others.
  static func opening(
    _ configuration: Configuration, _ heard: @escaping @Sendable (ForeignChange) -> Void = { _ in }
  ) throws(NetlinkError) -> NftablesSink {
    var socket = try NetlinkSocket.open()
    var batch = try Batch.make()
    let features = try KernelFeatures.probe(&socket, &batch)
    var contents = SinkContents(configuration, socket: socket, batch: batch, features)
    try contents.openTable()
    try contents.openPortChains()
    let streams = NewsStreams<ForeignChange>()
    let listener = try ChangeListener.start(
      family: .bridge, table: configuration.table, own: contents.socket.port
    ) { change in
      streams.report(change)
      heard(change)
    }
    contents.listener = listener
    return NftablesSink(configuration, features, contents, listener, streams)
  }

  // MARK: FirewallSink

  /// What is removed goes first, then what is added comes: a key in both stands afterwards.
  public func apply(_ change: FirewallChange) async throws(FirewallError) -> UInt64 {
    try locked { contents throws(FirewallError) in try contents.apply(change) }
  }

  public func replace(with measures: [FirewallMeasure], at time: Timestamp) async throws(FirewallError) -> UInt64 {
    try locked { contents throws(FirewallError) in
      try contents.change(adding: measures, removing: [], at: time, replacesAll: true)
    }
  }

  /// How many transactions the kernel has taken from this sink.
  public var transactions: UInt64 { contents.withLock { $0.transactions } }

  /// Reads the kernel's sets, unless the kernel says that nobody else has changed anything since they were read. A measure of which only a part stands (a port's element was deleted) is not among them. What others put into
  /// our sets is taken out; when somebody changed or deleted the table's chains and rules, the table is made anew, and is empty.
  public func readBack(at time: Timestamp) async throws(FirewallError) -> FirewallState {
    try locked { contents throws(FirewallError) in try contents.readBack(at: time) }
  }

  /// Begins with the generation in force. Who reads too slowly gets the newest ones.
  public func acknowledgements() async -> AsyncStream<FirewallAcknowledgement> {
    let (stream, continuation) = AsyncStream.makeStream(
      of: FirewallAcknowledgement.self, bufferingPolicy: .bufferingNewest(64))
    let number = contents.withLock { $0.addListener(continuation) }
    continuation.onTermination = { [weak self] _ in
      self?.contents.withLock { $0.listeners[number] = nil }
    }
    return stream
  }

  /// What others do to our table, as the kernel tells it: after each of these, what is in force has to be read back. One for each transaction;
  /// who reads too slowly gets the newest ones. Ends with the sink.
  public func changesByOthers() -> AsyncStream<ForeignChange> { foreignChanges.add() }

  // MARK: Ports

  /// Says which ports each domain has now: all domains, each time. Measures move along with their domain to its new ports and keep their remaining
  /// time. A port named for two domains counts for the one with the lower UUID; names that no interface can have are left out.
  ///
  /// - `antiSpoofing`: what is stopped at these ports from now on, by their MAC addresses and IP addresses.
  ///
  /// What is done at a port by itself needs its interface: one that comes later, or is made anew under its old name, wants another call.
  public func update(
    ports: [DomainUUID: [NetworkPort]], antiSpoofing: AntiSpoofing = .off
  ) async throws(FirewallError) {
    try locked { contents throws(FirewallError) in try contents.update(ports, antiSpoofing) }
  }

  deinit {
    listener.close()
    foreignChanges.finish()
    let listeners = contents.withLock { contents in
      defer { contents.listeners = [:] }
      return Array(contents.listeners.values)
    }
    for listener in listeners { listener.finish() }
  }

  func locked<Result: Sendable>(
    _ body: (inout SinkContents) throws(FirewallError) -> sending Result
  ) throws(FirewallError) -> Result {
    try contents.withLock { contents throws(FirewallError) in try body(&contents) }
  }
}
