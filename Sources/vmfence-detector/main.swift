import VMFenceDetection
import VMFenceProcess

// One detector: started by VMFenceProcess with its rings, its rules and nothing else.
HelperProcessEnd.takeNoWords(
  "vmfence-detector",
  "Inspects one guest's packets for vmfence-ref, which starts it with memory that both map, and with rules.")
ProcessDetectorMain.run(SnortInspector.self)
