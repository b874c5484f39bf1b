import Foundation
import Testing
import VMFenceCore

@testable import VMFenceXen

/// What a host says of its hypervisor, in folders made for the purpose.
@Suite struct XenHostTests {
  private func host(_ files: [String: String]) throws -> String {
    let root = FileManager.default.temporaryDirectory.appending(path: "vmfence-\(UUID().uuidString)")
    for (path, text) in files {
      let file = root.appending(path: path)
      try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
      try text.write(to: file, atomically: true, encoding: .utf8)
    }
    return root.path
  }

  private static let dom0 = [
    "sys/hypervisor/type": "xen\n", "proc/xen/capabilities": "control_d\n", "sys/hypervisor/version/major": "4\n",
    "sys/hypervisor/version/minor": "17\n",
  ]

  @Test func dom0IsFound() throws {
    let root = try host(Self.dom0)
    defer { try? FileManager.default.removeItem(atPath: root) }
    #expect(try XenHost.find(root: root) == XenHost(major: 4, minor: 17))
  }

  @Test(arguments: [
    ("sys/hypervisor/type", "kvm", "there is no Xen"), ("proc/xen/capabilities", "", "a guest of Xen"),
    ("sys/hypervisor/version/minor", "99", "Xen 4.99, whose interface is not known (known: 4.17)"),
    ("sys/hypervisor/version/major", "four", "does not tell its release"),
  ])
  func others(_ file: String, _ text: String, _ message: String) throws {
    let root = try host(Self.dom0.merging([file: text]) { $1 })
    defer { try? FileManager.default.removeItem(atPath: root) }
    do throws(ProbeError) {
      _ = try XenHost.find(root: root)
      Issue.record("it was taken")
    } catch {
      #expect(error.code == .unavailable)
      #expect(error.message.contains(message))
      #expect(!error.remedy.isEmpty)
    }
  }
}
