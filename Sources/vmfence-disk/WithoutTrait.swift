#if !Daemon
import Foundation

/// Built without the package trait `Daemon`, so without the packages that the command line needs: say so.
@main
struct WithoutTrait {
  static func main() {
    let text =
      "vmfence-disk was built without the package trait Daemon.\n"
      + "Build it with: swift build --traits Daemon --product vmfence-disk\n"
    FileHandle.standardError.write(Data(text.utf8))
    exit(69)
  }
}
#endif
