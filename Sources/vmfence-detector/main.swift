import VMFenceDetection
import VMFenceProcess

// One detector: started by VMFenceProcess with its rings, its rules and nothing else.
ProcessDetectorMain.run(SnortInspector.self)
