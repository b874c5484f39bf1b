#if Daemon
import Foundation
import VMFenceCore

/// Tells systemd how the daemon does: sd_notify(3), without its library. Nothing happens when nobody asked (NOTIFY_SOCKET is not set).
struct ServiceManager {
  private let socket: String?
  /// How often the watchdog wants to hear of us: half of what systemd allows; nil when it does not.
  let watchdogInterval: Duration?

  init(environment: [String: String] = ProcessInfo.processInfo.environment) {
    socket = environment["NOTIFY_SOCKET"].flatMap { $0.isEmpty ? nil : $0 }
    let isForUs = environment["WATCHDOG_PID"].map { $0 == String(getpid()) } ?? true
    let microseconds = environment["WATCHDOG_USEC"].flatMap { Int64($0) } ?? 0
    watchdogInterval = isForUs && microseconds > 0 ? .microseconds(microseconds / 2) : nil
  }

  func ready() { send("READY=1\nSTATUS=Running") }
  func stopping() { send("STOPPING=1\nSTATUS=Stopping") }
  func alive() { send("WATCHDOG=1") }

  /// Followed by `ready` when it is done, whatever came of it.
  func reloading() {
    var time = timespec()
    // SAFETY: clock_gettime(2) writes one timespec.
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    send("RELOADING=1\nMONOTONIC_USEC=\(Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1000)")
  }

  private func send(_ text: String) {
    if let socket { LocalSocket.send(Array(text.utf8), toDatagramSocketAt: socket) }
  }
}
#endif
