import RingBenchmark
import VMFenceProcess

ProcessDetectorMain.run(MeasuredInspector.self)
