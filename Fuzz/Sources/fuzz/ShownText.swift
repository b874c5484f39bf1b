@testable import VMFenceCore

/// Text that is shown to people has nothing that acts on a terminal.
func checkShown(_ text: String) {
  precondition(!text.unicodeScalars.contains { $0.actsOnDisplay }, "text that is not escaped")
}
