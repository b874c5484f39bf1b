import Glibc
import ToyEngine
import VMFenceCore
import VMFenceProcess

// A detector; or, with the argument `supervise`, a supervisor of three detectors (idle, hanging and suspended) that prints
// their process numbers and waits to be killed.
if CommandLine.arguments.dropFirst().first != "supervise" { ProcessDetectorMain.run(ToyInspector.self) }

let backend = try ProcessDetectorBackend<ToyRules>(
  executable: ProcessDetectorBackend<ToyRules>.besideThisProgram("test-detector"))
var kept: [(DetectorChannel, any DetectorHandle<ToyRules>)] = []
for action in ["idle", "hang", "suspend"] {
  let channel = try backend.makeChannel(DetectorChannelConfiguration())
  let handle = try backend.launch(
    rules: ToyRules([(.hang, 2)]), channel: channel, configuration: InspectorConfiguration())
  _ = channel.send([1])
  _ = try channel.collectAll()
  if action == "hang" { _ = channel.send([2]) }
  channel.publish()
  if action == "suspend" { try handle.suspend() }
  kept.append((channel, handle))
}
let numbers = kept.compactMap { ($0.1 as? ProcessDetector<ToyRules>).map { String($0.processID) } }
print(numbers.joined(separator: " "))
fflush(nil)
while true { pause() }
