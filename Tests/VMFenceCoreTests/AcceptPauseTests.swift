import Glibc
import Testing
import VMFenceCore

@Suite("The pause after a connection that could not be taken")
struct AcceptPauseTests {
  @Test(
    "without descriptors or memory nobody is asked for a tenth of a second",
    arguments: [EMFILE, ENFILE, ENOBUFS, ENOMEM])
  func pauses(_ error: Int32) {
    var pause = AcceptPause()
    let now = ContinuousClock.now
    let before = pause.rest(at: now)
    let begins = pause.begins(after: error, at: now)
    #expect(before == nil && begins)
    // Once over, it is over.
    let rests = [0, 99, 100, 0].map { pause.rest(at: now + .milliseconds($0)) }
    #expect(rests == [.milliseconds(100), .milliseconds(1), nil, nil])
  }

  @Test("a client that is gone, or none that is there, begins none", arguments: [EAGAIN, ECONNABORTED, EINTR])
  func goesOn(_ error: Int32) {
    var pause = AcceptPause()
    let begins = pause.begins(after: error)
    let rest = pause.rest()
    #expect(!begins && rest == nil)
  }
}
