"""What a prefill takes: ``flops`` counts operations from token counts, ``ttft`` times runs in turns."""
