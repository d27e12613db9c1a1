"""An OpenAI-compatible service on Ray Serve LLM whose new replicas start from shared graphs.

`callback.FastColdStart` alone does that for any Ray Serve LLM application; `app.build` makes an application with API
keys, limits, health by generation, and a status page around it. Importing this package imports neither Ray nor vLLM.
"""

from orchestrator import compat

compat.follow()  # before Ray Serve LLM imports vLLM
