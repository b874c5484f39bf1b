import Foundation
import NetworkTestSupport
import Testing

/// How an entry of a guest's is written, by the shim itself: over a double of libxenstore that says what it is asked for.
@Suite("An entry for a guest")
struct XenStoreTransactionTests {
  /// `THERE` names the entries that are there, each with a space behind it; so many of the first transactions as `CROSSED` says are crossed by others.
  private static let library = """
    #include <errno.h>
    #include <stdbool.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    struct permission { unsigned int domid, permission; };
    static uint32_t transactions;
    void *xs_open(unsigned long flags) { return &transactions; }
    void xs_close(void *store) {}
    int xs_fileno(void *store) { return -1; }
    void *xs_read(void *store, uint32_t t, const char *path, unsigned int *length) {
      char *found = strstr(getenv("THERE"), path);
      if (found && found[strlen(path)] == ' ') return strdup("x");
      errno = ENOENT;
      return NULL;
    }
    char **xs_directory(void *store, uint32_t t, const char *path, unsigned int *number) { return NULL; }
    bool xs_write(void *store, uint32_t t, const char *path, const void *bytes, unsigned int count) {
      printf("%u: write %s %.*s\\n", t, path, (int)count, (const char *)bytes);
      return true;
    }
    bool xs_set_permissions(void *store, uint32_t t, const char *path, struct permission *p, unsigned int count) {
      for (unsigned int i = 0; i < count; i++) printf("%u: permit %u %u\\n", t, p[i].domid, p[i].permission);
      return true;
    }
    uint32_t xs_transaction_start(void *store) { return ++transactions; }
    bool xs_transaction_end(void *store, uint32_t t, bool isAbandoned) {
      bool isCrossed = !isAbandoned && (int)t <= atoi(getenv("CROSSED"));
      printf("%u: %s\\n", t, isAbandoned ? "abandoned" : isCrossed ? "crossed" : "done");
      errno = isCrossed ? EAGAIN : errno;
      return !isCrossed;
    }
    bool xs_watch(void *store, const char *path, const char *token) { return false; }
    char **xs_check_watch(void *store) { return NULL; }

    """

  private static let program = """
    #include "CXen.h"
    #include <errno.h>
    #include <stdio.h>
    int main(void) {
      int error = 0;
      struct vmfence_xenstore *store = vmfence_xenstore_open(&error);
      if (store == NULL) return 1;
      int result = vmfence_xenstore_tell(store, "/d/7/name", "/d/7/ring", "12", 2, 7);
      printf("%s\\n", result == 0 ? "told" : result == -ENOENT ? "not there" : result == -EAGAIN ? "again" : "failed");
      vmfence_xenstore_close(store);
      return 0;
    }

    """

  @Test("is written only beside the guest's name, in one transaction, and is the guest's to read when it is new")
  func tells() throws {
    let folder = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    try Self.library.write(to: folder.appending(path: "library.c"), atomically: true, encoding: .utf8)
    try Self.program.write(to: folder.appending(path: "program.c"), atomically: true, encoding: .utf8)
    let sources = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../Sources/CXen").path
    try NetworkNamespace.shell(
      """
      cd '\(folder.path)'
      compiler=$(command -v cc || command -v clang)
      $compiler -shared -fPIC -o libxenstore.so.4 library.c
      $compiler -I '\(sources)/include' -o program program.c '\(sources)/Store.c' -ldl
      """)
    func told(_ there: String, crossed: Int = 0) throws -> String {
      try NetworkNamespace.shell(
        "cd '\(folder.path)'; THERE='\(there)' CROSSED=\(crossed) LD_LIBRARY_PATH=. ./program")
    }
    let (written, permitted) = ("write /d/7/ring 12\n", ["permit 0 0\n", "permit 7 1\n"])
    #expect(
      try told("/d/7/name ")
        == "1: \(written)1: \(permitted[0])1: \(permitted[1])1: done\ntold\n")
    #expect(try told("/d/7/name /d/7/ring ") == "1: \(written)1: done\ntold\n", "it is whose it was")
    #expect(try told("/d/7/ring ") == "1: abandoned\nnot there\n")
    #expect(try told("/d/7/name /d/7/ring ", crossed: 1) == "1: \(written)1: crossed\n2: \(written)2: done\ntold\n")
    let given = try told("/d/7/name /d/7/ring ", crossed: 100)
    #expect(given.hasSuffix("crossed\nagain\n") && given.components(separatedBy: "crossed").count == 9)
  }
}
