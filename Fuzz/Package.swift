// swift-tools-version: 6.2
import PackageDescription

// A package of its own: its targets are built with the fuzzer's and the address sanitizer's instrumentation.
//   swift build -c release --sanitize=fuzzer -Xswiftc -sanitize=address,fuzzer -Xswiftc -enable-testing --product fuzz-decode
// `-enable-testing` lets a target use what is not public (`@testable import`), as tests do: nothing is public for the fuzzer's sake.
// `scripts/fuzz` builds and runs them all.
let strict: [SwiftSetting] = [
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
]

func target(_ name: String, _ libraries: String...) -> Target {
  .executableTarget(
    name: name, dependencies: ["FuzzSupport"] + libraries.map { .product(name: $0, package: "vmfence") },
    swiftSettings: strict)
}

let package = Package(
  name: "vmfence-fuzz",
  dependencies: [
    .package(name: "vmfence", path: "..", traits: [])
  ],
  targets: [
    .target(
      name: "FuzzSupport", dependencies: [.product(name: "VMFenceCore", package: "vmfence")], swiftSettings: strict),
    target("fuzz-decode", "VMFenceCore", "VMFencePackets"),
    target("fuzz-capture", "VMFenceCore", "VMFenceCapture"),
    target("fuzz-channel", "VMFenceCore", "VMFenceChannel"),
    target("hostile-peer", "VMFenceCore", "VMFenceChannel"),
    target("fuzz-ext2", "VMFenceCore", "VMFenceIntegrity"),
    target("fuzz-journal", "VMFenceCore", "VMFenceIntegrity"),
    target("fuzz-nbd", "VMFenceCore", "VMFenceBlock"),
    target("fuzz-partitions", "VMFenceCore", "VMFenceIntegrity"),
    target("fuzz-inspect", "VMFenceCore", "VMFenceDetection"),
    target("fuzz-defrag", "VMFenceCore", "VMFenceDetection"),
    target("fuzz-stream", "VMFenceCore", "VMFenceDetection"),
    target("fuzz-state", "VMFenceCore", "VMFenceDetection"),
    target("fuzz-rules", "VMFenceCore", "VMFenceDetection"),
    target("fuzz-ring", "VMFenceCore"),
    target("fuzz-decisions", "VMFenceCore"),
    target("fuzz-control", "VMFenceCore", "VMFenceControl"),
    target("fuzz-xenstore", "VMFenceCore", "VMFenceXen"),
    target("fuzz-records", "VMFenceCore", "VMFenceXen", "VMFenceNftables", "VMFenceCapture", "VMFenceChannel"),
  ]
)
