#if Daemon
import Foundation
import TestSupport
import Testing

/// The verbs of a policy over the NBD server with QEMU's client. Skipped, and said so, where the programs of others are missing.
@Suite(.enabled(if: ServedImage.isPossible, "needs e2fsprogs, qemu-utils, libnbd-bin and python3"))
struct VerbTests {
  private static let overwrite = "Input/output error"

  @Test func aRefusedOverwriteIsAnInputOutputErrorAndTheDiskIsIntact() throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    try disk.begin(["--deny", "/boot/**"])
    let output = try disk.io("write -P 0x41 \(place) 4k", "write -P 0x41 60M 4k", "flush")
    #expect(output.contains(Self.overwrite) && output.contains("wrote 4096/4096 bytes at offset 62914560"), "\(output)")
    try disk.end()
    #expect(try disk.verdicts() == ["write /boot/kernel deny"])
    #expect(
      try disk.contents(of: "/boot/kernel").allSatisfy { $0 == UInt8(ascii: "K") })
    #expect(try disk.inconsistencies() == "")
  }

  /// One path that cannot be watched, and which a guest chose, would switch off what the operator wants.
  @Test func whatAGuestDeclaredStandsInNothingsWay() throws {
    let disk = try ServedImage()
    let (kernel, passwd) = (try disk.place(of: "/boot/kernel"), try disk.place(of: "/etc/passwd"))
    let file = "\(disk.folder)/declared"
    let lines = ["/etc/", "!/boot/**", "etc", "/a/../b", "/x\u{FFFE} \"y", "/etc/passwd"].map { Array($0.utf8) }
    try Data((lines + [[0x2F, 0xFF]]).joined(separator: [0x0A])).write(to: URL(filePath: file))
    let (long, wild) = ("\(disk.folder)/long", "\(disk.folder)/wild")
    try "/\(String(repeating: "x", count: 255))".write(toFile: long, atomically: false, encoding: .utf8)
    try "/**\(String(repeating: "/a*/b?", count: 4))".write(toFile: wild, atomically: false, encoding: .utf8)
    for (file, told) in [
      (file, "\(file):1: protected path"), ("\(disk.folder)/none", "\(disk.folder)/none: it cannot be read"),
      (long, "\(long):1: a path of 256 bytes"), (wild, "\(wild):1: more than 8 components with * or ?"),
    ] {
      try disk.begin(["--deny", "/boot/**", "--declared", file])
      #expect(try disk.io("write -P 0x41 \(kernel) 1k", "flush").contains(Self.overwrite))
      #expect(try !disk.io("write -P 0x41 \(passwd) 4", "flush").contains(Self.overwrite))
      try disk.end()
      let text = try String(contentsOfFile: disk.eve, encoding: .utf8).replacingOccurrences(of: "\\/", with: "/")
      #expect(text.contains("integrity-limit") && text.contains(told), "\(text)")
    }
    #expect(
      try disk.verdicts() == ["write /boot/kernel deny", "write /etc/passwd allow"]
        + Array(repeating: "write /boot/kernel deny", count: 3))
  }

  /// A guest can make as many events as it likes: their file stops growing, and goes on when it was cut as `copytruncate` cuts it.
  @Test func aFileOfEventsStopsAtItsLimit() throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    let full = Array(repeating: "{\"x\":\"\(String(repeating: "x", count: 1000))\"}\n", count: 1033).joined()
    try full.write(toFile: disk.eve, atomically: false, encoding: .utf8)
    func told() throws -> [Substring] {
      try String(contentsOfFile: disk.eve, encoding: .utf8).dropFirst(full.count).split(separator: "\n")
    }
    func events(_ lines: [Substring]) -> Int { lines.count { $0.contains("vmfence_file") } }
    // What is written within some milliseconds is one event.
    func flood(_ from: Int) throws {
      _ = try disk.io(commands: (0..<20).flatMap { ["write -P \(from + $0) \(place) 1k", "flush", "sleep 25"] })
    }
    try disk.begin(["--protect", "/boot/**", "--eve-limit", "1"])
    try flood(1)
    // They are written beside: what is told last, too.
    try eventually("the limit is told") { try told().contains { $0.contains("limit of 1 MiB") } }
    let first = try told()
    #expect(events(first) > 3 && first.count { $0.contains("limit of 1 MiB") } == 1, "\(first)")
    try flood(40)
    let second = try told()
    #expect(events(second) == events(first) && second.count { $0.contains("limit of 1 MiB") } == 1, "\(second)")
    #expect(full.utf8.count + second.reduce(0) { $0 + $1.utf8.count } < (1 << 20) + 8192)
    try FileHandle(forUpdating: URL(filePath: disk.eve)).truncate(atOffset: 0)
    try flood(80)
    try disk.end()
    let after = try String(contentsOfFile: disk.eve, encoding: .utf8)
    #expect(try disk.verdicts().count > 3)
    let counted = try #require(after.firstMatch(of: /([0-9]+) file events could not be written/)?.1)
    let lost = try #require(after.firstMatch(of: /"events_lost":([0-9]+)/)?.1)
    #expect(counted == lost && Int(lost) ?? 0 > 20, "\(after)")
  }

  @Test(arguments: ["allow", "deny"]) func aFrozenWriteWaitsUntilSomebodyDecides(verdict: String) throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    try disk.begin(["--freeze", "/boot/**"])
    #expect(try disk.integrity("held", "web", "--control", disk.control).status == 0)
    let (writer, pipe) = try disk.beginIO("write -P 0x41 \(place) 4k", "flush")
    var request = ""
    try eventually("the request is held") {
      let (status, output) = try disk.integrity("held", "web", "--control", disk.control, "--json")
      let held = try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any]
      request = ((held?["held"] as? [String: Any])?["request"] as? Int).map(String.init) ?? ""
      return status == 1
    }
    #expect(writer.isRunning)
    let human = try disk.integrity("held", "web", "--control", disk.control)
    #expect(human.output.contains("/boot/kernel"), "\(human.output)")
    let other = try disk.integrity("decide", "web", "99999", verdict, "--control", disk.control)
    #expect(other.status == 65 && other.output.contains("no such request"), "\(other)")
    let decision = try disk.integrity("decide", "web", request, verdict, "--control", disk.control)
    #expect(decision.status == 0, "\(decision)")
    let output = String(decoding: try pipe.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
    writer.waitUntilExit()
    #expect(output.contains(Self.overwrite) == (verdict == "deny"), "\(output)")
    try disk.end()
    #expect(try disk.verdicts() == ["write /boot/kernel hold", "write /boot/kernel \(verdict)"])
    let expected = verdict == "deny" ? UInt8(ascii: "K") : 0x41
    #expect(
      try disk.contents(of: "/boot/kernel").prefix(4096).allSatisfy { $0 == expected })
    #expect(try disk.inconsistencies() == "")
  }

  @Test func nobodyDecidesForEver() throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    try disk.begin(["--freeze", "/boot/**", "--freeze-limit", "1"])
    #expect(try disk.io("write -P 0x41 \(place) 4k").contains(Self.overwrite))
    try disk.end()
  }

  /// The commit block of a transaction that makes a protected file writable for all, with each kind of checksums.
  @Test(arguments: [
    ("-O ^metadata_csum", ""), ("-O ^metadata_csum", "-c"), ("-O metadata_csum", "-c -v 2"),
    ("-O metadata_csum,64bit", "-c -v 3"),
  ]) func aRefusedTransactionLeavesTheDiskAsItWas(options: String, checksums: String) throws {
    for (verb, mode) in [("--deny-metadata", "0644"), ("--protect", "0666")] {
      let disk = try ServedImage("-t ext4 -b 1024 -J size=4 \(options)")
      let writes = try disk.transaction(checksums: checksums)
      try disk.begin([verb, "/etc/passwd"])
      for (index, write) in writes.enumerated() {
        let isRefused = try disk.io(write, "flush").contains(Self.overwrite)
        #expect(isRefused == (verb == "--deny-metadata" && index == writes.count - 1), "\(index): \(write)")
      }
      try disk.end()
      #expect(try disk.verdicts() == ["chmod /etc/passwd \(verb == "--protect" ? "allow" : "deny")"])
      // What the guest's journal holds is done when it is mounted next.
      #expect(try shell("e2fsck -fp \(disk.image)", allowFailure: true).status <= 1)
      let stat = try shell("debugfs -R 'stat /etc/passwd' \(disk.image)").output
      #expect(stat.contains("Mode:  \(mode)"), "\(stat)")
      #expect(try disk.inconsistencies() == "")
    }
  }

  @Test func whatWasKeptGoesBack() throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    try disk.begin(["--rollback", "/boot/**", "--keep", disk.kept])
    _ = try disk.io("write -P 0x41 \(place) 4k", "write -P 0x42 \(place + 1024) 1k", "flush")
    let running = try disk.integrity(
      "rollback", disk.kept, "--path", "/boot/kernel", "--image", disk.image, "--in-place")
    #expect(running.status == 73 && running.output.contains("another process serves it"), "\(running)")
    try disk.end()
    let list = try disk.integrity("rollback", disk.kept)
    #expect(list.status == 0 && list.output.split(separator: "\n").count == 2, "\(list)")
    #expect(list.output.contains("/boot/kernel  4096 of 262144 bytes, from 0 on"), "\(list.output)")
    let out = "\(disk.folder)/middle"
    #expect(
      try disk.integrity(
        "rollback", disk.kept, "--path", "/boot/kernel", "--image", disk.image, "--before", "2", "--out", out
      ).status == 0)
    #expect(
      try Data(contentsOf: URL(filePath: out)).prefix(4097) == Data(repeating: 0x41, count: 4096) + Data("K".utf8))
    let back = try disk.integrity(
      "rollback", disk.kept, "--path", "/boot/kernel", "--image", disk.image, "--in-place")
    #expect(back.status == 0, "\(back)")
    let contents = try disk.contents(of: "/boot/kernel")
    #expect(
      contents.count == 262_144 && contents.allSatisfy { $0 == UInt8(ascii: "K") })
    #expect(try disk.inconsistencies() == "")
    // A record that was not written whole is cut off, and the next one is read.
    try shell("head -c 20 \(disk.kept) >> \(disk.kept)")
    #expect(try disk.integrity("rollback", disk.kept).status == 65)
    try disk.begin(["--rollback", "/boot/**", "--keep", disk.kept])
    _ = try disk.io("write -P 0x43 \(place) 1k", "flush")
    try disk.end()
    let after = try disk.integrity("rollback", disk.kept)
    #expect(after.status == 0 && after.output.split(separator: "\n").count == 3, "\(after)")
  }

  @Test func announcedChangesAreToldAsSuchUntilTheirTimeIsOver() throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    let store = "\(disk.folder)/state.db"
    func announce(for time: String, _ path: String = "/boot/**") throws -> Int32 {
      try disk.integrity("expect", "web", path, "--for", time, "--control", disk.control, "--store", store).status
    }
    func isAnnounced() throws -> Bool {
      try disk.integrity("held", "web", "--control", disk.control).output.contains("announced for")
    }
    try disk.begin(["--protect", "/boot/**"])
    #expect(try announce(for: "1h", "boot") == 64)
    #expect(try announce(for: "1h") == 0)
    #expect(try isAnnounced())
    _ = try disk.io("write -P 0x41 \(place) 1k", "flush")
    try disk.end()
    // Another process, of which the first one's are none. Its window is short: nothing has to be done within it.
    try disk.begin(["--protect", "/boot/**"])
    #expect(try announce(for: "1s") == 0)
    try eventually("the window is over") { try !isAnnounced() }
    _ = try disk.io("write -P 0x42 \(place) 1k", "flush")
    try disk.end()
    #expect(try disk.events().map(\.isAnnounced) == [true, false])
    #expect(
      try disk.integrity("expect", "web", "/boot/**", "--for", "1h", "--store", store).output.contains(
        "no disk process"))
  }

  /// What is announced outlives the process, killed at any time; of two copies the older one counts when the newer is damaged.
  @Test func announcedWindowsOutliveTheProcess() throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    let state = "\(disk.folder)/windows"
    let arguments = ["--protect", "/**", "--state", state]
    func expect(_ path: String, _ duration: String) throws -> Int32 {
      try disk.integrity(
        "expect", "web", path, "--for", duration, "--control", disk.control, "--store", "\(disk.folder)/state.db"
      ).status
    }
    func held() throws -> String { try disk.integrity("held", "web", "--control", disk.control).output }
    try disk.begin(arguments)
    #expect(try expect("/boot/**", "1h") == 0)
    #expect(try expect("/etc/**", "2h") == 0)
    disk.kill()
    try disk.begin(arguments)
    let kept = try held()
    #expect(kept.contains("/boot/**") && kept.contains("/etc/**"), "\(kept)")
    _ = try disk.io("write -P 0x41 \(place) 1k", "flush")
    try disk.end()
    #expect(try disk.events().map(\.isAnnounced) == [true])
    // The second was written to the first of the two places.
    try shell("printf damaged | dd of=\(state) bs=1 seek=100 conv=notrunc status=none")
    try disk.begin(arguments)
    let older = try held()
    #expect(older.contains("/boot/**") && !older.contains("/etc/**"), "\(older)")
    // What is over is not opened again.
    #expect(try expect("/short/**", "1s") == 0)
    try eventually("the window is over") { try !held().contains("/short") }
    disk.kill()
    try disk.begin(arguments)
    let last = try held()
    #expect(last.contains("/boot/**") && !last.contains("/short"), "\(last)")
    // More than is kept is refused, and changes nothing.
    let program = try programPath("vmfence-ref")
    let long = (0..<20).map { "/etc/\($0)" + String(repeating: "x", count: 2000) }.joined(separator: " ")
    let announce =
      "\(program) integrity expect web \(long) --for 1h --control \(disk.control) --store \(disk.folder)/state.db"
    try shell(announce)
    let refused = try shell(announce, allowFailure: true)
    #expect(refused.status == 65 && refused.output.contains("too many paths"), "\(refused)")
    #expect(try held().contains("/boot/**"))
    try disk.end()
    try shell("rm \(state) && mkdir \(state)")
    let bad = try shell(
      "timeout 60 \(programPath("vmfence-disk")) --disk \(disk.image) --socket \(disk.socket) --state \(state)",
      allowFailure: true)
    #expect(bad.status == 73 && bad.output.contains("the state cannot be kept"), "\(bad)")
  }

  @Test func whatIsWrittenIsComparedWithRules() throws {
    let disk = try ServedImage()
    let place = try disk.place(of: "/boot/kernel")
    let rules = "\(disk.folder)/files.rules"
    try """
    alert tcp any 80 -> any any (msg:"letters"; flow:established,to_client; content:"AAAAAAAA"; sid:7; rev:2;)
    alert tcp any any -> any any (msg:"absent"; content:"not in there"; sid:8;)
    alert tcp any any -> any any (msg:"wrong"; content:; sid:9;)
    """.write(toFile: rules, atomically: true, encoding: .utf8)
    try disk.begin(["--protect", "/boot/**", "--rules", rules])
    _ = try disk.io("write -P 0x41 \(place) 1k", "flush")
    try eventually("the rule's match is told") { try disk.verdicts().contains("match /boot/kernel allow") }
    // What was written just before the end is compared, too.
    // So far from each other that it makes no difference whether they are compared together, or one after the other because of a stall.
    _ = try disk.io("write -P 0x42 \(place + 16_384) 1k", "write -P 0x41 \(place + 32_768) 1k", "flush")
    try disk.end()
    #expect(try disk.verdicts().filter { $0.hasPrefix("match") }.count == 2)
    #expect(try shell("grep -c '1:7:2 letters' \(disk.eve)").output == "2\n")
    #expect(try shell("tail -n 1 \(disk.eve)").output.contains("\"contents_matched\":2"))
    for (text, status) in [("alert tcp any any", Int32(64)), (nil as String?, 66)] {
      try? FileManager.default.removeItem(atPath: rules)
      try text?.write(toFile: rules, atomically: true, encoding: .utf8)
      let program = try programPath("vmfence-disk")
      let end = try shell(
        "timeout 60 \(program) --disk \(disk.image) --socket \(disk.socket) --rules \(rules)", allowFailure: true)
      #expect(end.status == status && end.output.contains("files.rules"), "\(end)")
    }
  }

  @Test func whatIsNoRequestIsAnsweredAndTheDiskGoesOn() throws {
    let disk = try ServedImage()
    try disk.begin(["--protect", "/boot/**"])
    let client = """
      import socket, sys
      s = socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect(sys.argv[1])
      s.sendall(sys.argv[2].encode() + b"\\n"); print(s.recv(262144).decode())
      """
    for text in [
      "", "{}", "{\"verb\":\"expect\"}", "{\"verb\":\"expect\",\"paths\":[\"/a\"],\"duration\":1e300}", "[[[[",
    ] {
      let answer = try shell("python3 -c '\(client)' \(disk.control) '\(text)'").output
      #expect(answer.contains("\"ok\":false"), "\(text): \(answer)")
    }
    #expect(try disk.io("read 0 4k").contains("read 4096/4096"))
    try disk.end()
  }
}

/// Disks that are not what they seem, over the server.
@Suite(.enabled(if: ServedImage.isPossible, "needs e2fsprogs, qemu-utils, libnbd-bin and python3"))
struct BadDiskTests {
  @Test func aDiskWithoutABlockIsServedAndSaidToBeNone() throws {
    let disk = try ServedImage()
    try shell("truncate -s 0 \(disk.image)")
    try disk.begin(["--protect", "/etc/**"])
    #expect(try shell("nbdinfo --size 'nbd+unix:///?socket=\(disk.socket)'").output.hasPrefix("0"))
    try disk.end()
    #expect(try disk.verdicts() == ["damage  allow"])
    let list = try disk.integrity("list", disk.image)
    #expect(list.status == 65 && list.output.contains("file system"), "\(list)")
  }

  @Test func aGuestThatFormatsItsDiskIsFollowedOnTheNewOne() throws {
    let disk = try ServedImage()
    try shell(
      """
      cd \(disk.folder) && mkdir -p new/etc && echo 'new:x:0:0' > new/etc/passwd
      truncate -s 64M new.img && mke2fs -q -F -t ext4 -b 4096 -d new new.img
      """)
    try disk.begin(["--protect", "/etc/**"])
    try shell("nbdcopy --flush \(disk.folder)/new.img 'nbd+unix:///?socket=\(disk.socket)'")
    try eventually("the new file system is read") { try disk.verdicts().contains { $0.contains("/etc/passwd") } }
    let place = try disk.place(of: "/etc/passwd")
    _ = try disk.io("write -P 0x41 \(place) 4", "flush")
    try eventually("what is written to it is told") { try disk.verdicts().last == "write /etc/passwd allow" }
    try disk.end()
    #expect(try disk.verdicts().contains { $0.hasPrefix("damage") })
    #expect(try disk.inconsistencies() == "")
  }
}

/// The unit's file, as systemd reads it.
@Suite struct PackagingTests {
  private static var unit: String {
    let parts = #filePath.split(separator: "/").dropLast(3)
    return "/" + parts.joined(separator: "/") + "/packaging/vmfence-disk@.service"
  }

  @Test(.enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/systemd-analyze"), "needs systemd"))
  func systemdTakesIt() throws {
    let folder = try shell("mktemp -d /tmp/vmfence-unit.XXXXXX").output.trimmingCharacters(in: .whitespacesAndNewlines)
    defer { _ = try? shell("rm -rf \(folder)") }
    // It asks whether the programs are there.
    try shell(
      "sed -e 's#/usr/lib/vmfence/disk-path#/bin/true#' -e 's#/sbin/modprobe#/bin/true#' '\(Self.unit)' > \(folder)/vmfence-disk@web.service"
    )
    let (status, output) = try shell("systemd-analyze verify \(folder)/vmfence-disk@web.service", allowFailure: true)
    #expect(status == 0 && !output.contains("vmfence-disk@"), "\(output)")
  }

  /// The command line of the unit with an environment file as its comment has it: `${RAW}` is one word, `$OPTIONS` is split at
  /// spaces, and no pattern is expanded.
  @Test(.enabled(if: ServedImage.isPossible, "needs e2fsprogs, qemu-utils, libnbd-bin and python3"))
  func itsCommandLineServesADisk() throws {
    let disk = try ServedImage()
    let text = try String(contentsOfFile: Self.unit, encoding: .utf8)
    let lines = text.replacingOccurrences(of: "\\\n", with: " ").split(separator: "\n")
    let line = try #require(lines.first { $0.hasPrefix("ExecStart=") })
    let options =
      "--domain 6f9619ff-8b86-4d01-b42d-00cf4fc964ff --protect /etc/** --policy \(disk.folder)/web.policy "
      + "--eve \(disk.folder)/eve.json"
    try "/boot/** deny-data severity=1\n".write(toFile: "\(disk.folder)/web.policy", atomically: true, encoding: .utf8)
    var words: [String] = []
    for word in line.split(separator: " ").drop(while: { $0 != "--" }).dropFirst() {
      switch word {
      case "${RAW}": words.append(disk.image)
      case "$OPTIONS": words += options.split(separator: " ").map(String.init)
      default:
        words.append(
          word.replacingOccurrences(of: "%i", with: "web")
            .replacingOccurrences(of: "/run/vmfence-disk", with: disk.folder)
            .replacingOccurrences(of: "/var/lib/vmfence-disk", with: disk.folder))
      }
    }
    let process = Process()
    process.executableURL = URL(filePath: try programPath("vmfence-disk"))
    process.arguments = Array(words.dropFirst())
    // Where a pattern would be expanded, if somebody did.
    process.currentDirectoryURL = URL(filePath: "/")
    process.standardInput = FileHandle.nullDevice
    let place = try disk.place(of: "/boot/kernel")
    try process.run()
    defer {
      process.terminate()
      process.waitUntilExit()
    }
    let socket = "\(disk.folder)/web.sock"
    try eventually("the server listens") {
      guard process.isRunning else { throw Failure("it ended: \(process.terminationStatus): \(words)") }
      return try shell("nbdinfo --size 'nbd+unix:///?socket=\(socket)'", allowFailure: true).status == 0
    }
    let output = try shell("qemu-io -f raw nbd:unix:\(socket) -c 'write -P 0x41 \(place) 1k'", allowFailure: true)
      .output
    #expect(output.contains("Input/output error"), "\(output)")
    try eventually("it is told") { try disk.verdicts() == ["write /boot/kernel deny"] }
    #expect(try disk.integrity("held", "web", "--control", "\(disk.folder)/web.control").status == 0)
    // It has given up what it does not need.
    let status = try String(contentsOfFile: "/proc/\(process.processIdentifier)/status", encoding: .utf8)
    #expect(
      status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2")
        && status.contains("CapEff:\t0000000000000000"))
  }
}
#endif
