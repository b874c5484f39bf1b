import Foundation
import NetworkTestSupport
import Synchronization
import TestSupport
import Testing
import VMFenceCore

@testable import VMFenceProcess
@testable import VMFenceXen

/// `vmfence-hypervisor` itself, over a double of libxenctrl that lies beside a copy of it (Benchmarks/xen-double.c): three domains in a file.
private final class DoubleHost {
  static let size = 112
  private let folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)")
  private(set) var remote: XenRemote?
  private let running = Running()
  var processIDs: [Int32] { running.processes.withLock { $0 } }

  private final class Running: Sendable {
    let processes = Mutex<[Int32]>([])
  }

  /// - `release`: what the hypervisor itself says of its release; the library's when not given.
  init(_ patience: XenRemote.Patience = .long, release: String? = nil) throws {
    let library = folder.appending(path: "lib")
    try FileManager.default.createDirectory(at: library, withIntermediateDirectories: true)
    var domains = Data()
    for number in 1...3 as ClosedRange<UInt8> {
      var domain = Data(count: Self.size)
      (domain[0], domain[4], domain[76 + 15]) = (number, 1 << 5, number)
      domain[76 + 7] = 9
      domains += domain
    }
    try (domains + Data(count: 3 * 4)).write(to: folder.appending(path: "domains"))
    if let release { try Data(release.utf8).write(to: folder.appending(path: "release")) }
    let program = library.appending(path: "vmfence-hypervisor").path
    // By another process: one that this process starts meanwhile, for another test, would have the copy open for writing until it runs, and such a file cannot be run.
    try NetworkNamespace.shell("cp '\(besideThisProgram("vmfence-hypervisor"))' '\(program)'")
    let source = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../Benchmarks/xen-double.c")
    try NetworkNamespace.shell(
      "$(command -v cc || command -v clang) -O1 -shared -fPIC -o '\(library.path)/libxenctrl.so.4.17' '\(source.path)' -ldl"
    )
    let running = running
    remote = try XenRemote(on: XenHost(major: 4, minor: 17), patience: patience) { () throws(DetectorError) in
      let process = try HelperProcess(executable: program)
      running.processes.withLock { $0.append(process.processID) }
      return process
    }
  }

  func close() { remote = nil }
  deinit { try? FileManager.default.removeItem(at: folder) }

  /// What is written of the domain with this number.
  func flags(_ number: Int) throws -> UInt8 {
    try Data(contentsOf: folder.appending(path: "domains"))[(number - 1) * Self.size + 4]
  }
}

extension XenRemote.Patience {
  /// For tests that mean no process that is late: on a busy machine any may be.
  fileprivate static var long: XenRemote.Patience {
    var patience = XenRemote.Patience()
    (patience.open, patience.look, patience.late, patience.act) = (waitLimit, waitLimit, waitLimit, waitLimit)
    return patience
  }
}

@Suite("vmfence-hypervisor", .serialized)
struct HypervisorProcessTests {
  private func status(_ process: Int32) throws -> String {
    try String(contentsOfFile: "/proc/\(process)/status", encoding: .utf8)
  }

  @Test("it lists domains, and acts on the one that has number and UUID")
  func acts() throws {
    let host = try DoubleHost()
    let remote = try #require(host.remote)
    #expect(try remote.domains() == [XenDomain(.test(1)), XenDomain(.test(2)), XenDomain(.test(3))])
    try remote.pause(.test(2))
    #expect(try host.flags(2) == 1 << 5 | 1 << 3 && remote.domain(DomainID(2))?.runState == .paused)
    try remote.unpause(.test(2))
    #expect(try host.flags(2) == 1 << 5)
    #expect(throws: SystemFailure.self) { try remote.pause(.test(2, uuid: 3)) }
    #expect(throws: SystemFailure.self) { try remote.pause(Incarnation(uuid: .init(high: 0, low: 0), domainID: .dom0)) }
    #expect(try host.flags(2) == 1 << 5)
  }

  @Test("it can do nothing else: no file, no socket, no other device's call, no signal, no memory that is executed")
  func isSandboxed() throws {
    let host = try DoubleHost()
    let remote = try #require(host.remote)
    do throws(SystemFailure) {
      try remote.powerOff(.test(1))
      Issue.record("something of it succeeded")
    } catch { #expect(error.number == EPERM) }
    #expect(try remote.domains().count == 3, "and it goes on")
    let process = try #require(host.processIDs.first)
    let status = try status(process)
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1"] { #expect(status.contains(line), "\(status)") }
    let limits = try String(contentsOfFile: "/proc/\(process)/limits", encoding: .utf8).split(separator: " ")
      .joined(separator: " ")
    #expect(limits.contains("core file size 0 0 ") && limits.contains("open files 16 16 "), "\(limits)")
  }

  @Test(
    "it is nobody, with no capability and no file but its socket",
    .enabled(if: getuid() == 0, "needs root, to give it up"))
  func holdsNothing() throws {
    let host = try DoubleHost()
    let process = try #require(host.processIDs.first)
    let status = try status(process)
    for line in [
      "Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534", "CapEff:\t0000000000000000",
      "CapPrm:\t0000000000000000",
    ] {
      #expect(status.contains(line), "\(status)")
    }
    let files = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/fd")
    #expect(Set(files) == ["0", "1", "2", "3"], "\(files)")
    for file in ["0", "1", "2"] {
      #expect(try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(process)/fd/\(file)") == "/dev/null")
    }
  }

  @Test("one that is killed is told of, and started again")
  func killed() throws {
    var patience = XenRemote.Patience.long
    patience.restart = .milliseconds(50)
    let host = try DoubleHost(patience)
    let remote = try #require(host.remote)
    kill(try #require(host.processIDs.first), SIGKILL)
    var said: [String] = []
    let isBack = comesTrue {
      do throws(SystemFailure) { return try remote.domains().count == 3 && host.processIDs.count == 2 } catch {
        said.append(error.description)
        return false
      }
    }
    #expect(isBack, "it is not started again")
    #expect(said.contains { $0.contains("vmfence-hypervisor is gone") }, "\(said)")
  }

  /// Whether it is gone, or will be in a moment: it is reaped beside everything else when its end takes long.
  private func goes(_ process: Int32) -> Bool { comesTrue { kill(process, 0) == -1 } }

  @Test("one that is stopped keeps nobody waiting: looks fail, and it is ended when it is late")
  func stopped() throws {
    var patience = XenRemote.Patience.long
    (patience.look, patience.late, patience.restart) = (.milliseconds(20), .milliseconds(200), .milliseconds(50))
    let host = try DoubleHost(patience)
    let remote = try #require(host.remote)
    let process = try #require(host.processIDs.first)
    kill(process, SIGSTOP)
    #expect(throws: SystemFailure.self) { try remote.domains() }
    // On a busy machine the next may be late, too, and have a successor.
    #expect(comesTrue { (try? remote.domains().count) == 3 && host.processIDs.count > 1 }, "no other is started")
    #expect(goes(process), "the stopped one is gone")
  }

  @Test("one that was stopped and goes on in time is not ended")
  func goesOn() throws {
    var patience = XenRemote.Patience.long
    patience.look = .milliseconds(20)
    let host = try DoubleHost(patience)
    let remote = try #require(host.remote)
    let process = try #require(host.processIDs.first)
    kill(process, SIGSTOP)
    #expect(throws: SystemFailure.self) { try remote.domains() }
    kill(process, SIGCONT)
    #expect(comesTrue { (try? remote.domains().count) == 3 }, "it does not go on")
    #expect(host.processIDs.count == 1)
  }

  @Test("it ends with its owner")
  func owner() throws {
    let host = try DoubleHost()
    let process = try #require(host.processIDs.first)
    host.close()
    #expect(goes(process))
  }

  @Test("a hypervisor of another release than its library is refused, though the host says otherwise")
  func otherRelease() throws {
    do throws(any Error) {
      _ = try DoubleHost(release: "4.18")
      Issue.record("its lists would be read in the layout of another release")
    } catch {
      let error = try #require(error as? ProbeError)
      #expect(error.code == .unavailable && error.message.contains("Xen 4.18"), "\(error)")
      #expect(error.message.contains("known: 4.17"), "\(error)")
    }
  }

  @Test("that there is no hypervisor, or no library for it, is told as without the process")
  func noLibrary() throws {
    do throws(ProbeError) {
      // Beside this program lies none.
      _ = try XenRemote(on: XenHost(major: 4, minor: 17), patience: .long) { () throws(DetectorError) in
        try HelperProcess("vmfence-hypervisor")
      }
      Issue.record("this host has Xen, and the test means one without")
    } catch { #expect(error.code == .unavailable && !error.remedy.contains("same build"), "\(error)") }
  }

  @Test("by hand it says what it is for")
  func byHand() throws {
    let program = try besideThisProgram("vmfence-hypervisor")
    #expect(try NetworkNamespace.shell("'\(program)' --help 3<&-").contains("vmfence-ref"))
    #expect(try NetworkNamespace.shell("'\(program)' 3<&- || echo $?").contains("64"))
    #expect(try NetworkNamespace.shell("'\(program)' --domain 3 3<&- || echo $?").contains("64"))
  }
}
