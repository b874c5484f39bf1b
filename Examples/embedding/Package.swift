// swift-tools-version: 6.2
import PackageDescription

// A program of yours says where VMFence comes from and which version it wants:
//
//   .package(url: "https://…/vmfence.git", exact: "0.1.0")
//
// and nothing else: no trait, so no other package is fetched and no C library is needed. Here the address and the version come
// from the environment (scripts/check-embedding sets them, and so builds this package as yours would be built); without
// them the project that this example lies in is used.
let vmfence: Package.Dependency =
  if let url = Context.environment["VMFENCE_URL"], let version = Version(Context.environment["VMFENCE_VERSION"] ?? "") {
    .package(url: url, exact: version)
  } else {
    .package(name: "vmfence", path: "../..")
  }

let package = Package(
  name: "embedding",
  dependencies: [vmfence],
  targets: [
    .target(name: "Adapters", dependencies: [.product(name: "VMFenceCore", package: "vmfence")]),
    .executableTarget(
      name: "embedding",
      dependencies: [
        "Adapters",
        .product(name: "VMFenceCore", package: "vmfence"),
        .product(name: "VMFenceTestKit", package: "vmfence"),
      ]),
    .testTarget(
      name: "AdaptersTests",
      dependencies: ["Adapters", .product(name: "VMFenceConformance", package: "vmfence")]),
  ]
)
