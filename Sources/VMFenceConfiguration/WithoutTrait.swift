// Without the package trait `Daemon` this room is empty: YAML is read by an external package, which whoever imports only
// VMFenceCore does not fetch.
