import ToyEngine
import VMFenceProcess

ProcessDetectorMain.run(ToyInspector.self)
