#if Daemon
import Foundation
import Testing

/// The verbs of `integrity` about baselines, on an image that mke2fs and debugfs make.
@Suite struct BaselineCommandTests {
  private func shell(_ command: String) throws {
    let process = Process()
    process.executableURL = URL(filePath: "/bin/sh")
    process.arguments = ["-c", "PATH=/usr/sbin:/sbin:$PATH; { \(command); } >/dev/null 2>&1"]
    try process.run()
    process.waitUntilExit()
    try #require(process.terminationStatus == 0, "\(command)")
  }

  @Test func aBaselineIsTakenCheckedUpdatedAndGuarded() throws {
    let folder = try TemporaryFolder()
    let (image, store, key) = (folder.path("disk.img"), folder.path("state.db"), folder.path("key"))
    let seed = folder.path("seed")
    try shell("mkdir -p \(seed)/etc && echo a > \(seed)/etc/passwd && echo b > \(seed)/etc/b && echo c > \(seed)/c")
    try shell("truncate -s 16M \(image) && mke2fs -q -F -t ext4 -d \(seed) \(image)")
    let options = ["--store", store, "--key", key, "--log", folder.path("log"), "--id", "web"]
    func integrity(_ verb: String, _ more: String...) throws -> Program.Result {
      try Program.run(["integrity", verb, image] + options + more)
    }
    #expect(try integrity("check").status == 66, "there is no key yet")
    #expect(try integrity("init", "--protect", "/etc/**").output.contains("baseline 1 of web: 2 names"))
    #expect(try integrity("init", "--protect", "/etc/**").status != 0, "it is not replaced by accident")
    #expect(try integrity("check").status == 0)

    try shell("debugfs -w -R 'rm /etc/b' \(image); echo 'sif /etc/passwd mode 0100666' | debugfs -w -f - \(image)")
    let check = try integrity("check", "--json")
    #expect(check.status == 1)
    let lines = try check.output.split(separator: "\n").map {
      try #require(try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any])
    }
    #expect(lines.compactMap { $0["path"] as? String } == ["/etc/b", "/etc/passwd"])
    #expect(lines.compactMap { $0["kind"] as? String } == ["removed", "changed"])
    #expect(lines.last?["unexpected"] as? Int == 2 && lines.last?["generation"] as? Int == 1)

    let expect = try Program.run("integrity", "expect", "web", "/etc/**", "--for", "1h", "--store", store)
    #expect(expect.status == 0, "\(expect.errors)")
    let announced = try integrity("check")
    #expect(announced.status == 0 && announced.output.contains("0 of them not announced"), "\(announced.output)")
    try FileManager.default.copyItem(atPath: store, toPath: folder.path("old.db"))
    #expect(try integrity("update").status == 0)
    #expect(try integrity("check").output.contains("nothing differs"))

    try shell("rm -f \(store)*; cp \(folder.path("old.db")) \(store)")
    let old = try integrity("check")
    #expect(old.status == 65 && old.errors.contains("an old one was put back"), "\(old.errors)")
    // The count beside the key was put back, too: the decision log knows.
    try shell("printf '' > \(key).generations")
    let third = try integrity("check")
    #expect(third.status == 65 && third.errors.contains("number 2 was signed"), "\(third.errors)")
    try shell("chmod 644 \(key)")
    #expect(try integrity("test").status == 77)
  }

  @Test(.enabled(if: geteuid() == 0, "needs root for a small file system"))
  func aFullDiskLeavesTheBaselineBefore() throws {
    let folder = try TemporaryFolder()
    let (image, small) = (folder.path("disk.img"), folder.path("small"))
    let seed = folder.path("seed")
    try shell("mkdir -p \(small) \(seed)/etc \(seed)/many && echo a > \(seed)/etc/passwd")
    try shell("cd \(seed)/many && for i in $(seq 3000); do : > a-name-that-takes-some-room-in-a-baseline-$i; done")
    try shell("truncate -s 16M \(image) && mke2fs -q -F -t ext4 -N 8192 -d \(seed) \(image)")
    try shell("mount -t tmpfs -o size=256k vmfence-test \(small)")
    defer { try? shell("umount \(small)") }
    let options = [
      "--store", small + "/state.db", "--key", folder.path("key"), "--log", folder.path("log"), "--id", "web",
    ]
    let first = try Program.run(["integrity", "init", image, "--protect", "/etc/**"] + options)
    #expect(first.status == 0, "\(first.errors)")
    let full = try Program.run(["integrity", "update", image, "--protect", "/**"] + options)
    #expect(full.status == 73 && full.errors.contains("error:"), "\(full.errors)")
    let check = try Program.run(["integrity", "check", image] + options)
    #expect(check.status == 0 && check.output.contains("nothing differs"), "\(check.output)\(check.errors)")
  }
}
#endif
