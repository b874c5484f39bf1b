internal import Glibc

/// The C library's words for an error number, by strerror(3).
package func describeError(_ number: CInt) -> String {
  // SAFETY: strerror(3) returns a string that ends in zero; glibc's is safe from any thread.
  guard let text = unsafe strerror(number) else { return "error \(number)" }
  return unsafe String(cString: text)
}
