import Synchronization
import VMFenceCore

/// Opens captures beside whoever reads others: to give a socket its ring, the kernel waits until none of its processors can be about to use the socket (`packet_set_ring` of
/// net/packet/af_packet.c, `synchronize_net`), 5 to 20 ms for each, in which frames of all other cards would wait.
///
/// A capture that was opened receives at once; its frames are in its ring when it is taken. One at a time is opened, in the order of the requests, by a thread that ends when there are no
/// more. May be used by any thread.
public final class CaptureQueue: Sendable {
  /// What `LiveCapture.open` is to be called with.
  public struct Request: Hashable, Sendable {
    public var interface: String
    public var port: PortID
    public var kind: LiveCapture.Kind
    public var configuration: LiveCapture.Configuration

    public init(
      interface: String, port: PortID, kind: LiveCapture.Kind = .guestPort,
      configuration: LiveCapture.Configuration = LiveCapture.Configuration()
    ) {
      self.interface = interface
      self.port = port
      self.kind = kind
      self.configuration = configuration
    }
  }

  /// What became of a request.
  public final class Result: Sendable {
    public let request: Request
    /// Why there is no capture.
    public let error: PacketSourceError?
    private let capture: Mutex<LiveCapture?>

    init(_ request: Request, _ capture: consuming LiveCapture) {
      self.request = request
      error = nil
      self.capture = Mutex(consume capture)
    }

    init(_ request: Request, _ error: PacketSourceError) {
      self.request = request
      self.error = error
      capture = Mutex(nil)
    }

    /// The capture, once. It is closed with this value when nobody takes it.
    public func take() -> LiveCapture? { capture.withLock { $0.take() } }
  }

  private struct State {
    var waiting: [Request] = []
    var done: [Result] = []
    /// A thread works, and perhaps waits for the kernel or for the opener.
    var isBusy = false
  }

  private let opener: PacketSocketOpener?
  private let notify: @Sendable () -> Void
  private let state = Mutex(State())

  /// - `opener`: as in `LiveCapture.open`. It is not to be waited for elsewhere while this is busy.
  /// - `notify`: called, in another thread, when there is a result to be taken.
  public init(through opener: PacketSocketOpener?, notify: @escaping @Sendable () -> Void) {
    self.opener = opener
    self.notify = notify
  }

  /// Asks for a capture of an interface of the network namespace in which the calling thread is. Whoever asks sees to it that no more wait than there are interfaces.
  public func open(_ request: Request) {
    let starts = state.withLock { state in
      state.waiting.append(request)
      defer { state.isBusy = true }
      return !state.isBusy
    }
    // Without a thread it is waited for.
    if starts, DetachedThread.start({ [self] in work() }) != 0 { work() }
  }

  /// Whether requests wait or are worked on.
  public var isBusy: Bool { state.withLock { $0.isBusy } }

  /// What was opened, or cannot be, since the last call, in the order of the requests. Does not wait.
  public func takeResults() -> [Result] {
    state.withLock { state in
      defer { state.done = [] }
      return state.done
    }
  }

  private func work() {
    while let request = next() {
      let result: Result
      do throws(PacketSourceError) {
        result = Result(request, try LiveCapture.open(request, through: opener))
      } catch { result = Result(request, error) }
      state.withLock { $0.done.append(result) }
      notify()
    }
  }

  private func next() -> Request? {
    state.withLock { state in
      guard !state.waiting.isEmpty else {
        state.isBusy = false
        return nil
      }
      return state.waiting.removeFirst()
    }
  }
}
