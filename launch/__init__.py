"""How the graph is compiled, run on this machine, submitted and scheduled."""
