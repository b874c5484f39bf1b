import Glibc
import Synchronization

/// A system call that a thread of a test is refused, as another kernel would.
enum SystemCallRefusal: Sendable {
  /// socket(2) for a netlink socket.
  case netlinkSocket
}

struct RefusalFailed: Error { var number: Int32 }

/// Runs `body` on a thread of its own, to which the kernel refuses a call with an error number. The thread ends afterwards, and its filter with it.
func onThread<Result: Sendable>(
  refusing refusal: SystemCallRefusal, with number: Int32, _ body: @escaping @Sendable () -> Result
) throws -> Result {
  let outcome = Outcome<Result>()
  let job = Job {
    let failure = installFilter(refusal, number)
    let result =
      failure.map { .failure(RefusalFailed(number: $0)) } ?? Swift.Result<Result, RefusalFailed>.success(body())
    outcome.value.withLock { $0 = result }
  }
  var thread = pthread_t()
  // SAFETY: the reference goes to the thread, which gives it up; the thread is joined below.
  let failed = unsafe pthread_create(&thread, nil, runJob, Unmanaged.passRetained(job).toOpaque())
  guard failed == 0 else { throw RefusalFailed(number: failed) }
  // SAFETY: the thread was made above, and nobody else joins it.
  _ = pthread_join(thread, nil)
  guard let result = outcome.value.withLock({ $0 }) else { throw RefusalFailed(number: 0) }
  return try result.get()
}

private final class Outcome<Value: Sendable>: Sendable {
  let value = Mutex<Swift.Result<Value, RefusalFailed>?>(nil)
}

private final class Job: Sendable {
  let body: @Sendable () -> Void
  init(_ body: @escaping @Sendable () -> Void) { self.body = body }
}

private func runJob(_ context: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  // SAFETY: the reference that `pthread_create` was given.
  if let context = unsafe context { unsafe Unmanaged<Job>.fromOpaque(context).takeRetainedValue().body() }
  return nil
}

/// - Returns: an error number, or nil.
private func installFilter(_ refusal: SystemCallRefusal, _ number: Int32) -> Int32? {
  #if arch(x86_64)
  let socketCall: UInt32 = 41
  #else
  let socketCall: UInt32 = 198
  #endif
  let refuse = UInt32(0x0005_0000) | UInt32(number)
  let allow: UInt32 = 0x7FFF_0000
  // struct sock_filter: code, jump if true, jump if false, k. struct seccomp_data: number at 0, first argument at 16.
  let program: [(UInt16, UInt8, UInt8, UInt32)]
  switch refusal {
  case .netlinkSocket:
    program = [
      (0x20, 0, 0, 0), (0x15, 0, 3, socketCall), (0x20, 0, 0, 16), (0x15, 0, 1, UInt32(AF_NETLINK)),
      (0x06, 0, 0, refuse), (0x06, 0, 0, allow),
    ]
  }
  var bytes: [UInt64] = []
  for (code, onTrue, onFalse, k) in program {
    bytes.append(UInt64(code) | UInt64(onTrue) << 16 | UInt64(onFalse) << 24 | UInt64(k) << 32)
  }
  let count = bytes.count
  // SAFETY: the kernel copies the program, of which the structure tells the length and place, during the call.
  return unsafe bytes.withUnsafeMutableBytes { code -> Int32? in
    var header: [UInt64] = [UInt64(count), UInt64(UInt(bitPattern: code.baseAddress))]
    // PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER, for this thread only.
    guard setProcess(38, 1, nil, 0, 0) == 0 else { return errno }
    return unsafe header.withUnsafeMutableBytes { unsafe setProcess(22, 2, $0.baseAddress, 0, 0) == 0 ? nil : errno }
  }
}

// SAFETY: glibc's prctl(2), which Swift cannot import because it takes a variable number of arguments.
@_silgen_name("prctl") private func setProcess(
  _ option: Int32, _ second: UInt, _ third: UnsafeMutableRawPointer?, _ fourth: UInt, _ fifth: UInt
) -> Int32
