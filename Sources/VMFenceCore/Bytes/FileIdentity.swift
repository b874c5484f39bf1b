internal import Glibc

/// Whether two names are of one file, so that what is written under the one would destroy what is read under the other.
package enum FileIdentity {
  /// Of regular files and block devices, links followed; of what is not there yet, whether it is spelt alike. Other devices, pipes and sockets are none that one could destroy.
  ///
  /// The corresponding C function is `stat(2)`.
  package static func isSame(_ one: String, _ other: String) -> Bool {
    var (first, second) = (stat(), stat())
    // SAFETY: stat(2) reads the paths up to their NUL and writes one structure each.
    guard unsafe stat(one, &first) == 0, unsafe stat(other, &second) == 0 else { return one == other }
    let kind = first.st_mode & S_IFMT
    guard kind == second.st_mode & S_IFMT, kind == S_IFREG || kind == S_IFBLK else { return false }
    if kind == S_IFBLK, first.st_rdev == second.st_rdev { return true }
    return first.st_dev == second.st_dev && first.st_ino == second.st_ino
  }
}
