internal import CLinux
internal import Glibc
package import VMFenceCore

/// An open file descriptor with one owner.
package struct OwnedDescriptor: ~Copyable, Sendable {
  package let rawValue: Int32
  package init(adopting rawValue: Int32) { self.rawValue = rawValue }
  deinit { _ = close(rawValue) }

  package consuming func release() -> Int32 {
    let result = rawValue
    discard self
    return result
  }
}

/// Memory files (memfd_create(2)) whose size and, where said, content can no longer be changed by whoever else holds them.
package enum MemoryFile {
  package enum Writers {
    /// The maker's mapping and any other.
    case anyone
    /// The maker's mapping only: whoever is handed the file can map it for reading.
    case maker
  }

  /// A zeroed ring region. The C functions are `memfd_create`, `ftruncate`, `mmap` and `fcntl(F_ADD_SEALS)`.
  package static func makeRegion(byteCount: Int, writers: Writers) throws(DetectorError) -> SharedRegion {
    let file = try make("vmfence-ring", byteCount: byteCount)
    let region = try map(file, byteCount: byteCount, isWritable: true)
    guard vmfence_seal(region.descriptor, writers == .maker ? VMFENCE_SEAL_FUTURE_WRITE : VMFENCE_SEAL_SIZE) == 0 else {
      throw failure("seal a ring", remedy: "Linux 5.4 or later is needed")
    }
    return region
  }

  /// A copy of `image` that nobody can change.
  package static func makeImage(_ image: RuleImage) throws(DetectorError) -> OwnedDescriptor {
    let file = try make("vmfence-rules", byteCount: image.byteCount)
    let descriptor = file.rawValue
    let isWritten = image.withBytes { bytes in
      var offset = 0
      while offset < bytes.byteCount {
        // SAFETY: the rest of the span, for reading.
        let count = unsafe bytes.extracting(offset..<bytes.byteCount).withUnsafeBytes { rest in
          unsafe pwrite(descriptor, rest.baseAddress, rest.count, off_t(offset))
        }
        guard count > 0 else { return false }
        offset += count
      }
      return true
    }
    guard isWritten else { throw failure("write a rule image", remedy: "add memory") }
    guard vmfence_seal(descriptor, VMFENCE_SEAL_WRITE) == 0 else {
      throw failure("seal a rule image", remedy: "Linux 5.4 or later is needed")
    }
    return file
  }

  private static func make(_ name: String, byteCount: Int) throws(DetectorError) -> OwnedDescriptor {
    // SAFETY: a terminated name.
    let descriptor = unsafe vmfence_memfd_create(name)
    guard descriptor >= 0 else { throw failure("make a memory file", remedy: "raise the limit of open files") }
    let file = OwnedDescriptor(adopting: descriptor)
    guard ftruncate(descriptor, off_t(byteCount)) == 0 else {
      throw failure("size a memory file of \(byteCount) bytes", remedy: "use smaller rings or add memory")
    }
    return file
  }

  /// Maps the whole file and keeps it open with the region.
  package static func map(
    _ file: consuming OwnedDescriptor, byteCount: Int, isWritable: Bool
  ) throws(DetectorError) -> SharedRegion {
    let protection = isWritable ? PROT_READ | PROT_WRITE : PROT_READ
    // SAFETY: a fresh mapping that replaces none.
    let result = unsafe mmap(nil, byteCount, protection, MAP_SHARED, file.rawValue, 0)
    guard let base = unsafe result, unsafe base != MAP_FAILED else {
      throw failure("map \(byteCount) bytes", remedy: "use smaller rings or add memory")
    }
    let address = UInt(bitPattern: base)
    let descriptor = file.release()
    // SAFETY: the mapping above has this length; mapping and file are released once, by the region's end.
    return unsafe SharedRegion(adopting: base, byteCount: byteCount, descriptor: descriptor) {
      unsafe _ = munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
      _ = close(descriptor)
    }
  }

  /// Maps a rule image for reading, and closes the file.
  package static func mapImage(_ file: consuming OwnedDescriptor) throws(DetectorError) -> RuleImage {
    guard let byteCount = size(of: file.rawValue), byteCount > 0 else {
      throw failure("find the size of a rule image", remedy: "")
    }
    // Private, but never written: its pages are those of every other reader. (Kernels before 6.7 refuse a shared mapping of
    // a file that is sealed against writing.)
    // SAFETY: a fresh mapping that replaces none.
    let result = unsafe mmap(nil, byteCount, PROT_READ, MAP_PRIVATE, file.rawValue, 0)
    guard let base = unsafe result, unsafe base != MAP_FAILED else {
      throw failure("map a rule image of \(byteCount) bytes", remedy: "raise the detector's memory limit")
    }
    let address = UInt(bitPattern: base)
    // SAFETY: mapped for reading, page-aligned, of a file that is sealed against writing; unmapped once.
    return unsafe RuleImage(adopting: UnsafeRawPointer(base), byteCount: byteCount) {
      unsafe _ = munmap(UnsafeMutableRawPointer(bitPattern: address), byteCount)
    }
  }

  /// The size of an open file in bytes. (Not `fstat`: that looks like a look at any path to a system call filter.)
  package static func size(of descriptor: Int32) -> Int? {
    let size = lseek(descriptor, 0, SEEK_END)
    return size < 0 ? nil : Int(size)
  }

  private static func failure(_ what: String, remedy: String) -> DetectorError {
    DetectorError(.memory, "cannot \(what): \(ErrorText.last())", remedy: remedy)
  }
}

enum ErrorText {
  /// What `errno` says.
  static func last() -> String { text(errno) }

  static func text(_ number: Int32) -> String {
    // SAFETY: `strerror` gives a terminated string, copied at once.
    let words = unsafe String(cString: strerror(number))
    return "\(words) (\(number))"
  }
}
