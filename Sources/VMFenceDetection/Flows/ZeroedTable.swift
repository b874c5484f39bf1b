internal import CVectorscan
internal import Glibc

/// A table of fixed size whose entries begin as zeros. Pages that nothing was written to take no memory (calloc(3)), so a
/// large table of an idle detector costs nearly nothing.
@safe
struct ZeroedTable<Element: BitwiseCopyable>: ~Copyable {
  // SAFETY: `base` has room for `count` elements until deinit. Zero bytes have to be a value of `Element`: the types used here
  // consist of numbers.
  private let base: UnsafeMutablePointer<Element>
  let count: Int

  init(count: Int) {
    // SAFETY: calloc(3) checks the product; its memory is aligned for every type with an alignment of up to 16.
    guard let memory = unsafe calloc(count, MemoryLayout<Element>.stride) else {
      fatalError("no memory for a table of \(count) entries")
    }
    unsafe base = memory.bindMemory(to: Element.self, capacity: count)
    self.count = count
  }

  deinit { unsafe free(base) }

  /// Asks the processor to fetch an entry.
  @inline(__always)
  func bringNear(_ index: Int) {
    precondition(index >= 0 && index < count, "an entry that is not there")
    for offset in stride(from: 0, to: MemoryLayout<Element>.stride, by: 64) {
      // SAFETY: inside the table by the check above; nothing is read.
      unsafe vmfence_prefetch(UnsafeRawPointer(base + index) + offset)
    }
  }

  subscript(index: Int) -> Element {
    // In place: entries may be long, and whoever asks for one field must not pay for all.
    @inline(__always) _read {
      precondition(index >= 0 && index < count, "an entry that is not there")
      // SAFETY: inside the table by the check above; nobody writes to it while `self` is borrowed.
      yield unsafe base[index]
    }
    @inline(__always) _modify {
      precondition(index >= 0 && index < count, "an entry that is not there")
      // SAFETY: inside the table by the check above; `self` is held exclusively meanwhile.
      yield unsafe &base[index]
    }
  }
}
