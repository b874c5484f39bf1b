#if Daemon
import Foundation
import Testing

/// Files on the command line that are of another kind, or of two uses.
@Suite("Wrong files on the command line")
struct WrongFileTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
    _ = try folder.write("a.rules", "alert tcp any any -> any any (msg:\"m\"; content:\"x\"; sid:1;)\n")
    _ = try folder.write("plain", "")
  }

  @Test("what is read is not written over")
  func outputs() throws {
    let capture = Program.quickstart.appending(path: "captures/vif1.0.pcapng")
    try FileManager.default.copyItem(at: capture, to: URL(filePath: folder.path("a.pcapng")))
    try FileManager.default.createSymbolicLink(atPath: folder.path("link"), withDestinationPath: "a.pcapng")
    _ = try folder.copyExamples()
    let quickstart = folder.path("Examples/quickstart/scenario.yaml")
    let inspect = ["inspect", "--capture", folder.path("a.pcapng"), "--rules", folder.path("a.rules")]
    let replay = [
      "integrity", "replay", "--image", folder.path("plain"), "--trace", folder.path("t"), "--protect", "/a",
    ]
    for (words, option) in [
      (inspect + ["--eve", folder.path("link")], "--eve"),
      (inspect + ["--inline", "--write", folder.path("a.rules")], "--write"),
      (inspect + ["--save-state", folder.path("a.pcapng")], "--save-state"),
      (inspect + ["--eve", folder.path("new"), "--profile-json", folder.path("new")], "--profile-json"),
      (["replay", quickstart, "--eve", quickstart], "--eve"),
      (["replay", quickstart, "--eve", folder.path("Examples/quickstart/captures/vif1.0.pcapng")], "--eve"),
      (replay + ["--eve", folder.path("plain")], "--eve"),
      (replay + ["--eve", "-", "--list", folder.path("t")], "--list"),
    ] {
      let result = try Program.run(words)
      #expect(result.status == 64 && result.errors.contains("\(option): '"), "\(words): \(result)")
      #expect(result.errors.contains("name another file"), "\(result)")
    }
    #expect(
      try Data(contentsOf: capture) == Data(contentsOf: URL(filePath: folder.path("a.pcapng"))), "it was not emptied")
    // What is no file cannot be lost.
    #expect(try Program.run(inspect + ["--eve", "/dev/null", "--profile-json", "/dev/null"]).status == 0)
  }

  @Test("a file that is none of its kind is named")
  func kinds() throws {
    let state = try Program.run(
      "inspect", "--capture", Program.quickstart.appending(path: "captures/vif1.0.pcapng").path, "--rules",
      folder.path("a.rules"), "--load-state", folder.path("a.rules"))
    #expect(
      state.status == 65 && state.errors.contains("\(folder.path("a.rules")): error: this is no saved state"),
      "\(state)")
    let image = try Program.run("integrity", "list", folder.path("a.rules"))
    #expect(image.status == 65 && image.errors.contains("\(folder.path("a.rules")): error: the disk has"), "\(image)")
    for (option, value, says) in [
      ("--protect", "etc", "does not begin with a slash"),
      ("--attributes", "q\u{1B}[m", "`q\\u{1b}[m` is no attribute of a file"),
    ] {
      let words = ["integrity", "replay", "--image", "x", "--trace", "x.jsonl", "--eve", "-", "--protect", "/a"]
      let result = try Program.run(words + [option, value])
      #expect(result.status == 64 && result.errors.contains(says), "\(result)")
    }
  }
}
#endif
