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
    let options = ["--store", store, "--key", key, "--id", "web"]
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
    try shell("chmod 644 \(key)")
    #expect(try integrity("test").status == 77)
  }
}
#endif
