extension LifecycleTable {
  public enum Format: String, Hashable, Sendable, CaseIterable {
    /// A table in Markdown, which reads well on a terminal too.
    case table
    /// A state diagram of Mermaid.
    case mermaid
    /// A graph of Graphviz.
    case dot
  }

  /// The automaton as text, drawn from the table that the code runs on. Ends with a line feed.
  public static func rendered(as format: Format) -> String {
    switch format {
    case .table: renderedAsTable
    case .mermaid: renderedAsMermaid
    case .dot: renderedAsDot
    }
  }

  private static var renderedAsTable: String {
    let header = ["state"] + LifecycleEvent.allCases.map { "\($0.paperName) \($0.rawValue)" }
    var rows = [header]
    for state in LifecycleState.allCases {
      rows.append(
        [label(state, " ")]
          + LifecycleEvent.allCases.map { event in
            let entry = entry(state, event)
            return switch entry.origin {
            case .paper: entry.target.paperName
            case .completed: entry.target.paperName + "*"
            case .unexpected: "-"
            }
          })
    }
    let widths = header.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    func line(_ cells: [String]) -> String {
      let padded = zip(cells, widths).map { cell, width in
        cell + String(repeating: " ", count: width - cell.count)
      }
      return "| " + padded.joined(separator: " | ") + " |\n"
    }
    let rule = "|" + widths.map { String(repeating: "-", count: $0 + 2) }.joined(separator: "|") + "|\n"
    return line(header) + rule + rows.dropFirst().map(line).joined()
      + "\nPlain: the paper's transition. With *: completed by VMFence. -: unexpected; the state stays, and it is counted.\n"
  }

  private static var renderedAsMermaid: String {
    var text = "stateDiagram-v2\n"
    for state in LifecycleState.allCases {
      text += "    state \"\(label(state, " "))\" as \(state.paperName)\n"
    }
    text += "    [*] --> \(LifecycleState.start.paperName)\n"
    for (state, event, entry) in transitions {
      text += "    \(state.paperName) --> \(entry.target.paperName) : \(label(event, entry))\n"
    }
    return text + "    \(LifecycleState.end.paperName) --> [*]\n"
  }

  private static var renderedAsDot: String {
    var text = "digraph lifecycle {\n    rankdir=LR;\n    node [shape=circle];\n"
    for state in LifecycleState.allCases {
      let shape = state == .end ? " shape=doublecircle" : ""
      text += "    \(state.paperName) [label=\"\(label(state, "\\n"))\"\(shape)];\n"
    }
    for (state, event, entry) in transitions {
      let style = entry.origin == .completed ? " style=dashed" : ""
      text += "    \(state.paperName) -> \(entry.target.paperName) [label=\"\(label(event, entry))\"\(style)];\n"
    }
    return text + "}\n"
  }

  /// All pairs but the unexpected ones, in the order of states and events.
  private static var transitions: [(LifecycleState, LifecycleEvent, Entry)] {
    LifecycleState.allCases.flatMap { state in
      LifecycleEvent.allCases.compactMap { event in
        let entry = entry(state, event)
        return entry.origin == .unexpected ? nil : (state, event, entry)
      }
    }
  }

  /// The paper's name and ours, or one of them when they are the same word.
  private static func label(_ state: LifecycleState, _ separator: String) -> String {
    state.paperName.lowercased() == state.rawValue ? state.paperName : state.paperName + separator + state.rawValue
  }

  private static func label(_ event: LifecycleEvent, _ entry: Entry) -> String {
    "\(event.paperName) \(event.rawValue)" + (entry.origin == .completed ? "*" : "")
  }
}
