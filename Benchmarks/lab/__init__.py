"""What the measuring scripts of this folder share: a bridge in network namespaces, drawing, figures."""
