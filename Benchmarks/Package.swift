// swift-tools-version: 6.2
import PackageDescription

// A package of its own, so that nothing of it reaches whoever imports the library. Build with `-c release`: a debug build
// measures nothing. Only `inspect` belongs to the package that it measures: the tests run it, and would build everything once more.
let strict: [SwiftSetting] = [
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
]

let package = Package(
  name: "vmfence-benchmarks",
  dependencies: [
    .package(name: "vmfence", path: "..", traits: [])
  ],
  targets: [
    .target(name: "CBaseline"),
    .executableTarget(
      name: "decode-dispatch",
      dependencies: [
        "CBaseline",
        .product(name: "VMFenceCore", package: "vmfence"),
        .product(name: "VMFencePackets", package: "vmfence"),
      ], swiftSettings: strict),
    .executableTarget(
      name: "integrity",
      dependencies: [
        "CBaseline",
        .product(name: "VMFenceBlock", package: "vmfence"),
        .product(name: "VMFenceCore", package: "vmfence"),
        .product(name: "VMFenceIntegrity", package: "vmfence"),
      ], swiftSettings: strict),
    // The ring between two processes: `ring` is the supervisor, `ring-detector` what it starts.
    .target(
      name: "RingBenchmark",
      dependencies: [
        .product(name: "VMFenceCore", package: "vmfence"), .product(name: "VMFencePackets", package: "vmfence"),
      ], swiftSettings: strict),
    .executableTarget(
      name: "ring",
      dependencies: [
        "RingBenchmark", "CBaseline",
        .product(name: "VMFenceCore", package: "vmfence"),
        .product(name: "VMFenceProcess", package: "vmfence"),
      ], swiftSettings: strict),
    .executableTarget(
      name: "ring-detector",
      dependencies: ["RingBenchmark", .product(name: "VMFenceProcess", package: "vmfence")], swiftSettings: strict),
    .executableTarget(
      name: "channel",
      dependencies: [
        .product(name: "VMFenceChannel", package: "vmfence"), .product(name: "VMFenceCore", package: "vmfence"),
      ], swiftSettings: strict),
    // A decision log for Benchmarks/evaluation.
    .executableTarget(
      name: "standing-bans", dependencies: [.product(name: "VMFenceCore", package: "vmfence")], swiftSettings: strict),
    .executableTarget(
      name: "firewall",
      dependencies: [
        .product(name: "VMFenceCore", package: "vmfence"), .product(name: "VMFenceNftables", package: "vmfence"),
        .product(name: "VMFenceProcess", package: "vmfence"),
      ], swiftSettings: strict),
  ]
)
