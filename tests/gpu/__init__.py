"""What only a GPU can show: streams, graphs, sizes beyond 32 bits, compiled code. Skipped where there is none."""
