"""Teacher-forced decoding through a quantized cache, emulated in one forward pass, and the formats it is tried with."""
