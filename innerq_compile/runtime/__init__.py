"""Running compiled graphs.

``call.py``            the callable that Dynamo gets for a graph with quantized caches
``call_caches.py``     the caches of one call; ``next_call.py`` prepares those of the next call
``outputs.py``         the outputs of a call
``shadow.py``          quantized shadows of dense buffers
``hoisted_inputs.py``  inputs that the prelude computes in each call
``recordings.py``      CUDA graphs; ``recording.py`` has one of them, ``recorded_results.py`` its results
``per_thread.py``      a value for each thread that is alive
``sizes.py``           symbolic sizes
``report/``            reports of compiled graphs
"""
