// swift-tools-version: 6.2
import PackageDescription

// One setting for every Swift target: the language's own checks, all on, none of them `unsafeFlags`
// (a package that has those cannot be imported by version).
let strict: [SwiftSetting] = [
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
]

let package = Package(
  name: "vmfence",
  products: [
    .library(name: "VMFenceCore", targets: ["VMFenceCore"]),
    .library(name: "VMFencePackets", targets: ["VMFencePackets"]),
    .library(name: "VMFenceIntegrity", targets: ["VMFenceIntegrity"]),
    .library(name: "VMFenceDetection", targets: ["VMFenceDetection"]),
    .library(name: "VMFenceCapture", targets: ["VMFenceCapture"]),
    .library(name: "VMFenceBlock", targets: ["VMFenceBlock"]),
    .library(name: "VMFenceNftables", targets: ["VMFenceNftables"]),
    .library(name: "VMFenceChannel", targets: ["VMFenceChannel"]),
    .library(name: "VMFenceGuest", targets: ["VMFenceGuest"]),
    .library(name: "VMFenceXen", targets: ["VMFenceXen"]),
    .library(name: "VMFenceProcess", targets: ["VMFenceProcess"]),
    .library(name: "VMFenceStore", targets: ["VMFenceStore"]),
    .library(name: "VMFenceConfiguration", targets: ["VMFenceConfiguration"]),
    .library(name: "VMFenceNotification", targets: ["VMFenceNotification"]),
    .library(name: "VMFenceControl", targets: ["VMFenceControl"]),
    .library(name: "VMFenceTestKit", targets: ["VMFenceTestKit"]),
    .library(name: "VMFenceConformance", targets: ["VMFenceConformance"]),
    .executable(name: "vmfence-ref", targets: ["vmfence-ref"]),
    .executable(name: "vmfence-detector", targets: ["vmfence-detector"]),
    .executable(name: "vmfence-channel", targets: ["vmfence-channel"]),
    .executable(name: "vmfence-hypervisor", targets: ["vmfence-hypervisor"]),
    .executable(name: "vmfence-firewall", targets: ["vmfence-firewall"]),
    .executable(name: "vmfence-capture", targets: ["vmfence-capture"]),
    .executable(name: "vmfence-disk", targets: ["vmfence-disk"]),
    .executable(name: "vmfence-guest", targets: ["vmfence-guest"]),
  ],
  traits: [
    .trait(name: "Daemon", description: "What vmfence-ref needs from other packages: argument parsing, YAML, logging."),
    .default(enabledTraits: []),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.10.0"),
  ],
  targets: [
    // MARK: Rooms without a C library
    .target(name: "VMFenceCore", swiftSettings: strict),
    .target(name: "VMFencePackets", dependencies: ["VMFenceCore"], swiftSettings: strict),
    .target(name: "VMFenceIntegrity", dependencies: ["VMFenceCore"], swiftSettings: strict),
    .target(
      name: "VMFenceTestKit", dependencies: ["VMFenceCore", "VMFencePackets", "VMFenceIntegrity"],
      swiftSettings: strict),
    .target(
      name: "VMFenceConformance", dependencies: ["VMFenceCore", "VMFenceTestKit"], swiftSettings: strict),

    // MARK: Adapters
    .target(
      name: "VMFenceDetection",
      dependencies: ["VMFenceCore", "VMFencePackets", "CVectorscan", "CPcre2", "CZlib", "CPublicSuffix", "CMaxMindDB"],
      swiftSettings: strict),
    .target(
      name: "VMFenceCapture", dependencies: ["VMFenceCore"], swiftSettings: strict),
    .target(
      name: "VMFenceNftables", dependencies: ["VMFenceCore", "VMFencePackets", "CNftables"],
      swiftSettings: strict),
    .target(name: "VMFenceChannel", dependencies: ["VMFenceCore"], swiftSettings: strict),
    .target(name: "VMFenceGuest", dependencies: ["VMFenceCore"], swiftSettings: strict),
    .target(
      name: "VMFenceBlock", dependencies: ["VMFenceCore", "VMFenceIntegrity", "CLinux"], swiftSettings: strict),
    .target(name: "VMFenceProcess", dependencies: ["VMFenceCore", "CLinux"], swiftSettings: strict),
    .target(name: "VMFenceXen", dependencies: ["VMFenceCore", "CXen"], swiftSettings: strict),
    .target(name: "VMFenceStore", dependencies: ["VMFenceCore", "CSQLite"], swiftSettings: strict),

    .target(
      name: "VMFenceConfiguration",
      dependencies: ["VMFenceCore", .product(name: "Yams", package: "Yams", condition: .when(traits: ["Daemon"]))],
      swiftSettings: strict),

    .target(name: "VMFenceNotification", dependencies: ["VMFenceCore", "CCurl"], swiftSettings: strict),
    .target(name: "VMFenceControl", dependencies: ["VMFenceCore"], swiftSettings: strict),

    // MARK: Programs
    .executableTarget(
      name: "vmfence-detector", dependencies: ["VMFenceCore", "VMFenceDetection", "VMFenceProcess"],
      swiftSettings: strict),
    .executableTarget(
      name: "vmfence-channel", dependencies: ["VMFenceCore", "VMFenceChannel", "VMFenceProcess", "VMFenceXen"],
      swiftSettings: strict),
    .executableTarget(
      name: "vmfence-hypervisor", dependencies: ["VMFenceCore", "VMFenceProcess", "VMFenceXen"],
      swiftSettings: strict),
    .executableTarget(
      name: "vmfence-firewall", dependencies: ["VMFenceCore", "VMFenceProcess", "VMFenceNftables"],
      swiftSettings: strict),
    .executableTarget(
      name: "vmfence-capture", dependencies: ["VMFenceCore", "VMFenceProcess", "VMFenceCapture"],
      swiftSettings: strict),
    .executableTarget(
      name: "vmfence-guest", dependencies: ["VMFenceCore", "VMFenceGuest", "VMFenceChannel"], swiftSettings: strict),
    .executableTarget(
      name: "vmfence-disk",
      dependencies: [
        "VMFenceCore", "VMFenceIntegrity", "VMFenceBlock", "VMFenceDetection", "VMFenceProcess", "VMFenceControl",
        "CLinux",
        .product(
          name: "ArgumentParser", package: "swift-argument-parser", condition: .when(traits: ["Daemon"])),
      ], swiftSettings: strict),
    .executableTarget(
      name: "vmfence-ref",
      dependencies: [
        "VMFenceCore", "VMFencePackets", "VMFenceIntegrity", "VMFenceDetection", "VMFenceCapture", "VMFenceBlock",
        "VMFenceProcess", "VMFenceNftables", "VMFenceXen", "VMFenceChannel", "VMFenceTestKit", "VMFenceConfiguration",
        "VMFenceControl",
        "VMFenceNotification", "VMFenceStore",
        .product(
          name: "ArgumentParser", package: "swift-argument-parser", condition: .when(traits: ["Daemon"])),
        .product(name: "Yams", package: "Yams", condition: .when(traits: ["Daemon"])),
        .product(name: "Logging", package: "swift-log", condition: .when(traits: ["Daemon"])),
      ], swiftSettings: strict),

    // MARK: The benchmark that the tests run: here, where it shares what is built for the programs
    .target(name: "CBaseline", path: "Benchmarks/Sources/CBaseline"),
    .executableTarget(
      name: "inspect",
      dependencies: ["CBaseline", "VMFenceCore", "VMFencePackets", "VMFenceCapture", "VMFenceDetection"],
      path: "Benchmarks/Sources/inspect", swiftSettings: strict),

    // MARK: System libraries and shims
    .systemLibrary(name: "CSQLite", pkgConfig: "sqlite3", providers: [.apt(["libsqlite3-dev"])]),
    .systemLibrary(name: "CPcap", pkgConfig: "libpcap", providers: [.apt(["libpcap-dev"])]),
    .systemLibrary(name: "CVectorscan", pkgConfig: "libhs", providers: [.apt(["libvectorscan-dev"])]),
    .systemLibrary(name: "CPcre2", pkgConfig: "libpcre2-8", providers: [.apt(["libpcre2-dev"])]),
    .systemLibrary(name: "CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"])]),
    .systemLibrary(name: "CPublicSuffix", pkgConfig: "libpsl", providers: [.apt(["libpsl-dev"])]),
    .systemLibrary(name: "CMaxMindDB", pkgConfig: "libmaxminddb", providers: [.apt(["libmaxminddb-dev"])]),
    .target(name: "CLinux"),
    .target(name: "CXen"),
    .target(name: "CCurl"),
    .target(name: "CNftables", linkerSettings: [.linkedLibrary("nftnl"), .linkedLibrary("mnl")]),

    // MARK: Tests
    .target(
      name: "ToyEngine", dependencies: ["VMFenceCore"], path: "Tests/Support/ToyEngine", swiftSettings: strict),
    .target(name: "TestSupport", path: "Tests/Support/TestSupport", swiftSettings: strict),
    .target(
      name: "NetworkTestSupport", dependencies: ["TestSupport"], path: "Tests/Support/NetworkTestSupport",
      swiftSettings: strict),
    .executableTarget(
      name: "test-detector", dependencies: ["ToyEngine", "VMFenceProcess"], path: "Tests/Support/test-detector",
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceCoreTests",
      dependencies: ["VMFenceCore", "VMFenceTestKit", "ToyEngine", "TestSupport", "NetworkTestSupport"],
      swiftSettings: strict),
    .testTarget(
      name: "VMFencePacketsTests", dependencies: ["VMFenceCore", "VMFencePackets", "VMFenceTestKit"],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceIntegrityTests",
      // A real rule engine for what is written to files; nothing in VMFenceIntegrity knows it.
      dependencies: ["VMFenceCore", "VMFenceIntegrity", "VMFenceBlock", "VMFenceDetection", "VMFenceTestKit"],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceDetectionTests",
      dependencies: ["VMFenceCore", "VMFenceDetection", "VMFencePackets", "VMFenceTestKit"],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceCaptureTests",
      // libpcap is the judge of the capture reader; nothing in Sources needs it.
      dependencies: [
        "VMFenceCore", "VMFenceCapture", "VMFenceConformance", "VMFenceTestKit", "CPcap", "TestSupport",
        "NetworkTestSupport", "VMFenceProcess", "vmfence-capture",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceNftablesTests",
      dependencies: [
        "VMFenceCore", "VMFenceNftables", "VMFenceProcess", "VMFenceConformance", "VMFenceTestKit", "TestSupport",
        "NetworkTestSupport", "vmfence-firewall",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceChannelTests",
      // The patterns of a disk's policy judge what guests may declare; nothing in VMFenceChannel knows them.
      dependencies: [
        "VMFenceCore", "VMFenceChannel", "VMFenceIntegrity", "VMFenceProcess", "vmfence-channel", "TestSupport",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceGuestTests",
      dependencies: [
        "VMFenceCore", "VMFenceGuest", "VMFenceChannel", "vmfence-guest", "TestSupport", "NetworkTestSupport",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceBlockTests",
      dependencies: ["VMFenceCore", "VMFenceBlock", "VMFenceIntegrity", "VMFenceConformance", "CLinux", "TestSupport"],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceProcessTests",
      dependencies: [
        "VMFenceCore", "VMFenceProcess", "VMFenceDetection", "VMFenceTestKit", "vmfence-detector", "ToyEngine",
        "test-detector", "TestSupport",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceConfigurationTests",
      dependencies: ["VMFenceCore", "VMFenceConfiguration", "VMFenceConformance", "VMFenceTestKit"],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceNotificationTests", dependencies: ["VMFenceCore", "VMFenceNotification", "TestSupport"],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceControlTests", dependencies: ["VMFenceCore", "VMFenceControl", "TestSupport"], swiftSettings: strict
    ),
    .testTarget(
      name: "VMFenceConformanceTests",
      dependencies: ["VMFenceCore", "VMFenceConformance", "VMFenceTestKit", "VMFenceDetection"], swiftSettings: strict),
    .testTarget(
      name: "VMFenceRefTests",
      dependencies: [
        "VMFenceCore", "vmfence-ref", "vmfence-detector", "vmfence-firewall", "vmfence-capture", "VMFenceProcess",
        "VMFenceControl", "TestSupport", "NetworkTestSupport",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceStoreTests", dependencies: ["VMFenceCore", "VMFenceStore", "VMFenceConformance", "VMFenceTestKit"],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceXenTests",
      dependencies: [
        "VMFenceCore", "VMFenceXen", "VMFenceConformance", "VMFenceTestKit", "VMFenceProcess", "vmfence-hypervisor",
        "TestSupport", "NetworkTestSupport",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "VMFenceDiskTests",
      dependencies: ["VMFenceCore", "vmfence-disk", "VMFenceControl", "vmfence-ref", "TestSupport"],
      swiftSettings: strict),
    .testTarget(name: "HouseTests", dependencies: ["TestSupport"], swiftSettings: strict),
  ]
)
