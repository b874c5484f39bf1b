import Testing
import VMFenceCore

@Suite("Mistyped options")
struct KnownOptionsTests {
  private static let options = KnownOptions(
    help: """
      OVERVIEW: Serve a disk, with
      --other, as
        --another has it.

      OPTIONS:
        --disk <disk>           The raw image, never --device
        --domid <domid>         A number. (default: 0)
        --fast/--slow           How.
        --version               Show the version.
        -h, --help              Show help information.
      """)

  @Test(
    "the first that is none is named, with a guess where one is near",
    arguments: [
      (["--hepl"], "Unknown option '--hepl'. Did you mean '--help'?"),
      (["--disk", "a", "--dsik=b", "--x"], "Unknown option '--dsik'. Did you mean '--disk'?"),
      (["-disk", "a"], "Unknown option '-disk'. Did you mean '--disk'?"),
      (["a", "--far-from-all"], "Unknown option '--far-from-all'"),
      (["--another"], "Unknown option '--another'"),
      (["--device"], "Unknown option '--device'"),
      (["--\u{1B}[2J"], "Unknown option '--\\u{1b}[2J'"),
      (["-é"], "Unknown option '-é'"),
    ])
  func mistakes(words: [String], message: String) {
    #expect(Self.options.mistake(in: words) == message)
  }

  @Test(
    "what is an option, a value, a number below zero, or stands behind `--`, is no mistake",
    arguments: [
      [], ["-"], ["-h", "--slow", "--fast"], ["--domid", "-1"], ["--disk=--x"], ["a", "--", "--hepl"], ["--version"],
    ])
  func right(words: [String]) {
    #expect(Self.options.mistake(in: words) == nil)
  }

  @Test("a help text without options accuses nobody, and the options of two commands are known together")
  func others() {
    #expect(KnownOptions(help: "Nothing is known.").mistake(in: ["--hepl"]) == nil)
    let both = Self.options.union(KnownOptions(help: "OPTIONS:\n  --json   As JSON.\n\nSUBCOMMANDS:\n  --list  Lists."))
    #expect(both.mistake(in: ["--json", "--disk"]) == nil && both.mistake(in: ["--jsno"]) != nil)
    #expect(both.mistake(in: ["--list"]) != nil)
  }
}
