// swift-tools-version: 6.2
import PackageDescription

// A package of its own, built with the fuzzer's and the address sanitizer's instrumentation.
//   swift build -c release --sanitize=fuzzer -Xswiftc -sanitize=address,fuzzer -Xswiftc -enable-testing --product fuzz
// `-enable-testing` lets it use what is not public (`@testable import`), as tests do: nothing is public for the fuzzer's sake.
// `scripts/fuzz` builds it, and runs all its targets; `scripts/hostile-peer` the other program.
let strict: [SwiftSetting] = [
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
]

let package = Package(
  name: "vmfence-fuzz",
  dependencies: [
    .package(name: "vmfence", path: "..", traits: [])
  ],
  targets: [
    // What both programs need.
    .target(
      name: "FuzzSupport", dependencies: [.product(name: "VMFenceCore", package: "vmfence")], swiftSettings: strict),
    .executableTarget(
      name: "fuzz",
      dependencies: [
        "FuzzSupport",
        .product(name: "VMFenceBlock", package: "vmfence"), .product(name: "VMFenceCapture", package: "vmfence"),
        .product(name: "VMFenceChannel", package: "vmfence"), .product(name: "VMFenceControl", package: "vmfence"),
        .product(name: "VMFenceCore", package: "vmfence"), .product(name: "VMFenceDetection", package: "vmfence"),
        .product(name: "VMFenceIntegrity", package: "vmfence"), .product(name: "VMFenceNftables", package: "vmfence"),
        .product(name: "VMFencePackets", package: "vmfence"), .product(name: "VMFenceXen", package: "vmfence"),
      ], swiftSettings: strict),
    .executableTarget(
      name: "hostile-peer",
      dependencies: [
        "FuzzSupport",
        .product(name: "VMFenceChannel", package: "vmfence"), .product(name: "VMFenceCore", package: "vmfence"),
      ], swiftSettings: strict),
  ]
)
