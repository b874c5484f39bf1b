internal import Glibc

// The frontend in a guest. One static binary, without argument parsing or Foundation from elsewhere, so that it stays small and
// runs in whatever a guest is.
signal(SIGPIPE, SIG_IGN)
exit(GuestCommand.run(Array(CommandLine.arguments.dropFirst())))
